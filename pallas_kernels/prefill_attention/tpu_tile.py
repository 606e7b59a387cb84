"""What the kernels need of one inner tile: mask, loop, and for the backward one the relative bias.

The rows of an inner tile are [heads of a kv head, tokens]. The backward kernel's bias is one small matmul of the tile's
relative states with the window of the profiles that it needs, lane 0 the distance of the last token from the first key;
each token's row is then rolled to the left by its distance from the last token. The gradient's rows move back.
"""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from pallas_kernels.prefill_attention.tiles import LANES, Tiling

MASKED = -1e30


def dot(a: Array, b: Array, contract: tuple[int, int] = (1, 0)) -> Array:
    """A product in float32 over these axes; float32 is multiplied as float32."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    dims = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)


def column(row: Array) -> Array:
    """[1, N] as [N, LANES], the same in all lanes."""
    return jnp.transpose(jnp.broadcast_to(row, (LANES, row.shape[1])))


def wide(x: Array, width: int) -> Array:
    """[M, LANES], the same in all lanes, as [M, width]."""
    return x[:, :width] if width <= LANES else jnp.concatenate([x] * (width // LANES), axis=1)


def skew(x: Float[Array, "rows lanes"], tiling: Tiling) -> Float[Array, "rows key_block"]:
    """By distance to by key: token i's row moves ``tokens - 1 - i`` lanes to the left."""
    x = x.reshape(tiling.queries, tiling.tokens, tiling.lanes)
    x = pltpu.roll(x, tiling.lanes - (tiling.tokens - 1), 2, stride=1, stride_axis=1)
    return x[:, :, : tiling.key_block].reshape(tiling.rows, tiling.key_block)


def unskew(x: Float[Array, "rows key_block"], tiling: Tiling) -> Float[Array, "rows lanes"]:
    """By key to by distance, zero where there is no key: the transpose of `skew`.

    Rolls have no negative stride; so it is a gather inside each vector of lanes, and a choice between the vectors.
    """
    rows, vectors = x.shape[0], -(-x.shape[1] // LANES)
    if x.shape[1] % LANES:
        x = jnp.concatenate([x, jnp.zeros((rows, vectors * LANES - x.shape[1]), x.dtype)], axis=1)
    token = lax.broadcasted_iota(jnp.int32, (rows, LANES), 0) & (tiling.tokens - 1)
    source = lax.broadcasted_iota(jnp.int32, (rows, LANES), 1) + token - (tiling.tokens - 1)
    lane, vector = source & (LANES - 1), source >> (LANES.bit_length() - 1)
    gathered = [jnp.take_along_axis(x[:, i * LANES : (i + 1) * LANES], lane, axis=1) for i in range(vectors)]
    moved = []
    for to in range(tiling.lanes // LANES):
        y = jnp.zeros((rows, LANES), x.dtype)
        for i, vector_of_keys in enumerate(gathered):
            y = jnp.where(vector == i - to, vector_of_keys, y)
        moved.append(y)
    return jnp.concatenate(moved, axis=1)


def window(tiling: Tiling, query: Any, key: Any) -> Any:
    """The slice of the reversed profiles that the tile of this first query and first key needs."""
    lane = tiling.profile_lane(query, key)
    if tiling.tokens % LANES == 0 and tiling.key_block % LANES == 0:
        lane = pl.multiple_of(lane, LANES)
    return pl.ds(lane, tiling.lanes)


def visible(tiling: Tiling, query: Any, key: Any, start: Array | None) -> Array:
    """[rows, key_block]: which keys each row sees; `start` [rows, LANES] is where the rows' documents begin."""
    shape = (tiling.rows, tiling.key_block)
    token = lax.broadcasted_iota(jnp.int32, shape, 0) & (tiling.tokens - 1)
    at = lax.broadcasted_iota(jnp.int32, shape, 1)
    distance = token - at + (query - key)
    from_start = at + key if start is None else at + key - wide(start, tiling.key_block)
    seen = distance >= 0
    if tiling.window < tiling.query_length:
        near = distance < tiling.window
        seen = seen & (near | (from_start < tiling.sinks) if tiling.sinks else near)
    return seen if start is None else seen & (from_start >= 0)


@dataclasses.dataclass(frozen=True)
class Step:
    """Where a grid step is, and the loop over its inner tiles.

    Attributes:
      tiling: of the call. query, key: first positions of the step's tiles.
      bounds: SMEM [B, 2, tiles], first and last document beginnings. sequence: its row.
    """

    tiling: Tiling
    query: Any
    key: Any
    bounds: Any
    sequence: Any

    def each(self, near: Any, far: Any, distance: int) -> None:
        """Takes the key blocks in rising order: ``far(key)`` where all queries see it whole, from `distance` at least.

        Else ``near(row, key)`` with each inner tile's queries that see any; both are places inside the step.
        """
        tiling = self.tiling
        tiles = range(tiling.query_tile // tiling.tokens)
        first = (self.query - tiling.before) // tiling.tokens
        documents = [tuple(self.bounds[self.sequence, i, first + tile] for i in range(2)) for tile in tiles]
        earliest = functools.reduce(jnp.minimum, (d[0] for d in documents))
        latest = functools.reduce(jnp.maximum, (d[1] for d in documents))

        def block(j: Any, _: None) -> None:
            at = pl.multiple_of(j * tiling.key_block, tiling.key_block)
            keys = (self.key + at, tiling.key_block)
            whole = tiling.whole(self.query, tiling.query_tile, *keys, (earliest, latest), distance)

            @pl.when(whole)
            def _() -> None:
                far(at)

            def queries(i: Any, _: None) -> None:
                row = pl.multiple_of(i * tiling.tokens, tiling.tokens)
                starts = tuple(self.bounds[self.sequence, n, first + i] for n in range(2))

                @pl.when(tiling.meets(self.query + row, tiling.tokens, *keys, starts))
                def _() -> None:
                    near(row, at)

            lax.fori_loop(0, jnp.where(whole, 0, len(tiles)), queries, None)

        blocks = (self.query + tiling.query_tile - 1 - self.key) // tiling.key_block + 1
        lax.fori_loop(0, jnp.clip(blocks, 0, tiling.key_tile // tiling.key_block), block, None)
