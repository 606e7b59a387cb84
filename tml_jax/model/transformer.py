"""The Inkling decoder over embedded tokens: the same layers for whole sequences and for a live stream."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from tml_jax import sharding
from tml_jax.model.attention import Attention
from tml_jax.model.config import InteractionConfig
from tml_jax.model.moe import DenseMlp, Moe
from tml_jax.model.plan import LayerGroup, layer_plan
from tml_jax.model.primitives import Declare, RMSNorm, ShortConv, in_tiles
from tml_jax.model.state import CacheShape, LayerState, StreamState, cache_shape


class DecoderLayer(nnx.Module):
    """Attention, then a feed-forward block, each normed before and convolved after."""

    def __init__(self, make: Declare, config: InteractionConfig, group: LayerGroup) -> None:
        text = config.text
        d, eps, width = text.hidden_size, text.rms_norm_eps, text.conv_kernel_size
        self.attn_norm = RMSNorm(make, d, eps)
        self.row_tile = config.numerics.row_tile
        self.attn = Attention(make, text, group.layer_type, self.row_tile)
        self.attn_conv = ShortConv(make, d, width, None, self.row_tile)
        self.mlp_norm = RMSNorm(make, d, eps)
        self.mlp = Moe(make, text) if group.mlp_type == "sparse" else DenseMlp(make, text)
        self.mlp_conv = ShortConv(make, d, width, None, self.row_tile)
        self.cache: CacheShape = cache_shape(config, group.layer_type)

    def sequence(self, x: Float[Array, "b t d"], valid: Bool[Array, "b t"] | None) -> tuple[Array, Array]:
        """Whole sequences: [B, T, D] -> [B, T, D], and the expert load [E] ([0] for a dense layer)."""
        with jax.named_scope("attention"):
            y = self.attn.attend_sequence(self._norm(x), self.cache)
            y, _ = self.attn_conv(y, None, None)
            x = x + y
        y, load = self._feed_forward(x, valid)
        y, _ = self.mlp_conv(y, None, None)
        return sharding.constrain(x + y, ("batch", None, None)), load

    def stream(
        self,
        x: Float[Array, "b t d"],
        state: LayerState,
        start: Int[Array, " b"],
        count: Int[Array, " b"],
        layer: Int[Array, ""] | None = None,
    ) -> tuple[Array, LayerState]:
        """A block of new tokens, `count` [B] of them real, at positions `start` [B] and on.

        With a `layer`, caches and experts are those of all layers: neither is copied to take this layer's out.
        """
        with jax.named_scope("attention"):
            y, state = self.attn.attend_cache(self._norm(x), state, start, count, layer, self.cache)
            y, conv_attn = self.attn_conv(y, state.conv_attn, count)
            x = x + y
        valid = jnp.arange(x.shape[1]) < count[:, None]
        y, _ = self._feed_forward(x, valid, layer)
        y, conv_mlp = self.mlp_conv(y, state.conv_mlp, count)
        state = dataclasses.replace(state, conv_attn=conv_attn, conv_mlp=conv_mlp)
        return sharding.constrain(x + y, ("slot", None, None)), state

    def _norm(self, x: Array) -> Array:
        return in_tiles(self.attn_norm, self.row_tile, 2, x)

    def _feed_forward(self, x: Array, valid: Array | None, layer: Array | None = None) -> tuple[Array, Array]:
        """The block's result, and how many tokens chose each routed expert, float32 [E]; [0] for a dense block."""
        with jax.named_scope("mlp"):
            mlp = self.mlp
            if isinstance(mlp, Moe):
                y, ids = in_tiles(lambda x, valid: mlp(self.mlp_norm(x), valid, layer), self.row_tile, 2, x, valid)
                chosen = ids[..., None] == jnp.arange(mlp.routed)
                return y, jnp.sum(chosen, axis=(0, 1, 2)).astype(jnp.float32)
            y = in_tiles(lambda x: mlp(self.mlp_norm(x)), self.row_tile, 2, x)
            return y, jnp.zeros((0,), jnp.float32)


def _is_indexed(path: tuple[Any, ...], _: Any) -> bool:
    """Whether a weight stays stacked while a stream scans over layers."""
    return path[0] == "mlp" and path[-1] in Moe.indexed


