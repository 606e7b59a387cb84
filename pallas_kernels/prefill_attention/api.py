"""Attention within whole sequences, for training and long prompts, with Inkling's learned relative bias."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels import platform
from pallas_kernels.prefill_attention import cpu, reference, tpu, tpu_backward
from pallas_kernels.prefill_attention.tiles import LANES, Tiling

_PLAIN = {"gpu": cpu, "cpu": cpu, "reference": reference}


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
    """Attends within sequences: the queries of their last T tokens, to the keys of all S.

    The score of a query at p and a key at s is ``q . k + r . profiles[:, p - s]``, the second term only for
    p - s < E. Key s is visible to query p if ``document_start <= s <= p`` and ``p - s < window`` or
    ``s - document_start < sinks``. Query head h uses kv head ``h // (H // G)``.

    Args:
      q: [B, T, H, K], normed and scaled. k, v: [B, S, G, K], S >= T; k normed.
      r: [B, T, H, R], relative states, scaled. profiles: [R, E].
      document_start: int32 [B, T], the position among the S tokens where the document of each of the T began. None: at
        the first.
      window, sinks: see above.
      key_block: keys are added up in blocks of so many positions, in rising order, as in `streaming_attention` with
        the same `key_block`. None: 256 on a TPU, all keys at once elsewhere.

    Returns:
      [B, T, H, K] of q's dtype. Differentiable in q, k, v, r and profiles. On a TPU, NaN and infinity in q, k, v or r
      make NaN of the rows that see them, and of the gradients of what such a row sees, and change no bit of any other
      row; of another document least of all (profiles and their gradient are everyone's).

    Raises:
      ValueError: shapes do not fit, or dtypes differ.
    """
    b, t, h, dim = q.shape
    s, groups = k.shape[1:3]
    fits = k.shape == v.shape == (b, s, groups, dim) and s >= t and h % groups == 0 and r.shape[:3] == (b, t, h)
    if not fits or profiles.shape[0] != r.shape[3] or (document_start is not None and document_start.shape != (b, t)):
        raise ValueError(
            "prefill_attention needs q [B, T, H, K], k and v [B, S, G, K] with T <= S, G dividing H, r [B, T, H, R], "
            "profiles [R, E] and document_start [B, T]; got "
            f"{q.shape}, {k.shape}, {v.shape}, {r.shape}, {profiles.shape} and "
            f"{None if document_start is None else document_start.shape}."
        )
    dtypes = [x.dtype for x in (q, k, v, r, profiles)]
    if len(set(dtypes)) > 1:
        raise ValueError(
            "prefill_attention needs q, k, v, r and profiles of one dtype; got "
            f"{', '.join(str(dtype) for dtype in dtypes)}: cast them to q's."
        )
    if window < 1 or sinks < 0 or (key_block is not None and (key_block < 1 or sinks % key_block)):
        raise ValueError(
            "prefill_attention needs a window of at least 1 and sinks that its key_block divides; got window "
            f"{window}, sinks {sinks}, key_block {key_block}."
        )
    chosen = platform.implementation()
    if chosen in _PLAIN:
        return _PLAIN[chosen].prefill_attention(
            q, k, v, r, profiles, document_start, window=window, sinks=sinks, key_block=key_block
        )
    if chosen == "tpu" and (key_block or LANES) % LANES:
        raise ValueError(
            f"prefill_attention on a TPU needs a key_block that is a multiple of {LANES}; got {key_block}."
        )
    if pad := (t - s) % LANES:  # distances of tiles from each other are whole vectors
        k, v = (jnp.pad(x, ((0, 0), (pad, 0), (0, 0), (0, 0))) for x in (k, v))
        document_start = pad + (jnp.zeros((b, t), jnp.int32) if document_start is None else document_start)
    return _on_tpu(window, sinks, key_block, q, k, v, r, profiles, document_start)


def _attend(
    window: int,
    sinks: int,
    key_block: int | None,
    q: Array,
    k: Array,
    v: Array,
    r: Array,
    profiles: Array,
    document_start: Array | None,
) -> tuple[Array, Array]:
    rank, extent = profiles.shape
    t, s, queries = q.shape[1], k.shape[1], q.shape[2] // k.shape[2]
    tiling = Tiling.of(t, queries, rank, extent, window, sinks, key_block, s, s - t)
    return tpu.attend(tiling, q, k, v, r, profiles, document_start)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _on_tpu(window: int, sinks: int, key_block: int | None, *args: Array | None) -> Array:
    return _attend(window, sinks, key_block, *args)[0]


def _fwd(window: int, sinks: int, key_block: int | None, *args: Array | None) -> tuple[Array, tuple[Array | None, ...]]:
    y, lse = _attend(window, sinks, key_block, *args)
    return y, (*args, y, lse)


def _bwd(window: int, sinks: int, key_block: int | None, residuals: tuple[Array, ...], grad: Array) -> tuple:
    return (*tpu_backward.gradients(window, sinks, key_block, grad, *residuals), None)


_on_tpu.defvjp(_fwd, _bwd)
