"""Attention of a live session's new tokens, and the writing of its cache, in one op."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels import platform
from pallas_kernels.streaming_attention import cpu, reference, tpu
from pallas_kernels.streaming_attention.cache import KVCache


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
    """Writes each session's new tokens into its cache, then attends to it.

    The score of a query at position p and a key at position s is ``q . k + r . profiles[:, p - s]``, the second
    term only for p - s < E. A key is visible if ``s <= p and (p - s < window or s < sinks)``.
    Query head h uses kv head ``h // (H // G)``.

    Args:
      q: [B, T, H, K], normed and scaled. k, v: [B, T, G, K], the new tokens; k normed.
      r: [B, T, H, R], relative states, scaled. profiles: [R, E].
      cache: of capacity ``sinks + ring`` (see `cache.py`), ``ring >= window + T - 1``; donate it. An int8 cache gets
        its new tokens quantised, and they attend through their quantised values.
      start: int32 [B], the position of each session's first new token.
      count: int32 [B], how many of the T are real: these are written, and their rows depend on nothing else of the
        block. 0: an inactive session, nothing of which is read or written.
      layer: int32, which layer of caches [L, B, ...] to use; None: the caches are of one layer.
      window, sinks: see above.
      key_block: keys are added up in blocks of this many positions from position zero, in rising order, so that a
        token's bits depend on neither the tokens that came with it nor on how the cache lies. It divides sinks and
        ring, and ``T <= key_block <= ring / 2``. None: all slots at once, in plain jnp, on a TPU too.

    Returns:
      [B, T, H, K] of q's dtype, rows past count zero; the cache with the new tokens.

    Raises:
      ValueError: shapes, dtypes or sizes do not fit.
    """
    _check(q, k, v, r, profiles, cache, start, count, layer, window, sinks, key_block)
    kernel = cpu if key_block is None else tpu
    module = {"gpu": cpu, "cpu": cpu, "reference": reference}.get(platform.implementation(), kernel)
    return module.streaming_attention(
        q, k, v, r, profiles, cache, start, count, layer, window=window, sinks=sinks, key_block=key_block
    )


def _check(
    q: Array,
    k: Array,
    v: Array,
    r: Array,
    profiles: Array,
    cache: KVCache,
    start: Array,
    count: Array,
    layer: Array | None,
    window: int,
    sinks: int,
    key_block: int | None,
) -> None:
    """Raises ValueError where the arguments do not fit."""
    if q.ndim != 4 or k.ndim != 4 or r.ndim != 4 or profiles.ndim != 2 or 0 in q.shape:
        raise ValueError(
            "streaming_attention needs q [B, T, H, K], k and v [B, T, G, K], r [B, T, H, R], profiles [R, E]; got "
            f"{q.shape}, {k.shape}, {v.shape}, {r.shape}, {profiles.shape}."
        )
    b, t, h, dim = q.shape
    g, rank = k.shape[2], profiles.shape[0]
    if k.shape != (b, t, g, dim) or v.shape != k.shape or r.shape != (b, t, h, rank) or g == 0 or h % g:
        raise ValueError(
            "streaming_attention needs q [B, T, H, K], k and v [B, T, G, K] with G a divisor of H, r [B, T, H, R], "
            f"profiles [R, E]; got {q.shape}, {k.shape}, {v.shape}, {r.shape}, {profiles.shape}."
        )
    if start.shape != (b,) or count.shape != (b,) or not (start.dtype == count.dtype == jnp.int32):
        raise ValueError(
            f"streaming_attention needs start and count int32 [{b}]; got {start.dtype} {start.shape} and "
            f"{count.dtype} {count.shape}."
        )
    layers = () if layer is None else cache.k.shape[:1]
    expected = (*layers, b, g, cache.capacity, dim)
    scales = () if cache.k.dtype != jnp.int8 else ((*layers, b, g, 1, cache.capacity),) * 2
    if tuple(x.shape for x in cache.arrays) != (expected, expected, *scales):
        raise ValueError(
            f"streaming_attention needs caches of shape {expected}"
            + (f" and scales of shape {scales[0]}" if scales else " without scales")
            + f"; got {', '.join(str(x.shape) for x in cache.arrays)}."
        )
    floating = [x.dtype for x in (q, k, v, r, profiles)]
    if not all(jnp.issubdtype(x, jnp.floating) for x in floating) or cache.v.dtype != cache.k.dtype:
        raise ValueError(
            f"streaming_attention needs floating inputs and caches of one dtype; got {', '.join(map(str, floating))} "
            f"and {cache.k.dtype}, {cache.v.dtype}."
        )
    ring = cache.capacity - sinks
    if window < 1 or sinks < 0 or ring < window + t - 1:
        raise ValueError(
            f"streaming_attention needs a ring of at least window + T - 1 = {window + t - 1} slots, since a block is "
            f"written before it attends; the cache has {cache.capacity} slots, {sinks} of which are sinks."
        )
    if key_block is not None and (
        key_block % 8 or sinks % key_block or ring % key_block or not t <= key_block <= ring // 2
    ):
        raise ValueError(
            f"streaming_attention needs a key_block, a multiple of 8, that divides sinks and ring with T <= key_block "
            f"<= ring / 2; got key_block {key_block}, sinks {sinks}, ring {ring}, T {t}."
        )
