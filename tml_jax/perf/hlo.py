"""What a compiled program holds: which collectives it runs, how often, how many bytes, and its custom kernels.

Reads the text of an optimised HLO module (`jax.stages.Compiled.as_text`). An operation in a loop's body counts as
often as the loop turns: ``known_trip_count`` where the compiler left it (CPU), else the largest integer constant
that the loop's condition compares with (TPU, whose compiler drops the count). A loop whose condition holds no
constant turns a number of times that only the data knows; its body is counted once and the report says so.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "ragged-all-to-all", "reduce-scatter")
_BITS = {
    "pred": 8,
    "s4": 4,
    "u4": 4,
    "s8": 8,
    "u8": 8,
    "s16": 16,
    "u16": 16,
    "bf16": 16,
    "f16": 16,
    "s32": 32,
    "u32": 32,
    "f32": 32,
}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\(")
_ARRAY = re.compile(r"\b([a-z]+\d*)(?:e\d\w*)?\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:to_apply|calls|true_computation|false_computation|called_computations|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
_NAME = re.compile(r"%?([\w.\-]+)")
_KNOWN_TRIPS = re.compile(r'known_trip_count":\{"n":"?(\d+)')
_INTEGER = re.compile(r"= [su]32\[\]\S* constant\((\d+)\)")


@dataclasses.dataclass(frozen=True)
class Operation:
    """One line of HLO: its name, result type as printed, kind, and the whole line."""

    name: str
    type: str
    kind: str
    line: str

    def called(self) -> list[str]:
        """Computations that it runs, once each (a loop's body is not among them)."""
        return [name for group in _CALLED.findall(self.line) for name in _NAME.findall(group)]


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of collective over one shape of device groups.

    Attributes:
      kind: such as "all-reduce". groups: how devices are grouped: how many groups of how many, and the first.
      count: runs in one call of the program. bytes: of its larger side on a device, over all runs: what a gather or
        an exchange gives, what a reduction takes.
    """

    kind: str
    groups: str
    count: int
    bytes: int

    @property
    def group_size(self) -> int:
        """Devices of a group; 2 of a permutation's pairs."""
        return 2 if self.groups.endswith("pairs") else int(self.groups.partition(" x ")[2].partition(":")[0] or 1)


@dataclasses.dataclass(frozen=True)
class Program:
    """What `analyse` finds.

    Attributes:
      collectives: most bytes first. kernels: name of each custom TPU kernel -> runs.
      open_loops: loops whose number of turns only the data knows.
    """

    collectives: tuple[Collective, ...]
    kernels: dict[str, int]
    open_loops: int


def num_bytes(type_text: str) -> int:
    """Bytes of an HLO type such as ``f32[8,128]{1,0}``; of a tuple: of all its parts."""
    total = 0
    for dtype, sizes in _ARRAY.findall(type_text):
        bits = _BITS.get(dtype, int((re.search(r"\d+$", dtype) or ["32"])[0]))
        for size in filter(None, sizes.split(",")):
            bits *= int(size)
        total += -(-bits // 8)
    return total


def parse(text: str) -> tuple[dict[str, list[Operation]], str]:
    """The computations of an HLO module by name, and the name of the entry."""
    computations: dict[str, list[Operation]] = {}
    current: list[Operation] = []
    entry = ""
    for line in text.splitlines():
        if not line.startswith(" "):
            if (head := _COMPUTATION.match(line)) and "->" in line:
                current = computations.setdefault(head[2], [])
                entry = head[2] if head[1] else entry
        elif found := _OPERATION.match(line):
            current.append(Operation(found[1], found[2], found[3], line))
    if not entry:
        raise ValueError("This is no HLO module: it has no ENTRY computation.")
    return computations, entry


def analyse(text: str) -> Program:
    """Counts what one call of an optimised HLO module runs."""
    computations, entry = parse(text)
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    sizes: collections.Counter[tuple[str, str]] = collections.Counter()
    kernels: collections.Counter[str] = collections.Counter()
    open_loops: set[str] = set()
    for operation, turns in _runs(computations, entry, 1, open_loops):
        if "tpu_custom_call" in operation.line and operation.kind == "custom-call":
            kernels[re.sub(r"[.\d]+$", "", operation.name)] += turns
        if kind := _collective(operation):
            key = (kind, _groups(operation.line))
            counts[key] += turns
            sizes[key] += turns * _larger_side(operation)
    table = [Collective(*key, counts[key], sizes[key]) for key in counts]
    return Program(tuple(sorted(table, key=lambda c: -c.bytes)), dict(kernels), len(open_loops))


def _runs(
    computations: dict[str, list[Operation]], name: str, turns: int, open_loops: set[str]
) -> Iterator[tuple[Operation, int]]:
    """Every operation that a computation runs, and how often."""
    operations = computations.get(name, ())
    starts = any("AsyncCollectiveStart" in operation.line for operation in operations)
    for operation in operations:
        # One that hides behind matmuls stands in each fusion that moves a part of it, from its start to its end.
        if "chain_id=" in operation.line and operation.kind in COLLECTIVES and not starts:
            continue
        # A TPU's compiler writes a reduce-scatter as a fusion of an all-reduce and a slice.
        scattered = name.startswith("all-reduce-scatter") and operation.kind == "all-reduce"
        yield dataclasses.replace(operation, kind="all-reduce-scatter") if scattered else operation, turns
        if operation.kind == "while":
            body, condition = (re.search(rf"{part}=%?([\w.\-]+)", operation.line) for part in ("body", "condition"))
            assert body and condition, operation.line
            trips = _trip_count(computations, operation, condition[1])
            if trips is None:
                open_loops.add(operation.name)
            yield from _runs(computations, body[1], turns * (1 if trips is None else trips), open_loops)
        elif operation.kind in ("call", "conditional", "fusion") or operation.kind.endswith("-start"):
            for called in operation.called():
                yield from _runs(computations, called, turns, open_loops)


def _trip_count(computations: dict[str, list[Operation]], loop: Operation, condition: str) -> int | None:
    if known := _KNOWN_TRIPS.search(loop.line):
        return int(known[1])
    # A turn is counted from zero by one, and the condition compares it with the end.
    lines = [operation.line for operation, _ in _runs(computations, condition, 1, set())]
    constants = [int(found[1]) for line in lines if (found := _INTEGER.search(line))]
    return max(constants, default=None)


def _collective(operation: Operation) -> str | None:
    kind = operation.kind.removesuffix("-start").replace("all-reduce-scatter", "reduce-scatter")
    return kind if kind in COLLECTIVES else None


def _groups(line: str) -> str:
    """How devices are grouped: "8 x 4: 0,1,2,3" is eight groups of four, of which this is the first."""
    if found := re.search(r"replica_groups=\{(\{[\d,{}]+\})\}", line):
        groups = [group.split(",") for group in found[1].strip("{}").split("},{")]
        return f"{len(groups)} x {len(groups[0])}: {','.join(groups[0])}"
    if found := re.search(rf"replica_groups=(\[[\d,]+\])<={_ORDER}", line):
        order = _device_order(found[2], found[3]).reshape(_sizes(found[1]))
        return f"{order.shape[0]} x {order.shape[1]}: {','.join(map(str, order[0]))}"
    if found := re.search(rf"replica_groups=mesh\[(.*?)\](?:, device_ids=\({_ORDER}\))? \{{(.*?)\}}", line):
        names, sizes = zip(*re.findall(r"('\w+')=(\d+)", found[1]), strict=True)
        shape = [int(size) for size in sizes]
        order = _device_order(found[2], found[3]) if found[2] else np.arange(math.prod(shape))
        used = tuple(slice(None) if name in found[4].split(",") else 0 for name in names)
        first = order.reshape(shape)[used].reshape(-1)
        return f"{order.size // first.size} x {first.size}: {','.join(map(str, first))}"
    pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", line)
    return f"{pairs[1].count('{')} pairs" if pairs else ""


# Device ids in order: [2,4]T(1,0) counts along two axes and transposes them.
_ORDER = r"(\[[\d,]+\])(?:T\(([\d,]+)\))?"


def _sizes(text: str) -> list[int]:
    return [int(size) for size in text.strip("[]").split(",")]


def _device_order(sizes: str, axes: str | None) -> np.ndarray:
    order = np.arange(math.prod(_sizes(sizes))).reshape(_sizes(sizes))
    return (order.transpose(_sizes(axes)) if axes else order).reshape(-1)


def _larger_side(operation: Operation) -> int:
    """Bytes; an asynchronous start's type also lists its operands and context: the largest is it."""
    if operation.kind.endswith("-start") and operation.type.startswith("("):
        return max((num_bytes(f"{dtype}[{size}]") for dtype, size in _ARRAY.findall(operation.type)), default=0)
    size = num_bytes(operation.type)
    if operation.kind == "reduce-scatter":
        size *= Collective("", _groups(operation.line), 0, 0).group_size
    return size
