"""Prefill attention in plain jnp: the oracle."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def prefill_attention(
    q: Float[Array, "b t h k"],
    k: Float[Array, "b s g k"],
    v: Float[Array, "b s g k"],
    r: Float[Array, "b t h r"],
    profiles: Float[Array, "r e"],
    document_start: Int[Array, "b t"] | None = None,
    *,
    window: int,
    sinks: int = 0,
    key_block: int | None = None,
) -> Float[Array, "b t h k"]:
    """See `api.prefill_attention`. The order of additions is not `key_block`'s."""
    del key_block
    extent, queries = profiles.shape[1], q.shape[2] // k.shape[2]
    key = jnp.arange(k.shape[1])
    query = key[-q.shape[1] :, None]
    distance = query - key
    start = jnp.zeros(q.shape[:2], jnp.int32) if document_start is None else document_start
    start = start[:, :, None]
    visible = (distance >= 0) & (key >= start) & ((distance < window) | (key - start < sinks))
    dtype = q.dtype
    q, k, v, r, profiles = (x.astype(jnp.float32) for x in (q, k, v, r, profiles))
    k, v = (jnp.repeat(x, queries, axis=2) for x in (k, v))
    scores = jnp.einsum("bthk,bshk->bhts", q, k, precision="highest")
    by_distance = jnp.einsum("bthr,re->bhte", r, profiles, precision="highest")
    bias = by_distance[:, :, jnp.arange(len(query))[:, None], jnp.clip(distance, 0, extent - 1)]
    scores += jnp.where((distance >= 0) & (distance < extent), bias, 0)
    weights = jax.nn.softmax(jnp.where(visible[:, None], scores, -1e30), axis=-1)
    weights = jnp.where(visible[:, None], weights, 0)
    return jnp.einsum("bhts,bshk->bthk", weights, v, precision="highest").astype(dtype)
