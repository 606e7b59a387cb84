"""The Inkling decoder over embedded tokens: the same layers for whole sequences and for a live stream."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.int8 import einsum
from tml_jax import sharding
from tml_jax.model.adapted import Adapted
from tml_jax.model.attention import Attention
from tml_jax.model.config import InteractionConfig
from tml_jax.model.moe import ROUTED, DenseMlp, Moe
from tml_jax.model.plan import LayerGroup, layer_plan
from tml_jax.model.primitives import Axes, Declare, RMSNorm, ShortConv, in_tiles
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
        y, load = self._feed_forward(x, valid, axes=("batch", None if self.row_tile else "sequence"))
        y, _ = self.mlp_conv(y, None, None)
        return sharding.constrain(x + y, ("batch", "sequence", None)), load

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

    def _feed_forward(
        self, x: Array, valid: Array | None, layer: Array | None = None, axes: Axes = ("slot", None)
    ) -> tuple[Array, Array]:
        """The block's result, and how many tokens chose each routed expert, float32 [E]; [0] for a dense block."""
        with jax.named_scope("mlp"):
            mlp = self.mlp
            if isinstance(mlp, Moe):

                def experts(x: Array, valid: Array | None) -> tuple[Array, Array]:
                    return mlp(self.mlp_norm(x), valid, layer, axes)

                y, ids = in_tiles(experts, self.row_tile, 2, x, valid)
                chosen = ids[..., None] == jnp.arange(mlp.routed)
                return y, jnp.sum(chosen, axis=(0, 1, 2)).astype(jnp.float32)
            y = in_tiles(lambda x: mlp(self.mlp_norm(x)), self.row_tile, 2, x)
            return y, jnp.zeros((0,), jnp.float32)


def _is_indexed(path: tuple[Any, ...], _: Any) -> bool:
    """Whether a weight stays stacked while a stream scans over layers."""
    return path[0] == "mlp" and path[-1] in Moe.indexed


def _gathered(weight: Any, axes: Any) -> Any:
    if isinstance(weight, Adapted):  # of an addition the factors are small, and lie as they are used
        return dataclasses.replace(weight, base=sharding.whole(weight.base, axes))
    return jax.tree.map(lambda w: sharding.whole(w, axes), weight)  # an int8 weight is a tree


class _Run:
    """Layers of one kind that follow each other: for whole sequences they are compiled once and scanned over.

    Attributes:
      names: of their groups. weights: stacked, [layers, ...] or, of groups that repeat, [repeats, layers, ...].
    """

    def __init__(self, transformer: "Transformer", groups: list[LayerGroup]) -> None:
        self.names = [group.name for group in groups]
        definitions, weights = zip(*(nnx.split(getattr(transformer, name)) for name in self.names), strict=True)
        self._definition, axis = definitions[0], min(groups[0].repeats, 1)
        paths, variables = zip(*(nnx.to_flat_state(weights[0])), strict=True)
        axes = (v.get_metadata("axes")[axis:] for v in variables)
        # The experts' weights are gathered where their tokens are.
        self._whole = {path: a for path, a in zip(paths, axes, strict=True) if not _is_indexed(path, None)}
        self.weights = jax.tree.map(lambda *layers: jnp.stack(layers, axis), *map(nnx.to_pure_dict, weights))

    def layer(self, weights: dict[str, Any]) -> DecoderLayer:
        """A layer around its weights, each of them gathered once for all that is done with it."""
        flat = nnx.to_flat_state(nnx.State(weights))
        gathered = {path: _gathered(w, self._whole[path]) if path in self._whole else w for path, w in flat}
        return nnx.merge(self._definition, nnx.from_flat_state(gathered))


def _scan(f: Callable[..., Any], x: Array, weights: Any, length: int) -> Any:
    """`jax.lax.scan`, without a loop where there is nothing to turn."""
    if length > 1:
        return jax.lax.scan(f, x, weights)
    one = jax.tree.map(lambda w: w[0], weights) if length else weights
    x, y = f(x, one)
    return x, jax.tree.map(lambda y: y[None], y) if length else y


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
        logits = einsum("...d,vd->...v", hidden / self.mup, self.unembed[...])
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
          remat: recompute each layer in the backward pass, except what the routed experts gave.

        Returns:
          Hidden states after the final norm [B, T, D], and the expert load of each sparse group ([E] or [repeats, E]).
        """

        def layer(run: _Run, x: Array, weights: dict[str, Any]) -> tuple[Array, Array]:
            return run.layer(weights).sequence(x, valid)

        def unit(runs: list[_Run], x: Array, weights: list[dict[str, Any]]) -> tuple[Array, list[Array]]:
            loads = []
            for run, of_run in zip(runs, weights, strict=True):
                f: Callable[..., Any] = functools.partial(layer, run)
                if remat:
                    f = jax.checkpoint(f, policy=jax.checkpoint_policies.save_only_these_names(ROUTED))
                x, load = _scan(f, x, of_run, len(run.names))
                loads.append(load)
            return x, loads

        loads: dict[str, Array] = {}
        for repeats, groups in itertools.groupby(self.plan, lambda group: group.repeats):
            runs = [_Run(self, list(run)) for _, run in itertools.groupby(groups, LayerGroup.kind)]
            x, unit_loads = _scan(functools.partial(unit, runs), x, [run.weights for run in runs], repeats)
            for run, load in zip(runs, unit_loads, strict=True):
                loads |= dict(zip(run.names, jnp.moveaxis(load, -2, 0), strict=True))
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
