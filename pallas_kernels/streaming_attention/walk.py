"""The key blocks that a session's new tokens visit: the bounds of the kernel's loops, and the bytes that follow.

Keys are added up in blocks of `key_block` positions counted from position zero. As sinks and ring are multiples of
it, a block of positions is a block of slots. The blocks come in rising order: first those of the sinks, then those
from the window's oldest key to the newest token. The same arithmetic runs on the kernel's scalars and on arrays.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

# Rows of a cache cross HBM in units of this many: an HBM tile of bfloat16, whole 32-bit words of int8.
ROW_UNIT = 8
# Scales of an int8 cache lie along lanes.
LANE_UNIT = 128


@dataclasses.dataclass(frozen=True)
class Walk:
    """One session's walk.

    Attributes:
      window, sinks, ring, key_block: static.
      start, count: the position of the first new token, and how many there are; int32, of one shape.
    """

    window: int
    sinks: int
    ring: int
    key_block: int
    start: Any
    count: Any

    @property
    def end(self) -> Any:
        """The position after the last new token."""
        return self.start + self.count

    @property
    def low(self) -> Any:
        """The oldest position that is visible for being in a window."""
        return jnp.maximum(self.start - (self.window - 1), self.sinks)

    @property
    def sink_steps(self) -> Any:
        """How many of the steps are blocks of sinks."""
        return jnp.minimum(self.sinks // self.key_block, (self.end + self.key_block - 1) // self.key_block)

    @property
    def steps(self) -> Any:
        """How many blocks are visited; none without new tokens."""
        window_steps = (self.end - 1) // self.key_block - self.low // self.key_block + 1
        return jnp.where(self.count > 0, self.sink_steps + jnp.maximum(window_steps, 0), 0)

    def position(self, step: Any) -> Any:
        """The first position of a step's block."""
        block = jnp.where(step < self.sink_steps, step, self.low // self.key_block + step - self.sink_steps)
        return block * self.key_block

    def slot(self, position: Any) -> Any:
        """The slot of a block's first position."""
        return jnp.where(position < self.sinks, position, self.sinks + (position - self.sinks) % self.ring)

    def live(self, position: Any) -> tuple[Any, Any]:
        """The rows [first, last) of a block that some new token sees."""
        first = jnp.where(position < self.sinks, 0, jnp.clip(self.low - position, 0, self.key_block))
        return first, jnp.clip(self.end - position, 0, self.key_block)

    def new(self, position: Any) -> tuple[Any, Any]:
        """The rows [first, last) of a block that the new tokens take; last <= first: none."""
        return jnp.maximum(self.start - position, 0), jnp.clip(self.end - position, 0, self.key_block)


def units(first: Any, last: Any, unit: int) -> tuple[Any, Any]:
    """Rows [first, last) rounded outwards to whole units, as their first row and their number."""
    low = first // unit * unit
    return low, jnp.where(last > first, (last + unit - 1) // unit * unit - low, 0)


@dataclasses.dataclass(frozen=True)
class CacheBytes:
    """Bytes of the cache.

    Attributes:
      live: of the keys and values (and scales) that some new token sees.
      read, written: across HBM by the kernel.
    """

    live: int
    read: int
    written: int


def hbm_bytes(
    start: Int[np.ndarray, " b"],
    count: Int[np.ndarray, " b"],
    *,
    window: int,
    sinks: int,
    ring: int,
    key_block: int,
    kv_heads: int,
    head_dim: int,
    itemsize: int,
) -> CacheBytes:
    """What the TPU kernel moves for these sessions, by its own loop bounds; itemsize 1 is an int8 cache."""
    start, count = (np.asarray(x, np.int32)[:, None] for x in (start, count))
    walk = Walk(window, sinks, ring, key_block, start, count)
    step = np.arange(int(np.max(walk.steps, initial=0)))[None, :]
    position = walk.position(step)
    lane_unit = min(LANE_UNIT, key_block)

    def total(bounds: tuple[Any, Any]) -> int:
        """Bytes of rows [first, last) of every block that is visited, in whole units."""
        rows, lanes = (
            int(np.sum(np.where(step < walk.steps, units(*bounds, unit)[1], 0), dtype=np.int64))
            for unit in (ROW_UNIT, lane_unit)
        )
        return 2 * kv_heads * (rows * head_dim * itemsize + (4 * lanes if itemsize == 1 else 0))

    seen = np.minimum(sinks, walk.end) + np.maximum(walk.end - walk.low, 0)
    seen = int(np.sum(np.where(count > 0, seen, 0), dtype=np.int64))
    live = 2 * kv_heads * seen * (head_dim * itemsize + (4 if itemsize == 1 else 0))
    return CacheBytes(live, total(walk.live(position)), total(walk.new(position)))
