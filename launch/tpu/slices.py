"""Slices of TPUs: which there are, and what follows from one: chips, hosts, machines, node labels.

Facts are those of Google's pages on TPU configurations and on TPUs in GKE. A v5p or tpu7x slice is a box of cubes of
4x4x4 chips, its sides in ascending order, or a part of one cube; a v6e slice is a rectangle of one pod. A host has four
chips, or the only one.
"""

import dataclasses
import difflib
import itertools
import math

_PARTS_OF_A_CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")


def _boxes(cubes: int) -> tuple[str, ...]:
    """Boxes of up to so many cubes, and parts of one."""
    sides = itertools.combinations_with_replacement(range(4, 257, 4), 3)
    boxes = (f"{x}x{y}x{z}" for x, y, z in sides if x * y * z <= 64 * cubes)
    return (*_PARTS_OF_A_CUBE, *boxes)


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """A generation of TPUs.

    Attributes:
      label: of GKE's nodes, cloud.google.com/gke-tpu-accelerator.
      machines: GKE's machine type by chips of a host.
      topologies: of its slices.
      runtime: software of a TPU VM; None: there are no queued resources of it, GKE alone has it.
      policy: whether a node pool of several hosts gets its topology from a workload policy.
    """

    label: str
    machines: dict[int, str]
    topologies: tuple[str, ...]
    runtime: str | None
    policy: bool = False


ACCELERATORS = {
    "v5p": Accelerator("tpu-v5p-slice", {4: "ct5p-hightpu-4t"}, _boxes(96), "v2-alpha-tpuv5"),
    "v6e": Accelerator(
        "tpu-v6e-slice",
        {1: "ct6e-standard-1t", 4: "ct6e-standard-4t"},
        ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
        "v2-alpha-tpuv6e",
    ),
    "tpu7x": Accelerator(
        "tpu7x", {1: "tpu7x-standard-1t", 4: "tpu7x-standard-4t"}, ("1x1x1", *_boxes(144)), None, policy=True
    ),
}


def _sides(topology: str) -> list[int]:
    return [int(side) for side in topology.split("x")]


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice as the compiler names it, such as ``v5p:2x4x4``.

    Raises:
      ValueError: there is none such; the sentence names the nearest.
    """

    name: str

    def __post_init__(self) -> None:
        kind, _, topology = self.name.partition(":")
        if kind not in ACCELERATORS:
            near = difflib.get_close_matches(kind, ACCELERATORS, 1, 0.0)[0]
            raise ValueError(f"There is no accelerator {kind!r}; the nearest of {', '.join(ACCELERATORS)} is {near}.")
        known = ACCELERATORS[kind].topologies
        if topology in known:
            return
        try:
            wanted = sorted((max(1, side) for side in _sides(topology)), reverse=True)
        except ValueError:
            raise ValueError(f"{self.name!r} names no slice; write it like {kind}:{known[-1]}.") from None

        def distance(other: str) -> tuple[float, float]:
            sides = sorted(_sides(other), reverse=True)
            pairs = itertools.zip_longest(wanted, sides, fillvalue=1)
            return abs(math.log(math.prod(wanted) / math.prod(sides))), sum(abs(math.log(a / b)) for a, b in pairs)

        near = min(known, key=distance)
        raise ValueError(f"{kind} has no slice {topology}; the nearest is {near}, of {math.prod(_sides(near))} chips.")

    @property
    def accelerator(self) -> Accelerator:
        """Its generation."""
        return ACCELERATORS[self.kind]

    @property
    def kind(self) -> str:
        """The generation's name."""
        return self.name.partition(":")[0]

    @property
    def topology(self) -> str:
        """Chips on each axis."""
        return self.name.partition(":")[2]

    @property
    def chips(self) -> int:
        """Of the slice."""
        return math.prod(_sides(self.topology))

    @property
    def chips_per_host(self) -> int:
        """Four, or the only one."""
        return min(4, self.chips)

    @property
    def hosts(self) -> int:
        """Of the slice."""
        return self.chips // self.chips_per_host

    @property
    def machine(self) -> str:
        """GKE's machine type of a host."""
        return self.accelerator.machines[self.chips_per_host]

    @property
    def node_selector(self) -> dict[str, str]:
        """The labels of its nodes in GKE."""
        return {
            "cloud.google.com/gke-tpu-accelerator": self.accelerator.label,
            "cloud.google.com/gke-tpu-topology": self.topology,
        }
