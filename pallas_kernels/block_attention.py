"""Attention on a CPU or a GPU in blocks of keys, added up in a fixed order: for whole sequences and live streams.

A compiler sums a row of a small product in another order than the same row of a large one. Here every product has
the same small shape, a tile of `QUERY_TILE` queries by a block of keys, whatever the number of sessions, queries and
keys, and an online softmax (Milakov & Gimelshein 2018, arXiv:1805.02867) walks the blocks in rising order. A block
that a query doesn't see changes none of its bits. So a token gets the same result in training and in a live stream,
alone and in company. It costs speed: `prefill_attention` and `streaming_attention` take it only for a `key_block`.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

QUERY_TILE = 16
_MASKED = -1e30


def attend_blocks(
    q: Float[Array, "b t h k"],
    r: Float[Array, "b t h r"],
    profiles: Float[Array, "r e"],
    k_blocks: Float[Array, "b n g s k"],
    v_blocks: Float[Array, "b n g s k"],
    block_start: Int[Array, "b n"],
    start: Int[Array, " b"],
    end: Int[Array, " b"],
    document_start: Int[Array, "b t"] | None,
    *,
    window: int,
    sinks: int,
) -> Float[Array, "b t h k"]:
    """Attends to blocks of keys.

    Args:
      q, r: [B, T, H, K] and [B, T, H, R], queries and relative states of T tokens, the first at `start` [B].
      profiles: [R, E], the bias of a distance.
      k_blocks, v_blocks: [B, N, G, S, K], blocks of S keys in rising order. block_start: int32 [B, N], the position
        of each block's first key. end: int32 [B]; keys from there on are not there, whatever the blocks hold.
      document_start: [B, T], where each query's document begins. None: at zero.
      window, sinks: a key is seen if it is nearer than `window`, or among a document's first `sinks`.

    Returns:
      [B, T, H, K]; a query that sees nothing gets zero.
    """
    b, t, h, dim = q.shape
    groups = k_blocks.shape[2]
    tiles = max(2, -(-t // QUERY_TILE))  # a loop that turns once would be dissolved into what is around it
    pad = tiles * QUERY_TILE - t
    document_start = jnp.zeros((b, t), jnp.int32) if document_start is None else document_start

    def split(x: Array) -> Array:
        """[B, T, H, X] -> [B, tiles, G, H / G, QUERY_TILE, X]."""
        x = jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0)))
        x = x.reshape(b, tiles, QUERY_TILE, groups, h // groups, -1)
        return x.transpose(0, 1, 3, 4, 2, 5)

    documents = jnp.pad(document_start, ((0, 0), (0, pad))).reshape(b, tiles, QUERY_TILE)
    first = start[:, None] + QUERY_TILE * jnp.arange(tiles)

    def session(args: tuple[Array, ...]) -> Array:
        *per_tile, k_blocks, v_blocks, block_start, end = args

        def tile(args: tuple[Array, ...]) -> Array:
            q, r, first, documents = args

            def block(carry: tuple[Array, Array, Array], xs: tuple[Array, Array, Array]) -> tuple:
                k, v, begin = xs
                bias, seen = _bias_and_mask(r, profiles, first, end, documents, begin, k.shape[1], window, sinks)
                return _add_block(carry, q, k, v, bias, seen), None

            shape = q.shape[:-1]
            empty = (jnp.full(shape, _MASKED), jnp.zeros(shape), jnp.zeros(q.shape))
            (_, total, y), _ = lax.scan(block, jax.tree.map(jnp.float32, empty), (k_blocks, v_blocks, block_start))
            return (y / jnp.where(total > 0, total, 1)[..., None]).astype(q.dtype)

        return lax.map(tile, tuple(per_tile))

    args = (split(q), split(r), first, documents, k_blocks, v_blocks, block_start, end)
    if b == 1:
        args = jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros_like(x)]), args)
    y = lax.map(session, args)[:b]
    return y.transpose(0, 1, 4, 2, 3, 5).reshape(b, tiles * QUERY_TILE, h, dim)[:, :t]


def _bias_and_mask(
    r: Array,
    profiles: Array,
    first: Array,
    end: Array,
    documents: Array,
    begin: Array,
    keys: int,
    window: int,
    sinks: int,
) -> tuple[Array, Array]:
    """The bias [G, J, tile, S] of a tile of queries at `first` and on, for keys at `begin` and on; who is seen."""
    queries = r.shape[-2]
    distance = first - begin + jnp.arange(queries)[:, None] - jnp.arange(keys)
    position = begin + jnp.arange(keys)
    since = position - documents[:, None]
    seen = (distance >= 0) & (position < end) & (since >= 0) & ((distance < window) | (since < sinks))
    return jnp.einsum("gjtr,rts->gjts", r, toeplitz(profiles, first - begin, queries, keys)), seen


def _add_block(
    carry: tuple[Array, Array, Array], q: Array, k: Array, v: Array, bias: Array, seen: Array
) -> tuple[Array, Array, Array]:
    """One step of the online softmax: largest score, sum of exponentials and weighted values so far, in float32."""
    largest, total, y = carry
    scores = jnp.einsum("gjtk,gsk->gjts", q, k).astype(jnp.float32) + bias.astype(jnp.float32)
    scores = jnp.where(seen, scores, _MASKED)
    new = jnp.maximum(largest, jnp.max(scores, axis=-1))
    p = jnp.where(seen, jnp.exp(scores - new[..., None]), 0)
    keep = jnp.exp(largest - new)
    v = jnp.where(jnp.any(seen, axis=0)[:, None], v, 0)  # zero times what an unused slot holds may be NaN
    added = jnp.einsum("gjts,gsk->gjtk", p.astype(v.dtype), v).astype(jnp.float32)
    return new, total * keep + jnp.sum(p, axis=-1), y * keep[..., None] + added


def toeplitz(profiles: Float[Array, "r e"], start: Array | int, t: int, s: int) -> Float[Array, "r t s"]:
    """The profiles at distance ``start + i - j`` of query i from key j, zero outside their extent.

    Made by tiling and reshaping one row: a gather's gradient would be a scatter.
    """
    rank, extent = profiles.shape
    padded = jnp.pad(profiles, ((0, 0), (t + s, t + s)))  # padded[n + t + s] is the profile at distance n
    start = jnp.clip(start, -t, extent + s - 1)  # before and after that, all is zero
    row = lax.dynamic_slice_in_dim(padded, start + 1 + t, t + s - 1, axis=1)[:, ::-1]
    # row[m] is at distance start + t - 1 - m; one longer than the row, each line of the reshape starts one later.
    lines = jnp.tile(row, (1, t + 1))[:, : t * (t + s)].reshape(rank, t, t + s)
    return lines[:, ::-1, :s]
