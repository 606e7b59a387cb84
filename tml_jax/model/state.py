"""`StreamState`: everything that a live conversation is, on the device.

Per layer: a key/value cache and the inputs that four short convolutions remember. A local layer's cache is a
ring; a global layer's cache holds the first `sinks` tokens for good and a ring for the rest (which slot holds
which position is `pallas_kernels.streaming_attention.cache`'s to say). Rings are one block longer than what a query
may look back on, so that a block is written before it attends.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from pallas_kernels.streaming_attention.cache import KVCache
from tml_jax.model.config import InteractionConfig, LayerType
from tml_jax.model.plan import layer_plan


def _pytree(cls: type) -> type:
    return jax.tree_util.register_dataclass(cls, data_fields=[f.name for f in dataclasses.fields(cls)], meta_fields=[])


@_pytree
@dataclasses.dataclass(frozen=True)
class LayerState:
    """One layer's memory; stacked layers have one more leading axis.

    Attributes:
      cache: keys (normed) and values [B, kv_heads, capacity, head_dim].
      conv_k, conv_v: [B, width - 1, kv_heads * head_dim] float32; conv_attn, conv_mlp: [B, width - 1, d] float32.
    """

    cache: KVCache
    conv_k: Any
    conv_v: Any
    conv_attn: Any
    conv_mlp: Any

    def of_layer(self, layer: Int[Array, ""]) -> "LayerState":
        """One of stacked layers, but with the caches of all of them, which are used in place."""
        inputs = {name: jax.lax.dynamic_index_in_dim(x, layer, keepdims=False) for name, x in self._inputs().items()}
        return dataclasses.replace(self, **inputs)

    def with_layer(self, layer: Int[Array, ""], new: "LayerState") -> "LayerState":
        """Puts back what `of_layer` gave and a layer has changed."""
        after = new._inputs()
        inputs = {
            name: jax.lax.dynamic_update_index_in_dim(x, after[name], layer, 0) for name, x in self._inputs().items()
        }
        return LayerState(cache=new.cache, **inputs)

    def _inputs(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "cache"}


@_pytree
@dataclasses.dataclass(frozen=True)
class StreamState:
    """N live conversations, one a slot.

    Attributes:
      length: int32 [B], trunk tokens so far.
      layers: name -> `LayerState`, named and stacked as the transformer's layers are.
      last_token: int32 [B], the last output token: it is read at the start of the next block.
      last_mel: [B, mel_frames_per_patch, mel_bins], the mel patch that it carried.
      last_speaking: bool [B], whether it carried one.
      has_last: bool [B], False before a session's first output.
    """

    length: Any
    layers: Any
    last_token: Any
    last_mel: Any
    last_speaking: Any
    has_last: Any


@dataclasses.dataclass(frozen=True)
class Leaf:
    """The declaration of one array of the state: shape, dtype and logical axes."""

    shape: tuple[int, ...]
    dtype: Any
    axes: tuple[str | None, ...]


def block_size(config: InteractionConfig) -> int:
    """Most trunk tokens that one forward of the step appends: the last output token and a whole input block."""
    return 1 + config.stream.max_input


@dataclasses.dataclass(frozen=True)
class CacheShape:
    """How a layer's cache is laid out, and how far back a query looks; key_block: see `NumericsConfig`."""

    sinks: int
    ring: int
    window: int
    key_block: int | None

    @property
    def capacity(self) -> int:
        """Slots in all."""
        return self.sinks + self.ring


def cache_shape(config: InteractionConfig, layer_type: LayerType) -> CacheShape:
    """The cache of a layer of this type."""
    block = block_size(config)
    if layer_type == "hybrid_sliding":
        window, sinks = config.text.sliding_window_size, 0
    else:
        window, sinks = config.state.global_window, config.state.sinks
    key_block = config.numerics.key_block
    unit = key_block or 8
    ring = -(-(window + block - 1) // unit) * unit
    if key_block:  # what a stream's kernel asks for: new tokens lie in at most two different blocks
        ring = max(ring, 2 * key_block)
    return CacheShape(sinks=sinks, ring=ring, window=window, key_block=key_block)


def declare_state(config: InteractionConfig, slots: int, dtype: Any = jnp.float32) -> StreamState:
    """The one declaration of a session's arrays: a `StreamState` of `Leaf`."""
    stream, layers = config.stream, {}
    for group in layer_plan(config.text):
        layers[group.name] = _declare_layer(config, group.layer_type, slots, group.repeats, dtype)
    return StreamState(
        length=Leaf((slots,), jnp.int32, ("slot",)),
        layers=layers,
        last_token=Leaf((slots,), jnp.int32, ("slot",)),
        last_mel=Leaf((slots, stream.mel_frames_per_patch, stream.mel_bins), jnp.float32, ("slot", None, None)),
        last_speaking=Leaf((slots,), jnp.bool_, ("slot",)),
        has_last=Leaf((slots,), jnp.bool_, ("slot",)),
    )


def _declare_layer(config: InteractionConfig, kind: LayerType, slots: int, repeats: int, dtype: Any) -> LayerState:
    text = config.text
    heads, dim = (
        (text.swa_num_key_value_heads, text.swa_head_dim)
        if kind == "hybrid_sliding"
        else (text.num_key_value_heads, text.head_dim)
    )

    def leaf(shape: tuple[int, ...], leaf_dtype: Any, axes: tuple[str | None, ...]) -> Leaf:
        return Leaf((repeats, *shape), leaf_dtype, ("layers", *axes)) if repeats else Leaf(shape, leaf_dtype, axes)

    kv = leaf((slots, heads, cache_shape(config, kind).capacity, dim), dtype, ("slot", "kv_heads", "cache", None))
    taps = text.conv_kernel_size - 1
    conv_kv = leaf((slots, taps, heads * dim), jnp.float32, ("slot", None, "kv_heads"))
    conv_d = leaf((slots, taps, text.hidden_size), jnp.float32, ("slot", None, None))
    return LayerState(cache=KVCache(kv, kv), conv_k=conv_kv, conv_v=conv_kv, conv_attn=conv_d, conv_mlp=conv_d)


def is_leaf(x: object) -> bool:
    """For `jax.tree.map` over a declaration."""
    return isinstance(x, Leaf)


def init_state(config: InteractionConfig, slots: int, dtype: Any = jnp.float32) -> StreamState:
    """`slots` empty conversations."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), declare_state(config, slots, dtype), is_leaf=is_leaf)


def reset_slots(state: StreamState, mask: Bool[Array, " b"]) -> StreamState:
    """Empties the slots where `mask` [B] is True; no value of the old conversation survives, not even hidden."""

    def clear(x: Array, slot_axis: int) -> Array:
        shape = [1] * x.ndim
        shape[slot_axis] = -1
        return jnp.where(mask.reshape(shape), jnp.zeros((), x.dtype), x)

    layers = {
        name: jax.tree.map(lambda x, axis=int(layer.conv_k.ndim == 4): clear(x, axis), layer)
        for name, layer in state.layers.items()
    }
    rest = {f.name: clear(getattr(state, f.name), 0) for f in dataclasses.fields(state) if f.name != "layers"}
    return StreamState(layers=layers, **rest)
