"""Inkling's attention: normed queries and keys, scale 1/d, no RoPE, a learned relative bias, short convolutions.

The bias of a query at distance n from a key is ``(x W_r) . P[:, n]`` (rank `d_rel`) for n < extent and zero
beyond. Global layers scale queries and bias by ``1 + alpha ln(max(1, n / floor))`` at the n-th token.
A key is visible when it is not in the future and either nearer than the layer's window or a pinned sink;
the same rule offline (`attend_sequence`) and over a cache (`attend_cache`).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from pallas_kernels.prefill_attention.api import prefill_attention
from pallas_kernels.streaming_attention.api import streaming_attention
from tml_jax import sharding
from tml_jax.model.adapted import contract
from tml_jax.model.config import LayerType, TextConfig
from tml_jax.model.primitives import Declare, Linear, RMSNorm, ShortConv, in_tiles
from tml_jax.model.state import CacheShape, LayerState


class Attention(nnx.Module):
    """One layer's attention, without its output convolution."""

    def __init__(self, make: Declare, config: TextConfig, kind: LayerType, row_tile: int | None) -> None:
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
        self.k_conv = ShortConv(make, self.kv_heads * dim, width, "kv_heads", row_tile)
        self.v_conv = ShortConv(make, self.kv_heads * dim, width, "kv_heads", row_tile)
        self.q_norm = RMSNorm(make, dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(make, dim, config.rms_norm_eps)
        self.profiles = make.table((config.d_rel, extent), (None, None), config.initializer_range)
        self.row_tile = row_tile

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
        q, k, v, r = in_tiles(lambda x: (self.q_norm(self.q(x)), self.k(x), self.v(x), self.r(x)), self.row_tile, 2, x)
        k, conv_k = self.k_conv(k.reshape(flat), state and state.conv_k, count)
        v, conv_v = self.v_conv(v.reshape(flat), state and state.conv_v, count)
        k, v = (y.reshape(b, t, self.kv_heads, self.head_dim) for y in (k, v))
        q, k, r = in_tiles(self._scale, self.row_tile, 2, q, k, r, positions)
        return (q, k, v, r), (conv_k, conv_v)

    def _scale(self, q: Array, k: Array, r: Array, positions: Array) -> tuple[Array, Array, Array]:
        """Queries by 1/d; queries and relative states of a global layer by the logarithm of their position."""
        if self.log_floor is not None:
            seen = (positions + 1).astype(jnp.float32) / self.log_floor
            tau = 1.0 + self.log_alpha * jnp.log(jnp.maximum(seen, 1.0))
            q, r = ((y.astype(jnp.float32) * tau[..., None, None]).astype(y.dtype) for y in (q, r))
        return q / self.head_dim, self.k_norm(k), r

    def attend_sequence(self, x: Float[Array, "b t d"], shape: CacheShape) -> Float[Array, "b t d"]:
        """Whole sequences from their first token: [B, T, D] -> [B, T, D]."""
        positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        (q, k, v, r), _ = self._project(x, positions, None, None)
        attend = functools.partial(_attend, sharding.sequence_axes(x.shape), shape)
        heads = self._axes("batch", "sequence")
        with jax.named_scope("attend"):
            args = (q, k, v, r, self.profiles[...])
            y = sharding.on_each_device(attend, args, (*(heads,) * 4, (None, None)), heads, out=q)
        return self._out(y)

    def attend_cache(
        self,
        x: Float[Array, "b t d"],
        state: LayerState,
        start: Int[Array, " b"],
        count: Int[Array, " b"],
        layer: Int[Array, ""] | None,
        shape: CacheShape,
    ) -> tuple[Float[Array, "b t d"], LayerState]:
        """A block of new tokens: writes the `count` [B] real ones at positions `start` [B] and on, then attends.

        With a `layer`, the caches of the state are those of all layers, and this is which one of them.
        Rows past `count` come back as garbage of finite size; they are not written anywhere.
        """
        positions = start[:, None] + jnp.arange(x.shape[1])
        (q, k, v, r), (conv_k, conv_v) = self._project(x, positions, state, count)
        attend = functools.partial(
            streaming_attention, window=shape.window, sinks=shape.sinks, key_block=shape.key_block
        )
        heads = self._axes("slot", None)
        lead = () if layer is None else (None,)
        caches = jax.tree.map(lambda _: (*lead, heads[0], heads[2], None, None), state.cache)
        with jax.named_scope("attend"):
            args = (q, k, v, r, self.profiles[...], state.cache, start, count, layer)
            axes = (*(heads,) * 4, (None, None), caches, ("slot",), ("slot",), None if layer is None else ())
            y, cache = sharding.on_each_device(attend, args, axes, (heads, caches))
        return self._out(y), dataclasses.replace(state, cache=cache, conv_k=conv_k, conv_v=conv_v)

    def _out(self, y: Float[Array, "b t h k"]) -> Float[Array, "b t d"]:
        return in_tiles(lambda y: contract(y, self.o.get_value(), 2), self.row_tile, 2, y)

    def _axes(self, rows: str, tokens: str | None) -> tuple[str | None, ...]:
        """Logical axes of [B, T, heads, K]: query heads are cut as their key heads are, or neither is."""
        mesh = sharding.current_mesh()
        whole = mesh is None or self.kv_heads % mesh.shape["tensor"] == 0
        return (rows, tokens, "kv_heads" if whole else None, None)


def _attend(time: tuple[str, ...], shape: CacheShape, q: Array, k: Array, v: Array, r: Array, profiles: Array) -> Array:
    """Attention of a device's own queries [B, T, ...], where tokens are cut over the mesh axes `time`.

    A device gets the keys and values that its first query sees from the devices before it, each by its own hop, and the
    sinks where they are farther away; so all devices have as many keys, and equal work but for the first ones, which
    have fewer before them. (Cutting each window in two, Llama 3, arXiv:2407.21783, or in stripes, Brandon et al. 2023,
    arXiv:2311.09431, would even that out, but the short convolutions and a local layer's window want neighbours.)
    """
    attend = functools.partial(prefill_attention, window=shape.window, sinks=shape.sinks, key_block=shape.key_block)
    if not time:
        return attend(q, k, v, r, profiles)
    (b, own), unit = q.shape[:2], shape.key_block or 1
    # Sinks that aren't in their place must be out of the window's sight and beyond the bias.
    reach = -(-(max(shape.window, profiles.shape[1]) + shape.sinks) // unit) * unit
    reach = min(reach, (jax.lax.axis_size(time) - 1) * own)
    both = jnp.concatenate([k, v], axis=-1)
    seen = jnp.concatenate([sharding.before(both, reach, time), both], axis=1)
    first = jax.lax.axis_index(time) * own - reach  # the position of the first of them; there is none before zero
    if shape.sinks and reach < (jax.lax.axis_size(time) - 1) * own:
        sinks = jnp.where(first > 0, sharding.beginning(both, shape.sinks, time), seen[:, : shape.sinks])
        seen = jnp.concatenate([sinks, seen[:, shape.sinks :]], axis=1)
    start = jnp.broadcast_to(jnp.maximum(-first, 0).astype(jnp.int32), (b, own))
    return attend(q, *jnp.split(seen, 2, axis=-1), r, profiles, start)
