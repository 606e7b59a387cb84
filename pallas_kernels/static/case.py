"""What the bench compares: one kernel at one named workload, and our own count of its steps for a load.

An op's cases come from a module of this package; it builds the op's own kernel and the library kernels that do the
same work, and counts the turns of their loops. The compiler's idea of trip counts is never used: it cannot know what
group sizes and lengths will be.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pallas_kernels.static.chips import Chip
from pallas_kernels.static.compile import Kernel
from pallas_kernels.static.schedule import Region


@dataclasses.dataclass(frozen=True)
class Count:
    """What one kernel does for one load.

    Attributes:
      runs: how often each region of its schedule runs on the busiest core.
      hbm_bytes: that the device moves.
      waits: cycles beyond those of `runs` that the busiest core waits for a transfer that began only one step before
        it was needed. None: not counted.
    """

    runs: Mapping[Region, float]
    hbm_bytes: float
    waits: float | None = None


@dataclasses.dataclass(frozen=True)
class Part:
    """A kernel of a case. `kernel`: its name in the compiled program, without a trailing number."""

    build: str
    kwargs: Mapping[str, Any]
    kernel: str
    count: Callable[[Kernel, Chip, str], Count]


@dataclasses.dataclass(frozen=True)
class Load:
    """What data a workload may meet, such as group sizes, and the least work that it takes on any machine."""

    name: str
    flops: float
    min_bytes: float


@dataclasses.dataclass(frozen=True)
class Case:
    """One way to do a workload.

    Attributes:
      op, workload: names. way: "ours", or of the library.
      parts: kernels that are called one after the other.
      loads: to count steps for.
      note: what the figures leave out.
    """

    op: str
    workload: str
    way: str
    parts: tuple[Part, ...]
    loads: tuple[Load, ...]
    note: str = ""


def waits(cycles: np.ndarray, transfers: np.ndarray, chip: Chip) -> float:
    """Cycles that a core waits in a pipeline that looks one step ahead, a step's transfer beside the step before it.

    Args:
      cycles: [S], of each step of a core. transfers: [S], bytes that have to be there when the step begins.
    """
    bytes_per_cycle = chip.bytes_per_second / chip.cores / chip.clock
    ready = np.roll(transfers, -1) / bytes_per_cycle
    return float(np.maximum(ready - cycles, 0).sum())
