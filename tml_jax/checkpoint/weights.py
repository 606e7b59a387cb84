"""Weights that lie in files, read a block at a time: what all layouts of a checkpoint have in common.

A reader maps dotted paths to `Weight`s, of which nothing is in memory yet. Whoever places or writes them asks for
blocks: a process reads its own parts alone, and no checkpoint, stack of layers or large tensor is ever in memory as a
whole.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from flax import traverse_util

from pallas_kernels.int8 import Int8Weight
from tml_jax.checkpoint.quantize import quantize
from tml_jax.model.interaction import InteractionModel, Params

Index = tuple[slice, ...]
BLOCK_BYTES = 16 * 2**20


class Weight(Protocol):
    """An array, or what reads as one from files."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def dtype(self) -> Any:
        """Its dtype."""

    def __getitem__(self, index: Any) -> Any:
        """A block: slices without steps, of its first axes. Only that is read."""


Weights = Mapping[str, Weight]


def flatten(params: Params) -> dict[str, Any]:
    """Nested weights by dotted path."""
    return traverse_util.flatten_dict(params, sep=".")


def block_shape(shape: Sequence[int], itemsize: int, whole: Sequence[int] = ()) -> tuple[int, ...]:
    """The largest part of an array that is at most `BLOCK_BYTES`, cut along the first axes.

    Args:
      shape, itemsize: of the array.
      whole: axes that are not cut, whatever the part then takes.
    """
    sizes = list(shape)
    for axis, size in enumerate(sizes):
        if axis in whole or (after := itemsize * math.prod(sizes[axis + 1 :])) == 0:
            break
        sizes[axis] = max(1, min(size, BLOCK_BYTES // after))
        if sizes[axis] > 1:
            break
    return tuple(sizes)


def blocks(shape: Sequence[int], itemsize: int, whole: Sequence[int] = ()) -> Iterator[Index]:
    """The parts of an array, each of at most `block_shape`; one after another they are the array, flattened."""
    part = block_shape(shape, itemsize, whole)
    counts = [-(-size // max(1, step)) for size, step in zip(shape, part, strict=True)]
    for number in np.ndindex(*counts):
        starts = [n * step for n, step in zip(number, part, strict=True)]
        yield tuple(
            slice(start, min(start + step, size)) for start, step, size in zip(starts, part, shape, strict=True)
        )


def read(weight: Weight, index: Index, like: Any) -> Any:
    """A block of a weight in memory of its own, in the dtype of `like`, with little else in memory on the way.

    Where `like` is an `Int8Weight` so is the block: as it is stored, or made so, which takes all that shares a scale.
    """
    index = (*index, *(slice(None),) * (len(weight.shape) - len(index)))
    spans = [part.indices(size)[:2] for part, size in zip(index, weight.shape, strict=True)]
    if isinstance(like, Int8Weight):
        return _read_int8(weight, spans, like)
    out = np.empty([stop - start for start, stop in spans], like.dtype)
    for part in blocks(out.shape, out.itemsize):
        out[part] = weight[_moved(part, spans)]
    return out


def _moved(part: Index, spans: Sequence[tuple[int, int]]) -> Index:
    return tuple(slice(s.start + start, s.stop + start) for s, (start, _) in zip(part, spans, strict=True))


def _read_int8(weight: Weight, spans: Sequence[tuple[int, int]], like: Int8Weight) -> Int8Weight:
    if isinstance(weight, Int8Weight):
        there = weight[tuple(slice(*span) for span in spans)]
        return dataclasses.replace(like, values=np.array(there.values), scale=np.array(there.scale))
    out = Int8Weight(
        np.empty([stop - start for start, stop in spans], np.int8),
        np.empty([1 if i in like.shared else stop - start for i, (start, stop) in enumerate(spans)], np.float32),
        like.dtype,
    )
    own = tuple(slice(*span) if i in like.shared else slice(None) for i, span in enumerate(spans))
    spans = [(0, weight.shape[i]) if i in like.shared else span for i, span in enumerate(spans)]
    for part in blocks([stop - start for start, stop in spans], 4, like.shared):
        values, scale = quantize(weight[_moved(part, spans)], like.shared)
        mine = tuple(slice(None) if i in like.shared else s for i, s in enumerate(part))
        out.values[mine], out.scale[mine] = values[own], scale
    return out


@dataclasses.dataclass(frozen=True)
class Cast:
    """A weight in another dtype."""

    weight: Weight
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return self.weight.shape

    def __getitem__(self, index: Any) -> np.ndarray:
        """A block of it."""
        return np.asarray(self.weight[index]).astype(self.dtype, copy=False)


def cast(weights: Weights, dtype: Callable[[str], Any]) -> Weights:
    """Weights in the dtypes that `dtype` gives for their paths."""
    return {path: Cast(weight, np.dtype(dtype(path))) for path, weight in weights.items()}


def fresh_params(model: InteractionModel, paths: Sequence[str], seed: int) -> dict[str, np.ndarray]:
    """Initial values of some weights; the compiler drops the drawing of all others."""

    def draw(seed: jax.Array) -> dict[str, jax.Array]:
        weights = flatten(model.init_params(seed))
        return {path: weights[path] for path in paths}

    return jax.device_get(jax.jit(draw)(seed)) if paths else {}


def place_params(model: InteractionModel, weights: Weights, shardings: Params | None = None) -> Params:
    """Weights in the model's dtypes, each on its devices as soon as it is read.

    Args:
      model: says in which dtype each weight is kept, and whether as int8 (`model.quantized`).
      weights: by dotted path.
      shardings: a tree like the model's; None: the default device. A process reads what its own devices hold, once, and
        has one device's part of a weight in memory.
    """
    placement = flatten(shardings) if shardings is not None else {}
    params = {}
    for path, like in flatten(model.abstract).items():
        if path in placement:
            params[path] = _place(weights[path], like, placement[path])
        else:
            params[path] = jax.device_put(read(weights[path], (), like))
    return traverse_util.unflatten_dict(params, sep=".")


def _place(weight: Weight, like: Any, placement: Any) -> Any:
    cut = placement.values if isinstance(placement, Int8Weight) else placement
    parts = cut.addressable_devices_indices_map(weight.shape).items()
    spans = {device: tuple((part.start, part.stop) for part in index or ()) for device, index in parts}
    arrays, block, held = [], None, None
    # Those that hold the same, one after another. `None`, all of an axis, compares with no number.
    for device, span in sorted(spans.items(), key=lambda item: str(item[1])):
        if block is None or span != held:
            block, held = read(weight, tuple(slice(*ends) for ends in span), like), span
        arrays.append(jax.block_until_ready(jax.device_put(block, device)))

    def whole(like: Any, placement: jax.sharding.Sharding, *parts: jax.Array) -> jax.Array:
        return jax.make_array_from_single_device_arrays(like.shape, placement, parts)

    return jax.tree.map(whole, like, placement, *arrays)
