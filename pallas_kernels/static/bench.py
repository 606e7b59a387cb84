"""The static bench: every kernel and the library kernels that a user would otherwise pick, without a chip."""

import dataclasses
import importlib
import json
import sys
from typing import Any

from pallas_kernels.static import compile, grouped_libraries, table
from pallas_kernels.static.case import Case
from pallas_kernels.static.chips import Chip
from pallas_kernels.static.measure import Row, measure

OPS = ("grouped_matmul", "expert_gemv", "streaming_attention", "prefill_attention")


def run(chip_name: str, op: str | None) -> tuple[str, list[dict[str, Any]]]:
    """Compiles and counts.

    Args:
      chip_name: one of `chips.TOPOLOGIES`. op: one of `OPS`, or None for all.

    Returns:
      A table to print, and every row, all tiles of the libraries included.

    Raises:
      ValueError: unknown chip or op, or no TPU compiler.
    """
    chip = Chip(chip_name)
    if op is not None and op not in OPS:
        raise ValueError(f"There is no op {op!r}; expected one of {', '.join(OPS)}.")
    if not compile.available():
        raise ValueError("The TPU compiler is not installed: pip install 'jax[tpu]' (no TPU is needed).")
    cases: list[Case] = []
    for name in [op] if op else OPS:
        cases += importlib.import_module(f"pallas_kernels.static.{name}").cases(chip)
    rows = measure(cases, chip, say=lambda line: print(line, file=sys.stderr, flush=True))
    if op in (None, "grouped_matmul") and "tokamax" not in grouped_libraries.installed():
        rows.append(Row("grouped_matmul", "all", "all", "tokamax", error="not installed: pip install tokamax"))
    ratios = {id(row): table.ratio(row, rows) for row in rows}
    records = [dataclasses.asdict(row) | {"chip": chip.name, "ours_over_it": ratios[id(row)]} for row in rows]
    return table.table(rows, chip), json.loads(json.dumps(records, default=lambda number: number.item()))
