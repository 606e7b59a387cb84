"""The caches in HBM and the key blocks of them that are in VMEM: reading, placing new tokens, writing back."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from pallas_kernels.streaming_attention.tiling import VECTOR_ROWS, Tiling
from pallas_kernels.streaming_attention.walk import LANE_UNIT, ROW_UNIT, Walk, units

# (source, target), each a function of a slice of rows, or of lanes for scales, that gives a reference.
Pairs = list[tuple[Any, Any]]


def _copy(pairs: Pairs, sem: Any, unit: int, at: Any, to: Any, size: int) -> list[Any]:
    align = max(unit, min(size, VECTOR_ROWS))
    at, to = pl.ds(pl.multiple_of(at, align), size), pl.ds(pl.multiple_of(to, align), size)
    return [pltpu.make_async_copy(source(at), target(to), sem) for source, target in pairs]


def _start(pairs: Pairs, sem: Any, unit: int, limit: int, span: tuple[Any, Any], at: Any, to: Any) -> None:
    """Starts copies of rows [first, first + size) of a block of `limit` rows, both multiples of `unit`.

    They go in pieces of static sizes, each aligned to its size: ever larger ones, then ever smaller ones.

    Args:
      at, to: what lies between a row's number and its row in the source, and in the target.
    """
    row, last = span[0], span[0] + span[1]
    sizes = [unit << i for i in range((limit // unit).bit_length())]

    def piece(here: Any, row: Any, size: int) -> Any:
        @pl.when(here)
        def _() -> None:
            for copy in _copy(pairs, sem, unit, row + at, row + to, size):
                copy.start()

        return jnp.where(here, row + size, row)

    for size in sizes[:-1]:
        row = piece(((row & size) != 0) & (row + size <= last), row, size)
    for size in sizes[::-1]:
        row = piece(row + size <= last, row, size)


def _wait(pairs: Pairs, sem: Any, unit: int, limit: int, size: Any) -> None:
    """Waits for as many rows as were started; a semaphore counts bytes, whatever the pieces were."""
    for piece in [unit << i for i in range((limit // unit).bit_length())]:

        @pl.when((size & piece) != 0)
        def _(piece: int = piece) -> None:
            for copy in _copy(pairs, sem, unit, 0, 0, piece):
                copy.wait()


@dataclasses.dataclass(frozen=True)
class CacheWindow:
    """The kernel's view of the caches in HBM, and its buffers.

    Attributes:
      first_head: of this core.
      caches: k, v [N, G, C, K] and, for int8, their scales [N, G, 1, C], in HBM.
      buffers: per cache [2, heads, key_block, K] or [2, heads, 1, key_block]: key blocks.
      staged: per cache [2, heads, new_rows, K] or [2, heads, 1, key_block]: rows on their way back.
      written: SMEM [2, 2], rows and lanes that are on their way back, by staging buffer.
      read_sems, write_sems: DMA [2].
    """

    tiling: Tiling
    first_head: Any
    caches: tuple[Any, ...]
    buffers: tuple[Any, ...]
    staged: tuple[Any, ...]
    written: Any
    read_sems: Any
    write_sems: Any

    def _planes(self, inner: tuple[Any, ...], slot: Any, row: Any, *, back: bool) -> list[tuple[Pairs, int]]:
        """What is copied by rows, and for int8 what is copied by lanes, and the unit of each."""
        heads = pl.ds(self.first_head, self.tiling.heads)
        rows: list[Any] = []
        lanes: list[Any] = []
        for cache, buffer in zip(self.caches, inner, strict=True):
            is_scale = cache.shape[2] == 1

            def outside(s: Any, cache: Any = cache, is_scale: bool = is_scale) -> Any:
                return cache.at[row, heads, :, s] if is_scale else cache.at[row, heads, s]

            def inside(s: Any, buffer: Any = buffer, is_scale: bool = is_scale) -> Any:
                return buffer.at[slot, :, :, s] if is_scale else buffer.at[slot, :, s]

            (lanes if is_scale else rows).append((inside, outside) if back else (outside, inside))
        return [(rows, ROW_UNIT)] + ([(lanes, min(LANE_UNIT, self.tiling.key_block))] if lanes else [])

    def read(self, row: Any, walk: Walk, step: Any, slot: Any, *, wait: bool) -> None:
        """Starts, or waits for, the live rows of a step's block."""
        position = walk.position(step)
        base, limit, sem = walk.slot(position), self.tiling.key_block, self.read_sems.at[slot]
        for pairs, unit in self._planes(self.buffers, slot, row, back=False):
            span = units(*walk.live(position), unit)
            if wait:
                _wait(pairs, sem, unit, limit, span[1])
            else:
                _start(pairs, sem, unit, limit, span, base, 0)

    def write(self, row: Any, walk: Walk, position: Any, slot: Any, staged_row: Any) -> None:
        """Starts writing back the units that the new tokens touch; staged rows begin at `staged_row`, lanes at 0."""
        base, sem = walk.slot(position), self.write_sems.at[slot]
        for i, (pairs, unit) in enumerate(self._planes(self.staged, slot, row, back=True)):
            span = units(*walk.new(position), unit)
            _start(pairs, sem, unit, self._most_written(unit), span, 0 if i else -staged_row, base)
            self.written[slot, i] = span[1]

    def _most_written(self, unit: int) -> int:
        """Rows of whole units that the new tokens can touch in a block."""
        tokens = self.tiling.tiles * self.tiling.tokens
        return min((tokens + 2 * unit - 2) // unit * unit, self.tiling.key_block)

    def wait_written(self, slot: Any) -> None:
        """Waits until a staging buffer is free."""
        for i, (pairs, unit) in enumerate(self._planes(self.staged, slot, 0, back=True)):
            _wait(pairs, self.write_sems.at[slot], unit, self._most_written(unit), self.written[slot, i])
            self.written[slot, i] = 0


def place(memory: CacheWindow, new: tuple[Any, ...], walk: Walk, position: Any, slot: Any, stage: Any) -> Any:
    """Puts the new tokens into their rows of a block and of a staging buffer; returns the row where that begins."""
    tiling = memory.tiling
    offset = walk.start - position  # of the first new token's row; negative in the second block
    first, last = walk.new(position)
    row = pl.multiple_of(
        jnp.minimum(first // VECTOR_ROWS * VECTOR_ROWS, tiling.key_block - tiling.new_rows),
        min(VECTOR_ROWS, tiling.new_rows),
    )
    for cache, buffer, staged in zip(new, memory.buffers, memory.staged, strict=True):
        for head in range(tiling.heads):
            x = cache[0, head]
            if x.shape[0] == 1:  # scales: token t is in lane t
                at = lax.broadcasted_iota(jnp.int32, x.shape, 1)
                rolled = pltpu.roll(x, offset % tiling.key_block, 1)
                merged = jnp.where((at >= first) & (at < last), rolled, buffer[slot, head])
                buffer[slot, head] = staged[stage, head] = merged
                continue
            dtype = jnp.float32 if x.dtype == jnp.float32 else jnp.bfloat16  # int8 is exact in bfloat16
            token = lax.broadcasted_iota(jnp.int32, x.shape, 0)
            x = jnp.where(token < walk.count, x.astype(jnp.float32), 0).astype(dtype)
            shape = (tiling.new_rows, x.shape[0])
            is_token = lax.broadcasted_iota(jnp.int32, shape, 0) + (row - offset)
            shift = (is_token == lax.broadcasted_iota(jnp.int32, shape, 1)).astype(jnp.float32).astype(dtype)
            moved = dot(shift, x)
            at = lax.broadcasted_iota(jnp.int32, moved.shape, 0) + row
            rows = pl.ds(row, tiling.new_rows)
            old = buffer[slot, head, rows].astype(jnp.float32)
            merged = jnp.where((at >= first) & (at < last), moved, old).astype(buffer.dtype)
            buffer[slot, head, rows] = staged[stage, head] = merged
    return row


def only(values: list[Array], first: Any, last: Any) -> list[Array]:
    """[key_block, K] of each head, zero but for rows [first, last): a weight of zero would not stop a NaN.

    In words of 32 bits, each of which holds one row, or two of bfloat16.
    """
    words = [pltpu.bitcast(v, jnp.int32) for v in values]
    rows = values[0].shape[0] // words[0].shape[0]
    row = lax.broadcasted_iota(jnp.int32, words[0].shape, 0) * rows
    keep = jnp.zeros(row.shape, jnp.int32)
    for i in range(rows):
        bits = jnp.int32(-1) if rows == 1 else jnp.int32((0xFFFF, -0x10000)[i])
        keep |= jnp.where((row + i >= first) & (row + i < last), bits, 0)
    return [pltpu.bitcast(word & keep, v.dtype) for word, v in zip(words, values, strict=True)]


def dot(a: Array, b: Array, *, transposed: bool = False) -> Array:
    """A product summed in float32, of float32 in full."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    contract = (((1,), (1 if transposed else 0,)), ((), ()))
    return lax.dot_general(a, b, contract, precision=precision, preferred_element_type=jnp.float32)
