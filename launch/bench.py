"""Benchmarks: several things in one run, and their ratios: ``python -m launch.bench --suite=grouped_matmul``.

``--suite=tpu_kernels --chip=v5p`` compares the TPU kernels with the libraries' by the compiler's schedules, without a
chip; ``--suite=sharded_experts`` the ways of bringing tokens to experts on many chips; see docs/kernels.md.
"""

import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

import jax
from absl import flags

from launch import cli
from pallas_kernels.grouped_matmul import bench as grouped_matmul
from pallas_kernels.sharded_experts import bench as sharded_experts
from pallas_kernels.static import bench as static
from pallas_kernels.static.chips import TOPOLOGIES
from tml_jax.perf import bench_micro_turn, bench_numerics
from tml_jax.train.config import load_experiment

SUITE = flags.DEFINE_enum(
    "suite",
    None,
    ["grouped_matmul", "micro_turn", "numerics", "sharded_experts", "tpu_kernels"],
    "What is measured.",
    required=True,
)
CONFIG = cli.config("configs/inkling_tiny.py")
CHIP = flags.DEFINE_string("chip", "v5p", f"What the two TPU suites are about: {', '.join(TOPOLOGIES)}.")
OP = flags.DEFINE_string("op", None, f"The one op of the tpu_kernels suite: {', '.join(static.OPS)}. Default: all.")
REPEATS = flags.DEFINE_integer("repeats", 30, "Timed calls of each thing; medians are reported.", lower_bound=1)
JSON = cli.json_out()


def _machine() -> dict[str, str]:
    """What was measured on, and with which versions."""
    cpu = platform.processor() or platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    if info.is_file():
        cpu = next(
            (line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")),
            cpu,
        )
    machine = {
        "machine": f"{os.cpu_count()} x {cpu}",
        "backend": jax.default_backend(),
        "python": platform.python_version(),
    }
    for package in ("jax", "jaxlib", "flax", "torch", "transformers", "libtpu", "tokamax"):
        try:
            machine[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return machine


def _format(name: str, value: float) -> str:
    if name.endswith("_s"):
        return f"{value * 1e3:10.3f} ms"
    if name.endswith("times_as_long") or "speed_over" in name:
        return f"{value:10.2f} x"
    return f"{value:10.3g}"


def _write(figures: Mapping[str, Any]) -> None:
    if JSON.value:
        pathlib.Path(JSON.value).write_text(json.dumps(figures, indent=1) + "\n")


def main(argv: list[str]) -> None:
    del argv
    if SUITE.value in ("tpu_kernels", "sharded_experts"):
        on_one_chip = SUITE.value == "tpu_kernels"
        table, rows = static.run(CHIP.value, OP.value) if on_one_chip else sharded_experts.table(CHIP.value)
        print(table)
        _write(_machine() | {"rows": rows})
        return
    if SUITE.value == "grouped_matmul":
        figures = grouped_matmul.measure(REPEATS.value)
    else:
        suite = {"micro_turn": bench_micro_turn, "numerics": bench_numerics}[SUITE.value]
        figures = suite.measure(load_experiment(CONFIG.value).model, REPEATS.value)
    machine = _machine()
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    for name, value in figures.items():
        print(f"  {name:48} {_format(name, value)}")
    _write(machine | figures)


if __name__ == "__main__":
    cli.run(main)
