"""How a call of streaming attention is cut on a TPU: static shapes only, never how much of them is live."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from pallas_kernels.streaming_attention.walk import Walk

LANES = 128
# Packed rows of the narrowest dtype: where a vector load may begin.
VECTOR_ROWS = 32


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How a call is cut; all of it static.

    Attributes:
      heads: kv heads of a core. queries: query heads of a kv head.
      tokens: of a query tile, a power of two. tiles: of a session. rows: of a tile, heads and tokens together.
      key_block: keys of a block. new_rows: rows of a block that are rewritten together to place new tokens.
      window, sinks, ring: of the cache. extent: of the profiles.
    """

    heads: int
    queries: int
    tokens: int
    tiles: int
    key_block: int
    new_rows: int
    window: int
    sinks: int
    ring: int
    extent: int

    @classmethod
    def of(cls, t: int, heads: int, queries: int, key_block: int, **cache: int) -> "Tiling":
        """For blocks of t tokens; `cache`: window, sinks, ring and extent."""
        tokens = 1 if t == 1 else 8 if t <= 8 else 16
        new_rows = min(round_up(t + VECTOR_ROWS - 1, VECTOR_ROWS), key_block)
        return cls(heads, queries, tokens, -(-t // tokens), key_block, new_rows, **cache)

    @property
    def rows(self) -> int:
        """Rows of a query tile: its heads, and for each its tokens."""
        return round_up(self.queries * self.tokens, 8)

    @property
    def lanes(self) -> int:
        """The distances between a tile and a block, rounded up."""
        return round_up(self.key_block + self.tokens - 1, LANES)

    @property
    def farthest(self) -> int:
        """A distance of a tile's last token from a block's first key at which every bias is zero."""
        return self.extent + self.key_block + self.tokens - 2

    @property
    def profile_lanes(self) -> int:
        """Lanes of the reversed profiles: windows of them begin at any distance that occurs."""
        return round_up(self.farthest + self.tiles * self.tokens + self.lanes + 2 * LANES, LANES)

    def walk(self, start: Any, count: Any) -> Walk:
        """The walk of a session."""
        return Walk(self.window, self.sinks, self.ring, self.key_block, start, count)

    def vmem_bytes(self, head_dim: int, rank: int, dtype: Any, cache_dtype: Any) -> int:
        """VMEM of the kernel: what comes and goes by the pipeline twice, the key blocks, the softmax, the scores."""
        itemsize, cache_itemsize = jnp.dtype(dtype).itemsize, jnp.dtype(cache_dtype).itemsize
        wide, new = round_up(head_dim, LANES), round_up(self.tiles * self.tokens, VECTOR_ROWS)
        query_rows = self.heads * self.tiles * round_up(self.rows, 16)
        piped = (
            query_rows * (2 * wide + round_up(rank, LANES)) * itemsize + 2 * self.heads * new * wide * cache_itemsize
        )
        piped += round_up(rank, 8) * self.profile_lanes * 4
        blocks = 2 * self.heads * (self.key_block + self.new_rows) * wide * cache_itemsize
        scales = 4 * 8 * self.heads * self.key_block * 4 if cache_dtype == jnp.int8 else 0
        softmax = query_rows * (wide + 2 * LANES) * 4
        scores = self.heads * (self.rows * (4 * self.lanes + wide) + 2 * self.key_block * wide) * 4
        return 2 * (piped + blocks + scales) + softmax + scores


def round_up(x: int, multiple: int) -> int:
    """To a multiple."""
    return -(-x // multiple) * multiple
