"""Which way of bringing tokens to their experts is the cheaper one, by static shapes alone.

Two ways (`api`): every device gets all tokens of its expert group and gives partial sums back (all-gather and
reduce-scatter), or each choice travels to its expert's device and back (all-to-all). On a ring of n devices a gathered
row passes n - 1 links while a choice passes n / 4 on average, but there are k choices; and with all tokens gathered
each device sorts all choices of the group to compute an nth of them. So small groups gather, and large ones don't.

Times are bounds from published figures: links each way at full speed, memory likewise. They decide, they don't predict.
"""

import dataclasses
from typing import Literal

from jax.experimental.pallas import tpu as pltpu

Way = Literal["all_gather", "all_to_all"]

# Axes of the torus, and bytes a second of a link one way (cloud.google.com/tpu/docs; jax-ml.github.io/scaling-book).
ICI = {
    pltpu.ChipVersion.TPU_V5E: (2, 45e9),
    pltpu.ChipVersion.TPU_V5P: (3, 90e9),
    pltpu.ChipVersion.TPU_V6E: (2, 90e9),
    pltpu.ChipVersion.TPU_7X: (3, 100e9),
}
# How often each choice's row crosses memory, forward: sorted, multiplied and brought back in place on one side, and,
# where choices travel, also sorted and combined on the other.
_GATHERED_PASSES, _SENT_PASSES = 6, 15


@dataclasses.dataclass(frozen=True)
class Exchange:
    """One call: `tokens` of `row_bytes` on each of `devices`, `k` choices a token."""

    tokens: int
    k: int
    row_bytes: int
    devices: int

    def sides(self, chip: pltpu.TpuInfo) -> tuple[int, ...]:
        """The sides that the group has on the chip's torus."""
        return torus(self.devices, ICI[chip.chip_version][0])

    def seconds(self, way: Way, chip: pltpu.TpuInfo) -> float:
        """There and back: the links' time and the memory's."""
        sides, link = self.sides(chip), ICI[chip.chip_version][1]
        links = sum(min(side, 3) - 1 for side in sides)
        memory = chip.mem_bw_bytes_per_second * chip.num_cores
        choices = self.tokens * self.k
        if way == "all_gather":
            hops = float((self.devices - 1) * self.tokens)
            passes = _GATHERED_PASSES * self.devices * choices
        else:
            hops = choices * mean_hops(sides)
            passes = _SENT_PASSES * choices
        return self.row_bytes * (2 * hops / (max(links, 1) * link) + passes / memory)

    def cheaper(self, chip: pltpu.TpuInfo) -> Way:
        """The way that takes less time."""
        ways: tuple[Way, Way] = ("all_gather", "all_to_all")
        return min(ways, key=lambda way: self.seconds(way, chip))


def mean_hops(sides: tuple[int, ...]) -> float:
    """Links that lie between two devices of a torus, on average."""
    return sum((side * side // 4) / side for side in sides)


def torus(devices: int, axes: int) -> tuple[int, ...]:
    """The sides that a group of devices has on a torus, as near to equal as its factors allow."""
    sides = [1] * axes
    factor = 2
    factors = []
    while devices > 1:
        while devices % factor == 0:
            factors.append(factor)
            devices //= factor
        factor += 1
    for factor in reversed(factors):
        sides[sides.index(min(sides))] *= factor
    return tuple(sides)
