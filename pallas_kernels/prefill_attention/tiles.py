"""How a call of prefill attention is cut on a TPU: tiles, which of them meet, and the list of grid steps.

All is static but where documents begin. A grid step takes a tile of queries (of all heads that share the keys) and a
tile of keys; inside it a loop goes over blocks of `key_block` keys, which alone decide the order of additions. Where a
block needs masks and bias, it meets `tokens` queries at a time.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int

LANES = 128
# Queries of an inner tile, of each head: enough to keep the matrix units at work while others wait.
TOKENS = 256
# Keys that are added up at once, where the caller doesn't say.
KEY_BLOCK = 256
# Queries and keys of a step, at most.
QUERY_TILE, KEY_TILE = 512, 2048


def round_up(x: int, multiple: int) -> int:
    """The next multiple of a number."""
    return -(-x // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How a call is cut; all of it static.

    Attributes:
      queries: query heads of a kv head. rank, extent: of the profiles. window, sinks: what a query sees.
      tokens, key_block: of an inner tile. query_tile, key_tile: of a grid step, multiples of these.
      query_length, key_length: queries and keys, rounded up to whole tiles.
      before: the position of the first query: keys that all queries come after.
    """

    queries: int
    rank: int
    extent: int
    window: int
    sinks: int
    tokens: int
    key_block: int
    query_tile: int
    key_tile: int
    query_length: int
    key_length: int
    before: int

    @classmethod
    def of(
        cls,
        t: int,
        queries: int,
        rank: int,
        extent: int,
        window: int,
        sinks: int,
        key_block: int | None,
        keys: int,
        before: int,
    ) -> "Tiling":
        """The cut of `t` queries from position `before` on, and `keys` keys from zero on."""
        key_block = key_block or KEY_BLOCK
        query_tile = min(round_up(t, TOKENS), max(QUERY_TILE, TOKENS))
        reach = round_up(max(window, sinks), key_block)  # a shorter window is not worth a longer tile
        key_tile = min(round_up(keys, key_block), reach, max(KEY_TILE // key_block * key_block, key_block))
        return cls(
            queries, rank, extent, window, sinks, TOKENS, key_block, query_tile, key_tile,
            round_up(t, query_tile), round_up(keys, key_tile), before,
        )  # fmt: skip

    @property
    def rows(self) -> int:
        """Rows of an inner tile."""
        return self.queries * self.tokens

    @property
    def lanes(self) -> int:
        """Distances in an inner tile, rounded up."""
        return round_up(self.tokens + self.key_block - 1, LANES)

    @property
    def farthest(self) -> int:
        """The distance in lane 0 of the reversed profiles; from here on, an inner tile's bias is zero."""
        return round_up(self.extent + self.key_block, LANES) + self.tokens - 1

    @property
    def reach(self) -> int:
        """Distances of the profiles, rounded up: the forward kernel's bias reaches so far."""
        return round_up(self.extent, LANES)

    @property
    def bias_lanes(self) -> int:
        """Of an inner tile in the forward kernel: a block of zeros, `reach`, its tokens, and what a block overhangs."""
        more = 0 if self.tokens % self.key_block == 0 else self.key_block
        return self.key_block + self.reach + self.tokens + more

    @property
    def profile_lanes(self) -> int:
        """Lanes of the reversed profiles."""
        return round_up(self.farthest + self.tokens + self.lanes, LANES)

    def profile_lane(self, first_query: Any, first_key: Any) -> Any:
        """The lane at the distance of an inner tile's last query from its first key."""
        return jnp.maximum(self.farthest - (self.tokens - 1) - (first_query - first_key), 0)

    def meets(self, query: Any, queries: int, key: Any, keys: int, documents: tuple[Any, Any]) -> Any:
        """Whether one of `queries` queries from `query` on may see one of `keys` keys from `key` on.

        `documents` are the first and last of the positions where their documents begin.
        """
        near = query - (key + keys - 1) < self.window
        sink = key - documents[1] < self.sinks
        return (key <= query + queries - 1) & (key + keys > documents[0]) & (near | sink)

    def whole(self, query: Any, queries: int, key: Any, keys: int, documents: tuple[Any, Any], distance: int) -> Any:
        """Whether all of the queries see all of the keys, from this distance at least."""
        near = query + queries - 1 - key < self.window
        sink = key + keys - 1 - documents[0] < self.sinks
        return (query - (key + keys - 1) >= distance) & (key >= documents[1]) & (near | sink)


def reversed_profiles(profiles: Array, tiling: Tiling) -> Array:
    """[R, profile_lanes]: the profile at distance `farthest` first, zero outside the extent."""
    before = tiling.farthest - tiling.extent + 1
    after = tiling.profile_lanes - before - tiling.extent
    return jnp.pad(profiles[:, ::-1], ((0, 0), (before, after)))


def unreversed_profiles(x: Array, tiling: Tiling) -> Array:
    """The transpose of `reversed_profiles`."""
    before = tiling.farthest - tiling.extent + 1
    return x[..., before : before + tiling.extent][..., ::-1]


def document_bounds(document_start: Int[Array, "b t"] | None, tiling: Tiling) -> Int[Array, "b 2 tiles"]:
    """First and last beginning of the documents of each inner tile's queries."""
    tiles = tiling.query_length // tiling.tokens
    if document_start is None:
        return jnp.zeros((1, 2, tiles), jnp.int32)
    x = document_start.reshape(-1, tiles, tiling.tokens)
    return jnp.stack([x.min(axis=-1), x.max(axis=-1)], axis=1)


def steps(bounds: Int[Array, "b 2 tiles"], tiling: Tiling, documents: bool) -> tuple[np.ndarray, Array]:
    """The steps of each sequence and kv head, in order: tiles of queries, within these tiles of keys.

    Returns:
      int32 [2, S], the query tile and key tile of each step; every query tile has one.
      int32 [B, S], the key tile to have in memory: a step whose queries see none of its keys keeps the last one's.
    """
    query = tiling.before + np.arange(tiling.query_length // tiling.query_tile)[:, None] * tiling.query_tile
    key = np.arange(tiling.key_length // tiling.key_tile)[None, :] * tiling.key_tile
    last_start = query + tiling.query_tile - 1 if documents else 0
    possible = tiling.meets(query, tiling.query_tile, key, tiling.key_tile, (0, last_start))
    pairs = np.stack(np.nonzero(possible)).astype(np.int32)
    inner = tiling.query_tile // tiling.tokens
    of_tile = bounds.reshape(bounds.shape[0], 2, -1, inner)
    first, last = of_tile[:, 0].min(axis=-1)[:, pairs[0]], of_tile[:, 1].max(axis=-1)[:, pairs[0]]
    query, key = tiling.before + pairs[0] * tiling.query_tile, pairs[1] * tiling.key_tile
    meets = tiling.meets(query, tiling.query_tile, key, tiling.key_tile, (first, last))
    latest = lax.cummax(jnp.where(meets, np.arange(pairs.shape[1]), 0).astype(jnp.int32), axis=1)
    return pairs, jnp.asarray(pairs[1])[latest]
