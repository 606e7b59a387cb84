"""Prefill attention on a CPU or a GPU: all keys at once, in as few large products as the window allows.

Short sequences are one product; long ones take `QUERY_CHUNK` queries at a time, so that no [T, T] array exists; a
window much shorter than the sequence goes in blocks of one window, each of which sees itself and the block before.
With a `key_block` the sums are made in the order of `block_attention` instead.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.block_attention import attend_blocks, toeplitz

QUERY_CHUNK = 512


def prefill_attention(
    q: Float[Array, "b t h k"],
    k: Float[Array, "b s g k"],
    v: Float[Array, "b s g k"],
    r: Float[Array, "b t h r"],
    profiles: Float[Array, "r e"],
    document_start: Int[Array, "b t"] | None,
    *,
    window: int,
    sinks: int,
    key_block: int | None,
) -> Float[Array, "b t h k"]:
    """See `api.prefill_attention`."""
    t = q.shape[1]
    if key_block is not None:
        return _in_order(q, k, v, r, profiles, document_start, window, sinks, key_block)
    if sinks == 0 and 2 * window < t:
        return _windows(q, k, v, r, profiles, document_start, window)
    if t <= QUERY_CHUNK:
        return _dense(q, k, v, r, profiles, document_start, k.shape[1] - t, window, sinks)
    return _chunks(q, k, v, r, profiles, document_start, window, sinks)


def _in_order(
    q: Array,
    k: Array,
    v: Array,
    r: Array,
    profiles: Array,
    document_start: Array | None,
    window: int,
    sinks: int,
    key_block: int,
) -> Array:
    b, t, groups, dim = k.shape  # its queries are the last of t positions
    blocks = -(-t // key_block)

    def split(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, blocks * key_block - t), (0, 0), (0, 0)))
        return x.reshape(b, blocks, key_block, groups, dim).swapaxes(2, 3)

    block_start = jnp.broadcast_to(key_block * jnp.arange(blocks, dtype=jnp.int32), (b, blocks))
    start, end = jnp.full((b,), t - q.shape[1], jnp.int32), jnp.full((b,), t, jnp.int32)
    return attend_blocks(
        q, r, profiles, split(k), split(v), block_start, start, end, document_start, window=window, sinks=sinks
    )


def _dense(
    q: Array,
    k: Array,
    v: Array,
    r: Array,
    profiles: Array,
    documents: Array | None,
    start: Array | int,
    window: int,
    sinks: int,
) -> Array:
    """Queries [B, T, H, K] at positions `start` and on, over all keys [B, S, G, K]."""
    position = jnp.arange(k.shape[1])
    distance = start + jnp.arange(q.shape[1])[:, None] - position
    first = jnp.zeros((1, 1), jnp.int32) if documents is None else documents
    since = position - first[:, :, None]
    visible = (distance >= 0) & (since >= 0) & ((distance < window) | (since < sinks))
    bias = jnp.einsum("bthr,rts->bhts", r, toeplitz(profiles, start, q.shape[1], k.shape[1]))
    return _softmax_attend(q, k, v, bias, visible)


def _chunks(
    q: Array, k: Array, v: Array, r: Array, profiles: Array, documents: Array | None, window: int, sinks: int
) -> Array:
    """As `_dense`, `QUERY_CHUNK` queries at a time, recomputed in the backward pass."""
    b, t = q.shape[:2]
    chunks, first = -(-t // QUERY_CHUNK), k.shape[1] - t

    @jax.checkpoint
    def one(args: tuple[Any, ...]) -> Array:
        q, r, documents, start = args
        return _dense(q, k, v, r, profiles, documents, start, window, sinks)

    def split(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, chunks * QUERY_CHUNK - t), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(b, chunks, QUERY_CHUNK, *x.shape[2:]), 1, 0)

    y = jax.lax.map(one, (*jax.tree.map(split, (q, r, documents)), first + QUERY_CHUNK * jnp.arange(chunks)))
    return jnp.moveaxis(y, 0, 1).reshape(b, chunks * QUERY_CHUNK, *q.shape[2:])[:, :t]


def _windows(q: Array, k: Array, v: Array, r: Array, profiles: Array, documents: Array | None, window: int) -> Array:
    """Blocks of one window: a block of queries sees its own block of keys and the one before."""
    b, t = q.shape[:2]
    blocks, before = -(-t // window), k.shape[1] - t

    def split(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % window), *((0, 0),) * (x.ndim - 2)))
        return x.reshape(b, -1, window, *x.shape[2:])

    def with_previous(x: Array) -> Array:
        x = jnp.pad(x[:, max(before - window, 0) :], ((0, 0), (max(window - before, 0), 0), (0, 0), (0, 0)))
        x = split(x)
        return jnp.concatenate([x[:, :-1], x[:, 1:]], axis=2)

    distance = window + jnp.arange(window)[:, None] - jnp.arange(2 * window)
    position = before + window * (jnp.arange(blocks)[:, None, None] - 1) + jnp.arange(2 * window)
    first = jnp.zeros((1, blocks, window), jnp.int32) if documents is None else split(documents)
    visible = (distance >= 0) & (distance < window) & (position >= first[..., None])
    bias = jnp.einsum("bnthr,rts->bnhts", split(r), toeplitz(profiles, window, window, 2 * window))
    y = jax.vmap(_softmax_attend, in_axes=1, out_axes=1)(split(q), with_previous(k), with_previous(v), bias, visible)
    return y.reshape(b, blocks * window, *q.shape[2:])[:, :t]


def _softmax_attend(
    q: Float[Array, "b t h k"],
    k: Float[Array, "b s g k"],
    v: Float[Array, "b s g k"],
    bias: Float[Array, "b h t s"],
    visible: Bool[Array, "..."],
) -> Float[Array, "b t h k"]:
    """Grouped-query attention; `visible` is [B or 1, T, S]; a query that sees nothing gets the mean of v."""
    b, t, h, dim = q.shape
    groups = k.shape[2]
    q = q.reshape(b, t, groups, h // groups, dim)
    scores = jnp.einsum("btgjk,bsgk->bgjts", q, k).reshape(b, h, t, -1) + bias
    scores = jnp.where(visible[:, None], scores.astype(jnp.float32), -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype).reshape(b, groups, h // groups, t, -1)
    return jnp.einsum("bgjts,bsgk->btgjk", weights, v).reshape(b, t, h, dim)
