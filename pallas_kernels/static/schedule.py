"""Reads the final schedule that the TPU compiler prints of a kernel: its loops and branches, and what they cost.

A schedule (`*-final_bundles.txt`) is a list of bundles, each of which issues in one cycle unless it has to wait.
Control flow is in it as branches, `sbr.rel (condition) target = $regionN`, which take effect four bundles later,
and as comments that say where region N starts. A branch backwards closes a loop; a branch forwards skips a block.
So a kernel is a tree of regions, and its cycles are each region's own cycles times how often it runs, which only
the caller knows.

What a bundle waits for: a matrix unit that still works on rows it was given. The schedulers of v5e and v5p issue
matmuls faster than the unit takes them, so that bundles alone would promise more than the chip's peak.
"""

import collections
import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Literal

# Bundles between a branch and its effect.
DELAY_SLOTS = 4
# Bytes that a DMA's `size_in_granules` counts in.
GRANULE = 32
# Rows of bfloat16 that one `vmatmul` streams through a matrix unit; of float32, half as many.
MATMUL_ROWS = 16

_BUNDLE = re.compile(r"^\s*(0x[0-9a-f]+|0)\s+(?:[A-Z]{2})?\s*:[\s>]*\{?(.*)$", re.DOTALL)
_STARTS = re.compile(r"Start(?:/End empty)? region (\d+)")
_BRANCH = re.compile(r"sbr\.rel (\([^)]*\) )?target = \$region(\d+)")
_MATMUL = re.compile(r"= vmatmul\.(\S*?)\.mxu(\d)")
_DMA = re.compile(r"= dma\.(\w+) .*?size_in_granules=\*/(\w+)")
# What a bounds check says of the DMA that it guards.
_BOUNDS_CHECK = re.compile(r"/\* BoundsCheck.*?\nhlo: [^\n]*\n \*/", re.DOTALL)
# Units of the utilisation table.
UNITS = ("MXU", "XLU", "VALU", "EUP", "VLOAD", "VSTORE")


@dataclasses.dataclass(frozen=True)
class Bundle:
    """One instruction word.

    Attributes:
      matmuls: the matrix units that get rows, each with how many vectors of bfloat16 rows that is.
      dmas: that it starts, as (direction, bytes); None where the size is not static.
      starts: regions that begin here. branch: target region, and whether there is a condition.
    """

    matmuls: tuple[tuple[int, float], ...] = ()
    dmas: tuple[tuple[str, int | None], ...] = ()
    starts: tuple[int, ...] = ()
    branch: tuple[int, bool] | None = None


@dataclasses.dataclass(eq=False)
class Region:
    """A loop, a block that a branch may skip, or the whole kernel: bundles [first, last).

    Attributes:
      own: bundles that are in no region inside this one.
      cycles: of one turn through them, waiting for the matrix units included.
      matmuls: `vmatmul`s among them, of float32 half.
      busy: of each unit, the share of its slots that own bundles use.
      fills, spills: vector registers that own bundles load from and store to spill space.
      hbm_bytes: of DMAs to or from HBM of static size among them.
    """

    kind: Literal["kernel", "loop", "branch"]
    first: int
    last: int
    inside: list["Region"] = dataclasses.field(default_factory=list)
    own: int = 0
    cycles: int = 0
    matmuls: float = 0.0
    busy: dict[str, float] = dataclasses.field(default_factory=dict)
    fills: int = 0
    spills: int = 0
    hbm_bytes: int = 0

    def walk(self) -> Iterator["Region"]:
        """This region and all inside it, in the order of the program."""
        yield self
        for region in self.inside:
            yield from region.walk()

    def loops(self) -> list["Region"]:
        """The loops inside this region, in the order of the program."""
        return [region for region in self.walk() if region.kind == "loop" and region is not self]

    def products(self) -> list["Region"]:
        """Those of this region and all inside it whose own bundles multiply."""
        return [region for region in self.walk() if region.matmuls]

    def grid(self) -> "Region":
        """The loop over the grid's steps: the outermost that multiplies."""
        found = next((region for region in self.loops() if region.total("matmuls")), None)
        if found is None:
            raise ValueError("the schedule has no loop over a grid.")
        return found

    def total(self, name: str) -> float:
        """An attribute summed over this region and all inside it, each counted once."""
        return sum(getattr(region, name) for region in self.walk())

    def spent(self, name: str, runs: Mapping["Region", float], turns: float = 1) -> float:
        """An attribute summed over all turns, such as the cycles of a whole call.

        Args:
          name: of a number that a turn of a region's own bundles has, or of a unit: the bundles that would use all
            of its slots.
          runs: how often a region runs. A branch that is not there runs as often as what it is in; a loop has to be.
          turns: of this region.
        """
        if self.kind == "loop" and self not in runs:
            raise ValueError(f"Nobody said how often the loop at bundle {self.first} turns.")
        turns = runs.get(self, turns)
        value = self.busy.get(name, 0.0) * self.own if name in UNITS else getattr(self, name)
        return turns * value + sum(region.spent(name, runs, turns) for region in self.inside)


