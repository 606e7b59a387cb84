"""Compiles cases and works out their figures: a row for each case and load."""

import dataclasses
import json
from collections.abc import Callable, Iterable
from typing import Any

from pallas_kernels.static.case import Case, Load
from pallas_kernels.static.chips import Chip
from pallas_kernels.static.compile import Compilation, Kernel, compile_for
from pallas_kernels.static.schedule import UNITS


@dataclasses.dataclass(frozen=True)
class Row:
    """The figures of a case under a load; None where it does not compile.

    Attributes:
      error: why it does not compile, else empty.
      vmem_bytes: of its largest kernel. spills: vector registers that one pass over the code spills.
      flops, min_bytes: the least work that the load takes. hbm_bytes: what the kernels move.
      roofline_s: the longer of flops and min_bytes on this chip.
      cycles: of the schedule on the busiest core. waits: see `case.Count`.
      hbm_cycles: that the memory takes.
      mxu_useful: of the matrix units' peak over `cycles`, counted in useful flops. mxu: what they are busy, with
        padding and straddled tiles. valu, vload, vstore: of the slots of those units.
    """

    op: str
    workload: str
    load: str
    way: str
    error: str = ""
    note: str = ""
    flops: float = 0.0
    min_bytes: float = 0.0
    roofline_s: float = 0.0
    vmem_bytes: int | None = None
    spills: int | None = None
    hbm_bytes: float | None = None
    cycles: float | None = None
    hbm_cycles: float | None = None
    waits: float | None = None
    time_s: float | None = None
    mxu_useful: float | None = None
    mxu: float | None = None
    valu: float | None = None
    vload: float | None = None
    vstore: float | None = None


def measure(cases: Iterable[Case], chip: Chip, say: Callable[[str], None] = lambda line: None) -> list[Row]:
    """The rows of all cases, in order; each distinct program is compiled once."""
    compiled: dict[str, Compilation] = {}
    rows = []
    for case in cases:
        programs = []
        for part in case.parts:
            key = json.dumps([part.build, dict(part.kwargs)])
            if key not in compiled:
                say(f"{case.op} {case.workload}: {case.way}")
                compiled[key] = compile_for(chip, part.build, part.kwargs)
            programs.append(compiled[key])
        rows += [_row(case, load, programs, chip) for load in case.loads]
    return rows


def _row(case: Case, load: Load, programs: list[Compilation], chip: Chip) -> Row:
    roofline = max(load.flops / chip.flops_per_second, load.min_bytes / chip.bytes_per_second)
    row = Row(
        case.op, case.workload, load.name, case.way, "", case.note, load.flops, load.min_bytes, roofline_s=roofline
    )
    if errors := [program.error for program in programs if program.error]:
        return dataclasses.replace(row, error=errors[0])
    try:
        kernels = [program.kernel(part.kernel) for program, part in zip(programs, case.parts, strict=True)]
        return dataclasses.replace(row, **_figures(case, load, kernels, chip))
    except ValueError as error:
        return dataclasses.replace(row, error=f"not counted: {error}")


def _figures(case: Case, load: Load, kernels: list[Kernel], chip: Chip) -> dict[str, Any]:
    cycles = matmuls = hbm_bytes = waits = 0.0
    busy = dict.fromkeys(UNITS, 0.0)
    for part, kernel in zip(case.parts, kernels, strict=True):
        if kernel.regions is None:
            raise ValueError(f"the compiler printed no schedule of {kernel.name}.")
        count = part.count(kernel, chip, load.name)
        cycles += kernel.regions.spent("cycles", count.runs)
        matmuls += kernel.regions.spent("matmuls", count.runs)
        for unit in busy:
            busy[unit] += kernel.regions.spent(unit, count.runs)
        hbm_bytes += count.hbm_bytes
        waits = waits + count.waits if count.waits is not None else float("nan")
    mxu = matmuls * chip.matmul_cycles / chip.info.num_mxus / cycles
    if mxu > 1:
        raise ValueError(f"the matrix units would be busy {mxu:.0%} of the time: a loop is missing.")
    hbm_cycles = hbm_bytes / chip.bytes_per_second * chip.clock
    return {
        "vmem_bytes": max(kernel.vmem_bytes for kernel in kernels),
        "spills": sum(kernel.regions.total("spills") for kernel in kernels if kernel.regions),
        "hbm_bytes": hbm_bytes,
        "cycles": cycles,
        "hbm_cycles": hbm_cycles,
        "waits": None if waits != waits else waits,
        "time_s": max(cycles, hbm_cycles) / chip.clock,
        "mxu_useful": load.flops / chip.cores / chip.flops_per_cycle / cycles,
        "mxu": mxu,
        **{unit.lower(): busy[unit] / cycles for unit in ("VALU", "VLOAD", "VSTORE")},
    }