class Transformer(nnx.Module):
    """The decoder, without embedding: layers named by `layer_plan`, a final norm and the unembedding."""

    def __init__(self, make: Declare, config: InteractionConfig) -> None:
        text = config.text
        self.plan = layer_plan(text)
        for group in self.plan:
            setattr(self, group.name, DecoderLayer(make.stack(group.repeats), config, group))
        self.norm = RMSNorm(make, text.hidden_size, text.rms_norm_eps)
        self.unembed = make.table(
            (text.vocab_size, text.hidden_size), ("vocab", "embed"), 1 / math.sqrt(text.hidden_size)
        )
        self.row_tile = config.numerics.row_tile
        self.mup = text.logits_mup_width_multiplier

    def logits(self, hidden: Float[Array, "*b d"]) -> Float[Array, "*b v"]:
        """Final hidden states (normed) [..., D] -> logits [..., vocab_size], float32."""
        logits = jnp.einsum("...d,vd->...v", hidden / self.mup, self.unembed[...])
        return logits.astype(jnp.float32)

    def _final(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        return in_tiles(self.norm, self.row_tile, 2, x)

    def sequence(
        self, x: Float[Array, "b t d"], valid: Bool[Array, "b t"] | None = None, remat: bool = False
    ) -> tuple[Float[Array, "b t d"], dict[str, Array]]:
        """Whole sequences from their first token.

        Args:
          x: [B, T, D] embedded tokens.
          valid: bool [B, T], real tokens (padding comes last); None: all.
          remat: recompute each layer in the backward pass.

        Returns:
          Hidden states after the final norm [B, T, D], and the expert load of each sparse group ([E] or [repeats, E]).
        """

        def run(definition: nnx.GraphDef, x: Array, weights: nnx.State) -> tuple[Array, Array]:
            return nnx.merge(definition, weights).sequence(x, valid)

        if remat:
            run = jax.checkpoint(run, static_argnums=0)
        loads: dict[str, Array] = {}
        parts = {g.name: nnx.split(getattr(self, g.name)) for g in self.plan}
        for group in self.plan:
            if not group.repeats:
                x, loads[group.name] = run(parts[group.name][0], x, parts[group.name][1])
        repeated = {g.name: parts[g.name] for g in self.plan if g.repeats}
        if repeated:

            def unit(x: Array, weights: dict[str, nnx.State]) -> tuple[Array, dict[str, Array]]:
                unit_loads = {}
                for name, (definition, _) in repeated.items():
                    x, unit_loads[name] = run(definition, x, weights[name])
                return x, unit_loads

            x, unit_loads = jax.lax.scan(unit, x, {name: weights for name, (_, weights) in repeated.items()})
            loads |= unit_loads
        return self._final(x), {name: load for name, load in loads.items() if load.shape[-1]}

    def stream(
        self, x: Float[Array, "b t d"], state: StreamState, count: Int[Array, " b"]
    ) -> tuple[Float[Array, "b t d"], StreamState]:
        """Appends a block of `count` [B] real tokens to each conversation; the normed hidden states [B, T, D]."""
        start, layers = state.length, dict(state.layers)
        for group in self.plan:
            if not group.repeats:
                x, layers[group.name] = getattr(self, group.name).stream(x, layers[group.name], start, count)
        groups = [g for g in self.plan if g.repeats]
        if groups:
            # The caches ride in the carry and are updated in place; as scanned inputs and outputs they would be copied.
            # They and the experts stay stacked, and what uses them gets the layer's number.
            defs, indexed, sliced = zip(
                *(nnx.split(getattr(self, g.name), _is_indexed, ...) for g in groups), strict=True
            )

            def unit(carry: tuple[Array, list[LayerState]], xs: tuple[Array, tuple[nnx.State, ...]]) -> tuple:
                (x, states), (i, weights) = carry, xs
                states = list(states)
                for j, parts in enumerate(zip(defs, indexed, weights, strict=True)):
                    x, new = nnx.merge(*parts).stream(x, states[j].of_layer(i), start, count, i)
                    states[j] = states[j].with_layer(i, new)
                return (x, states), None

            states = [layers[g.name] for g in groups]
            (x, states), _ = jax.lax.scan(unit, (x, states), (jnp.arange(groups[0].repeats), sliced))
            layers |= {g.name: state for g, state in zip(groups, states, strict=True)}
        fields = {"layers": layers, "length": start + count}
        return self._final(x), StreamState(**{**vars(state), **fields})