def parse_bundles(text: str) -> list[Bundle]:
    """The bundles of a `final_bundles` file; a bundle with comments takes several lines."""
    bundles: list[list[str]] = []
    for line in text.splitlines():
        if found := _BUNDLE.match(line):
            bundles.append([found[2]])
        elif bundles:
            bundles[-1].append(line)
    return [_bundle("\n".join(lines)) for lines in bundles]


def _bundle(text: str) -> Bundle:
    code = _BOUNDS_CHECK.sub("", text)
    branch = _BRANCH.search(text)
    return Bundle(
        matmuls=tuple((int(unit), 0.5 if "f32" in kind else 1.0) for kind, unit in _MATMUL.findall(code)),
        dmas=tuple((kind, int(size) * GRANULE if size.isdigit() else None) for kind, size in _DMA.findall(code)),
        starts=tuple(map(int, _STARTS.findall(text))),
        branch=(int(branch[2]), branch[1] is not None) if branch else None,
    )


def parse_utilisation(text: str) -> tuple[dict[str, int], list[dict[str, int]]]:
    """The slots of each unit in a bundle, and how many of them each bundle uses."""
    lines = [line for line in text.splitlines() if line.strip()]
    names = [name.strip() for name in lines[1].split(",")]
    return dict(zip(names, map(int, lines[2].split()), strict=True)), [
        dict(zip(names, map(int, line.split()), strict=True)) for line in lines[4:]
    ]


def parse(bundles_text: str, utilisation_text: str, matmul_cycles: int) -> Region:
    """A kernel's regions.

    Args:
      bundles_text: of `final_bundles`. utilisation_text: of `final_hlo-static-per-bundle-utilization`.
      matmul_cycles: how long a matrix unit works on one `vmatmul`.
    """
    bundles = parse_bundles(bundles_text)
    slots, used = parse_utilisation(utilisation_text)
    if len(bundles) != len(used):
        raise ValueError(f"The schedule has {len(bundles)} bundles, and its utilisation table {len(used)}.")
    kernel = _tree(bundles)
    for region in kernel.walk():
        _fill(region, bundles, slots, used, matmul_cycles)
    return kernel


def _tree(bundles: list[Bundle]) -> Region:
    starts = {region: i for i, bundle in enumerate(bundles) for region in bundle.starts}
    kernel = Region("kernel", 0, len(bundles))
    found = []
    for i, bundle in enumerate(bundles):
        if bundle.branch is None:
            continue
        target, after = starts.get(bundle.branch[0], len(bundles)), i + 1 + DELAY_SLOTS
        if target <= i:
            found.append(Region("loop", target, after))
        elif target > after:
            found.append(Region("branch", after, target))
    # The larger first, so that each finds the smallest region that it is inside of.
    for region in sorted(found, key=lambda region: (region.first, -region.last)):
        outer = kernel
        while inner := next((r for r in outer.inside if r.first <= region.first and region.last <= r.last), None):
            outer = inner
        outer.inside.append(region)
    return kernel


def _fill(
    region: Region, bundles: list[Bundle], slots: dict[str, int], used: list[dict[str, int]], matmul_cycles: int
) -> None:
    """Counts a region's own bundles, and the cycles that they take in order."""
    inside = {i for inner in region.inside for i in range(inner.first, inner.last)}
    own = [i for i in range(region.first, region.last) if i not in inside]
    clock, free = 0.0, dict[int, float]()
    totals = collections.Counter[str]()
    for i in own:
        clock = max([clock, *(free.get(unit, 0.0) for unit, _ in bundles[i].matmuls)])
        for unit, rows in bundles[i].matmuls:
            free[unit] = clock + rows * matmul_cycles
            region.matmuls += rows
        clock += 1
        totals.update(used[i])
        region.hbm_bytes += sum(size or 0 for kind, size in bundles[i].dmas if "hbm" in kind and "smem" not in kind)
    region.own, region.cycles = len(own), round(clock)
    region.fills, region.spills = totals["VLOAD:FILL"], totals["VSTORE:SPILL"]
    region.busy = {unit: totals[unit] / (slots[unit] * len(own)) for unit in UNITS if unit in slots and own}
