"""Inkling's attention: normed queries and keys, scale 1/d, no RoPE, a learned relative bias, short convolutions.

The bias of a query at distance n from a key is ``(x W_r) . P[:, n]`` (rank `d_rel`) for n < extent and zero
beyond. Global layers scale queries and bias by ``1 + alpha ln(max(1, n / floor))`` at the n-th token.
A key is visible when it is not in the future and either nearer than the layer's window or a pinned sink;
the same rule offline (`attend_sequence`) and over a cache (`attend_cache`).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from tml_jax.model.config import LayerType, TextConfig
from tml_jax.model.primitives import Declare, Linear, RMSNorm, ShortConv
from tml_jax.model.state import CacheShape, LayerState, cache_positions, write_cache

# Queries of a long sequence are taken this many at a time, so that no [T, T] array exists.
QUERY_CHUNK = 512


class Attention(nnx.Module):
    """One layer's attention, without its output convolution."""

    def __init__(self, make: Declare, config: TextConfig, kind: LayerType) -> None:
        local = kind == "hybrid_sliding"
        self.heads = config.swa_num_attention_heads if local else config.num_attention_heads
        self.kv_heads = config.swa_num_key_value_heads if local else config.num_key_value_heads
        self.head_dim = config.swa_head_dim if local else config.head_dim
        self.log_floor = None if local else config.log_scaling_n_floor
        self.log_alpha = config.log_scaling_alpha
        extent = config.sliding_window_size if local else config.rel_extent
        d, dim, width = config.hidden_size, self.head_dim, config.conv_kernel_size
        self.q = Linear(make, (d, self.heads, dim), ("embed", "heads", None))
        self.k = Linear(make, (d, self.kv_heads, dim), ("embed", "kv_heads", None))
        self.v = Linear(make, (d, self.kv_heads, dim), ("embed", "kv_heads", None))
        self.r = Linear(make, (d, self.heads, config.d_rel), ("embed", "heads", None))
        self.o = make.matrix((self.heads, dim, d), ("heads", None, "embed"), inputs=(0, 1))
        self.k_conv = ShortConv(make, self.kv_heads * dim, width, "kv_heads")
        self.v_conv = ShortConv(make, self.kv_heads * dim, width, "kv_heads")
        self.q_norm = RMSNorm(make, dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(make, dim, config.rms_norm_eps)
        self.profiles = make.table((config.d_rel, extent), (None, None), config.initializer_range)

    def _project(
        self,
        x: Float[Array, "b t d"],
        positions: Int[Array, "b t"],
        state: LayerState | None,
        count: Int[Array, " b"] | None,
    ) -> tuple[tuple[Array, Array, Array, Array], tuple[Array | None, Array | None]]:
        """q [B,T,H,K] (scaled), k, v [B,T,G,K], relative states [B,T,H,R] (scaled); the convolutions' new states."""
        b, t = x.shape[:2]
        flat = (b, t, self.kv_heads * self.head_dim)
        k, conv_k = self.k_conv(self.k(x).reshape(flat), state and state.conv_k, count)
        v, conv_v = self.v_conv(self.v(x).reshape(flat), state and state.conv_v, count)
        k, v = (y.reshape(b, t, self.kv_heads, self.head_dim) for y in (k, v))
        q, r = self.q_norm(self.q(x)), self.r(x)
        if self.log_floor is not None:
            seen = (positions + 1).astype(jnp.float32) / self.log_floor
            tau = 1.0 + self.log_alpha * jnp.log(jnp.maximum(seen, 1.0))
            q, r = ((y.astype(jnp.float32) * tau[:, :, None, None]).astype(y.dtype) for y in (q, r))
        return (q / self.head_dim, self.k_norm(k), v, r), (conv_k, conv_v)

    def attend_sequence(self, x: Float[Array, "b t d"], window: int, sinks: int) -> Float[Array, "b t d"]:
        """Whole sequences from their first token: [B, T, D] -> [B, T, D]."""
        t = x.shape[1]
        positions = jnp.broadcast_to(jnp.arange(t), x.shape[:2])
        (q, k, v, r), _ = self._project(x, positions, None, None)
        with jax.named_scope("attend"):
            if sinks == 0 and 2 * window < t:
                y = self._blocked(q, k, v, r, window)
            elif t <= QUERY_CHUNK:
                y = self._dense(q, k, v, r, 0, window, sinks)
            else:
                y = self._chunked(q, k, v, r, window, sinks)
        return jnp.einsum("bthk,hkd->btd", y, self.o[...])

    def _dense(self, q: Array, k: Array, v: Array, r: Array, start: Array | int, window: int, sinks: int) -> Array:
        """Queries [B,T,H,K] at positions `start` and on, over all keys [B,S,G,K] at 0..S-1."""
        k_positions = jnp.arange(k.shape[1])
        distance = start + jnp.arange(q.shape[1])[:, None] - k_positions[None, :]
        visible = (distance >= 0) & ((distance < window) | (k_positions < sinks))
        bias = jnp.einsum("bthr,rts->bhts", r, self._bias_profiles(start, q.shape[1], k.shape[1]))
        return _softmax_attend(q, k, v, bias, visible)

    def _chunked(self, q: Array, k: Array, v: Array, r: Array, window: int, sinks: int) -> Array:
        """As `_dense`, `QUERY_CHUNK` queries at a time, recomputed in the backward pass."""
        b, t = q.shape[:2]
        chunks = -(-t // QUERY_CHUNK)

        @jax.checkpoint
        def one(args: tuple[Array, Array, Array]) -> Array:
            qc, rc, start = args
            return self._dense(qc, k, v, rc, start, window, sinks)

        def split(y: Array) -> Array:
            y = jnp.pad(y, ((0, 0), (0, chunks * QUERY_CHUNK - t), (0, 0), (0, 0)))
            return jnp.moveaxis(y.reshape(b, chunks, QUERY_CHUNK, *y.shape[2:]), 1, 0)

        y = jax.lax.map(one, (split(q), split(r), QUERY_CHUNK * jnp.arange(chunks)))
        return jnp.moveaxis(y, 0, 1).reshape(b, chunks * QUERY_CHUNK, *q.shape[2:])[:, :t]

    def _blocked(self, q: Array, k: Array, v: Array, r: Array, window: int) -> Array:
        """Sliding window in blocks of one window: a block of queries sees its own block of keys and the one before."""
        b, t = q.shape[:2]
        blocks = -(-t // window)

        def split(y: Array) -> Array:
            y = jnp.pad(y, ((0, 0), (0, blocks * window - t), (0, 0), (0, 0)))
            return y.reshape(b, blocks, window, *y.shape[2:])

        def with_previous(y: Array) -> Array:
            y = split(y)
            return jnp.concatenate([jnp.pad(y, ((0, 0), (1, 0), (0, 0), (0, 0), (0, 0)))[:, :-1], y], axis=2)

        distance = window + jnp.arange(window)[:, None] - jnp.arange(2 * window)[None, :]
        visible = (distance >= 0) & (distance < window)
        first = jnp.arange(blocks)[:, None, None] > 0  # the first block has none before it
        visible = visible & (first | (jnp.arange(2 * window) >= window))
        bias = jnp.einsum("bnthr,rts->bnhts", split(r), self._bias_profiles(window, window, 2 * window))
        y = jax.vmap(_softmax_attend, in_axes=(1, 1, 1, 1, 0), out_axes=1)(
            split(q), with_previous(k), with_previous(v), bias, visible
        )
        return y.reshape(b, blocks * window, *q.shape[2:])[:, :t]

    def _bias_profiles(self, start: Array | int, t: int, s: int) -> Float[Array, "r t s"]:
        """The profiles at distance ``start + i - j`` of query i from key j, zero outside their extent.

        A Toeplitz matrix per rank, made by tiling and reshaping one row: a gather's gradient would be a scatter.
        """
        profiles = self.profiles[...]
        rank, extent = profiles.shape
        padded = jnp.pad(profiles, ((0, 0), (s, t + s)))  # padded[n + s] is the profile at distance n
        start = jnp.minimum(start, extent + s - 1)  # further on, all is zero
        row = jax.lax.dynamic_slice_in_dim(padded, start + 1, t + s - 1, axis=1)[:, ::-1]
        # row[m] is at distance start + t - 1 - m; one longer than the row, each line of the reshape starts one later.
        lines = jnp.tile(row, (1, t + 1))[:, : t * (t + s)].reshape(rank, t, t + s)
        return lines[:, ::-1, :s]

    def attend_cache(
        self,
        x: Float[Array, "b t d"],
        state: LayerState,
        start: Int[Array, " b"],
        count: Int[Array, " b"],
        shape: CacheShape,
    ) -> tuple[Float[Array, "b t d"], LayerState]:
        """A block of new tokens: writes the `count` [B] real ones at positions `start` [B] and on, then attends.

        Rows past `count` come back as garbage of finite size; they are not written anywhere.
        """
        positions = start[:, None] + jnp.arange(x.shape[1])
        (q, k, v, r), (conv_k, conv_v) = self._project(x, positions, state, count)
        k = write_cache(shape, state.k, k, start, count)
        v = write_cache(shape, state.v, v, start, count)
        with jax.named_scope("attend"):
            k_positions = cache_positions(shape, start + count)[:, None, :]
            distance = positions[:, :, None] - k_positions
            visible = (k_positions >= 0) & (distance >= 0)
            visible &= (distance < shape.window) | (k_positions < shape.sinks)
            extent = self.profiles.shape[1]
            logits = jnp.einsum("bthr,re->bhte", r, self.profiles[...])
            index = jnp.clip(distance, 0, extent - 1)[:, None]
            bias = jnp.where((distance < extent)[:, None], jnp.take_along_axis(logits, index, axis=-1), 0)
            y = _softmax_attend(q, k.astype(q.dtype), v.astype(q.dtype), bias, visible)
        y = jnp.einsum("bthk,hkd->btd", y, self.o[...])
        return y, LayerState(k, v, conv_k, conv_v, state.conv_attn, state.conv_mlp)


def _softmax_attend(
    q: Float[Array, "b t h k"],
    k: Float[Array, "b s g k"],
    v: Float[Array, "b s g k"],
    bias: Float[Array, "b h t s"],
    visible: Bool[Array, "..."],
) -> Float[Array, "b t h k"]:
    """Grouped-query attention; `visible` is [T, S] or [B, T, S]; a query that sees nothing gets the mean of v."""
    b, t, h, dim = q.shape
    groups = k.shape[2]
    q = q.reshape(b, t, groups, h // groups, dim)
    scores = jnp.einsum("btgjk,bsgk->bgjts", q, k)
    scores = scores.reshape(b, h, t, -1) + bias
    mask = visible if visible.ndim == 2 else visible[:, None]
    scores = jnp.where(mask, scores.astype(jnp.float32), -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    weights = weights.reshape(b, groups, h // groups, t, -1)
    return jnp.einsum("bgjts,bsgk->btgjk", weights, v).reshape(b, t, h, dim)
