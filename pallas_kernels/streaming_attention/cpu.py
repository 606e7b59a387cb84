"""Streaming attention on a CPU or a GPU: a scatter of the new tokens, then all slots at once, or blocks in order."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.block_attention import attend_blocks
from pallas_kernels.streaming_attention.cache import KVCache, encode, positions_of, slots_of
from pallas_kernels.streaming_attention.walk import Walk

MASKED = -1e30


def streaming_attention(
    q: Float[Array, "b t h k"],
    k: Float[Array, "b t g k"],
    v: Float[Array, "b t g k"],
    r: Float[Array, "b t h r"],
    profiles: Float[Array, "r e"],
    cache: KVCache,
    start: Int[Array, " b"],
    count: Int[Array, " b"],
    layer: Int[Array, ""] | None,
    *,
    window: int,
    sinks: int,
    key_block: int | None,
) -> tuple[Float[Array, "b t h k"], KVCache]:
    """See `api.streaming_attention`."""
    cache = _write(cache, k, v, start, count, layer, sinks)
    one = cache if layer is None else jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, layer, 0, False), cache)
    b, t, h, dim = q.shape
    g = k.shape[2]
    if key_block is not None:
        y = _in_order(q, r, profiles, one, Walk(window, sinks, one.capacity - sinks, key_block, start, count))
    else:
        # Rows (query head, token) of each kv head.
        q, r = (x.reshape(b, t, g, h // g, -1).transpose(0, 2, 3, 1, 4).reshape(b, g, h // g * t, -1) for x in (q, r))
        y = _dense(q, r, profiles, one, start, count, t, window, sinks)
        y = y.reshape(b, g, h // g, t, dim).transpose(0, 3, 1, 2, 4).reshape(b, t, h, dim).astype(q.dtype)
    return jnp.where((jnp.arange(t) < count[:, None])[:, :, None, None], y, 0), cache


def _in_order(q: Array, r: Array, profiles: Array, cache: KVCache, walk: Walk) -> Array:
    """Blocks of keys in rising order; a step that a session doesn't have is a block that nothing sees."""
    step = jnp.arange((walk.sinks + walk.ring) // walk.key_block + 1)
    per_session = Walk(walk.window, walk.sinks, walk.ring, walk.key_block, walk.start[:, None], walk.count[:, None])
    position = per_session.position(step)
    at = per_session.slot(position) // walk.key_block
    never = jnp.iinfo(jnp.int32).max - walk.key_block
    block_start = jnp.where(step < per_session.steps, position, never)

    def blocks(x: Array, scale: Array | None) -> Array:
        if scale is not None:
            x = x.astype(jnp.float32) * scale[:, :, 0, :, None]
        b, groups, capacity, dim = x.shape
        x = x.reshape(b, groups, capacity // walk.key_block, walk.key_block, dim).swapaxes(1, 2)
        return jnp.take_along_axis(x, at[:, :, None, None, None], axis=1).astype(q.dtype)

    k, v = blocks(cache.k, cache.k_scale), blocks(cache.v, cache.v_scale)
    return attend_blocks(
        q, r, profiles, k, v, block_start, walk.start, walk.end, None, window=walk.window, sinks=walk.sinks
    )


def _write(
    cache: KVCache,
    k: Float[Array, "b t g k"],
    v: Float[Array, "b t g k"],
    start: Int[Array, " b"],
    count: Int[Array, " b"],
    layer: Int[Array, ""] | None,
    sinks: int,
) -> KVCache:
    """Writes the real ones of the new tokens; other slots keep their bits."""
    new_k, new_v, scales = encode(cache, k, v)
    offsets = jnp.arange(k.shape[1])
    slots = slots_of(start[:, None] + offsets, sinks, cache.capacity - sinks)
    slots = jnp.where(offsets < count[:, None], slots, cache.capacity + offsets)  # out of range: dropped
    session = jnp.arange(k.shape[0])[:, None]
    before = (session,) if layer is None else (layer, session)

    def write(old: Array, new: Array, *, is_scale: bool) -> Array:
        """New [B, T, G, ...] by rows into old [B, G, C, K] or [B, G, 1, C]."""
        at = old.at[(*before, slice(None), 0, slots)] if is_scale else old.at[(*before, slice(None), slots)]
        return at.set(new, mode="drop", unique_indices=True)

    rows = [
        write(old, new.swapaxes(1, 2), is_scale=False)
        for old, new in zip(cache.arrays[:2], (new_k, new_v), strict=True)
    ]
    lanes = [
        write(old, new[:, :, 0].swapaxes(1, 2), is_scale=True)
        for old, new in zip(cache.arrays[2:], scales, strict=True)
    ]
    return KVCache(*rows, *lanes)


def _dense(
    q: Float[Array, "b g m k"],
    r: Float[Array, "b g m r"],
    profiles: Float[Array, "r e"],
    cache: KVCache,
    start: Int[Array, " b"],
    count: Int[Array, " b"],
    t: int,
    window: int,
    sinks: int,
) -> Float[Array, "b g m k"]:
    """All slots at once."""
    held = positions_of(start + count, sinks, cache.capacity - sinks)
    distance = (start[:, None] + jnp.arange(t))[:, :, None] - held[:, None, :]
    visible = (held >= 0)[:, None] & (distance >= 0) & ((distance < window) | (held < sinks)[:, None])
    seen = jnp.any(visible & (jnp.arange(t) < count[:, None])[:, :, None], axis=1)
    s, v, v_scale = _scores(q, r, profiles, cache, distance, seen)
    visible = visible[:, None, None]
    s = jnp.where(visible, s.reshape(*s.shape[:2], -1, t, s.shape[-1]), MASKED)
    p = jnp.where(visible, jnp.exp(s - jnp.max(s, axis=-1, keepdims=True)), 0)
    total = jnp.sum(p, axis=-1).reshape(*q.shape[:3], 1)
    p = p.reshape(*q.shape[:3], -1)
    p = p if v_scale is None else jnp.where(seen[:, None, None], p * v_scale, 0)
    return _values(p, v) / jnp.where(total == 0, 1, total)


def _scores(
    q: Float[Array, "b g m k"],
    r: Float[Array, "b g m r"],
    profiles: Float[Array, "r e"],
    cache: KVCache,
    distance: Int[Array, "b t s"],
    seen: Bool[Array, "b s"],
) -> tuple[Float[Array, "b g m s"], Float[Array, "b g s k"], Array | None]:
    """Scores of all keys in float32; the values, zero where nothing sees them (NaN may be there); their scales."""
    s = jnp.einsum("bgmk,bgsk->bgms", q, cache.k.astype(q.dtype), preferred_element_type=jnp.float32)
    if cache.k_scale is not None:
        s = s * cache.k_scale
    extent, t = profiles.shape[1], distance.shape[1]
    logits = jnp.einsum("bgmr,re->bgme", r, profiles.astype(r.dtype), preferred_element_type=jnp.float32)
    logits = logits.reshape(*logits.shape[:2], -1, t, extent)
    index = jnp.clip(distance, 0, extent - 1)[:, None, None]
    bias = jnp.where((distance < extent)[:, None, None], jnp.take_along_axis(logits, index, axis=-1), 0)
    v = jnp.where(seen[:, None, :, None], cache.v.astype(q.dtype), 0)
    return s + bias.reshape(s.shape), v, cache.v_scale


def _values(p: Float[Array, "b g m s"], v: Float[Array, "b g s k"]) -> Float[Array, "b g m k"]:
    return jnp.einsum("bgms,bgsk->bgmk", p.astype(v.dtype), v, preferred_element_type=jnp.float32)
