"""`StreamState`: everything that a live conversation is, on the device.

Per layer: a key/value cache and the inputs that four short convolutions remember. A local layer's cache is a
ring; a global layer's cache holds the first `sinks` tokens for good and a ring for the rest. The token at
position p lives at cache slot p if p < sinks, else at ``sinks + (p - sinks) % ring``. Which position a slot
holds follows from the session's length alone, so positions are not stored and stale slots cannot be seen.
Rings are one block longer than what a query may look back on, so that a block is written before it attends.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tml_jax.model.config import InteractionConfig, LayerType
from tml_jax.model.plan import layer_plan


def _pytree(cls: type) -> type:
    return jax.tree_util.register_dataclass(cls, data_fields=[f.name for f in dataclasses.fields(cls)], meta_fields=[])


@_pytree
@dataclasses.dataclass(frozen=True)
class LayerState:
    """One layer's memory; stacked layers have one more leading axis.

    Attributes:
      k, v: [B, capacity, kv_heads, head_dim], keys (normed) and values.
      conv_k, conv_v: [B, width - 1, kv_heads * head_dim] float32; conv_attn, conv_mlp: [B, width - 1, d] float32.
    """

    k: Any
    v: Any
    conv_k: Any
    conv_v: Any
    conv_attn: Any
    conv_mlp: Any


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
    """How a layer's cache is laid out: pinned slots, ring slots, and how far back a query looks."""

    sinks: int
    ring: int
    window: int

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
    ring = -(-(window + block - 1) // 8) * 8
    return CacheShape(sinks=sinks, ring=ring, window=window)


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

    kv = leaf((slots, cache_shape(config, kind).capacity, heads, dim), dtype, ("slot", "cache", "kv_heads", None))
    taps = text.conv_kernel_size - 1
    conv_kv = leaf((slots, taps, heads * dim), jnp.float32, ("slot", None, "kv_heads"))
    conv_d = leaf((slots, taps, text.hidden_size), jnp.float32, ("slot", None, None))
    return LayerState(k=kv, v=kv, conv_k=conv_kv, conv_v=conv_kv, conv_attn=conv_d, conv_mlp=conv_d)


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
        name: jax.tree.map(lambda x, axis=int(layer.k.ndim == 5): clear(x, axis), layer)
        for name, layer in state.layers.items()
    }
    rest = {f.name: clear(getattr(state, f.name), 0) for f in dataclasses.fields(state) if f.name != "layers"}
    return StreamState(layers=layers, **rest)


def cache_positions(shape: CacheShape, length: Int[Array, " b"]) -> Int[Array, "b c"]:
    """The token position that each cache slot holds once `length` tokens were written; negative: none yet."""
    slot = jnp.arange(shape.capacity)
    newest = length[:, None] - 1
    turn = (newest - slot) // shape.ring  # how often the ring has gone round this slot since its first use
    return jnp.where(
        slot < shape.sinks, jnp.where(slot <= newest, slot, -1), jnp.where(turn < 0, -1, slot + turn * shape.ring)
    )


def cache_slots(shape: CacheShape, positions: Int[Array, "b t"]) -> Int[Array, "b t"]:
    """The cache slot of each token position."""
    return jnp.where(positions < shape.sinks, positions, shape.sinks + (positions - shape.sinks) % shape.ring)


def write_cache(
    shape: CacheShape,
    cache: Float[Array, "b c h k"],
    new: Float[Array, "b t h k"],
    start: Int[Array, " b"],
    count: Int[Array, " b"],
) -> Float[Array, "b c h k"]:
    """Writes the first `count` [B] of T new tokens at positions `start` [B] and on; other slots keep their bits."""
    offsets = jnp.arange(new.shape[1])
    slots = cache_slots(shape, start[:, None] + offsets)
    slots = jnp.where(offsets < count[:, None], slots, shape.capacity + offsets)  # out of range: dropped
    rows = jnp.arange(cache.shape[0])[:, None]
    return cache.at[rows, slots].set(new.astype(cache.dtype), mode="drop", unique_indices=True)
