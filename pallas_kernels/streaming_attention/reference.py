"""The oracle, in plain jnp: every slot's position is worked out, and the softmax is dense."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.streaming_attention.cache import KVCache, positions_of, quantize, slots_of


def streaming_attention(
    q: Float[Array, "b t h k"],
    k: Float[Array, "b t g k"],
    v: Float[Array, "b t g k"],
    r: Float[Array, "b t h r"],
    profiles: Float[Array, "r e"],
    cache: KVCache,
    start: Int[Array, " b"],
    count: Int[Array, " b"],
    layer: Int[Array, ""] | None = None,
    *,
    window: int,
    sinks: int,
    key_block: int | None = None,
) -> tuple[Float[Array, "b t h k"], KVCache]:
    """See `api.streaming_attention`; `key_block` has no part in it."""
    ring = cache.capacity - sinks
    new: tuple[Array, ...] = (k, v)
    if cache.k_scale is not None:
        (k, k_scale), (v, v_scale) = quantize(k), quantize(v)
        new = (k, v, k_scale[..., None], v_scale[..., None])
    token_slots = slots_of(start[:, None] + jnp.arange(q.shape[1]), sinks, ring)
    is_real = jnp.arange(q.shape[1]) < count[:, None]
    # [B, C]: which new token a slot gets.
    writes = (token_slots[:, :, None] == jnp.arange(cache.capacity)) & is_real[:, :, None]
    token, is_new = jnp.argmax(writes, axis=1), jnp.any(writes, axis=1)

    def write(old: Array, x: Array) -> Array:
        """Old [B, G, C, K], x [B, T, G, K]."""
        x = jnp.take_along_axis(x, token[:, :, None, None], axis=1).transpose(0, 2, 1, 3)
        return jnp.where(is_new[:, None, :, None], x.astype(old.dtype), old)

    one = cache if layer is None else jax.tree.map(lambda x: x[layer], cache)
    rows_first = [*one.arrays[:2], *(x.swapaxes(2, 3) for x in one.arrays[2:])]
    written = [write(old, x) for old, x in zip(rows_first, new, strict=True)]
    keys, values = (x.astype(jnp.float32) for x in written[:2])
    if len(written) == 4:
        keys, values = keys * written[2], values * written[3]
        written[2:] = [x.swapaxes(2, 3) for x in written[2:]]
    held = positions_of(start + count, sinks, ring)
    y = jax.vmap(_attend, in_axes=(0, 0, None, 0, 0, 0, 0, 0, None, None))(
        q, r, profiles, keys, values, held, start, count, window, sinks
    )
    if layer is not None:
        written = [old.at[layer].set(x) for old, x in zip(cache.arrays, written, strict=True)]
    return y.astype(q.dtype), KVCache(*written)


def _attend(
    q: Float[Array, "t h k"],
    r: Float[Array, "t h r"],
    profiles: Float[Array, "r e"],
    keys: Float[Array, "g c k"],
    values: Float[Array, "g c k"],
    held: Int[Array, " c"],
    start: Int[Array, ""],
    count: Int[Array, ""],
    window: int,
    sinks: int,
) -> Float[Array, "t h k"]:
    """One session, in float32."""
    t, h, _ = q.shape
    extent = profiles.shape[1]
    distance = start + jnp.arange(t)[:, None] - held
    visible = (held >= 0) & (distance >= 0) & ((distance < window) | (held < sinks))
    visible &= (jnp.arange(t) < count)[:, None]
    profile = profiles.astype(jnp.float32)[:, jnp.clip(distance, 0, extent - 1)]
    profile = jnp.where((distance >= 0) & (distance < extent), profile, 0)
    group = jnp.arange(h) // (h // keys.shape[0])
    keys, values = keys[group], jnp.where(jnp.any(visible, axis=0)[:, None], values[group], 0)
    high = jax.lax.Precision.HIGHEST
    scores = jnp.einsum("thk,hck->thc", q.astype(jnp.float32), keys, precision=high)
    scores += jnp.einsum("thr,rtc->thc", r.astype(jnp.float32), profile, precision=high)
    scores = jnp.where(visible[:, None], scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1)
    y = jnp.einsum("thc,hck->thk", weights, values, precision=high)
    return jnp.where((jnp.arange(t) < count)[:, None, None], y, 0)
