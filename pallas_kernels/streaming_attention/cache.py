"""The key/value cache of live sessions: which slot holds which position, and the int8 form.

Caches are head-major, [B, G, capacity, K]: a block of one head's keys is contiguous. The first `sinks` slots hold
the first tokens for good, the rest is a ring: the token at position p lives at slot p if p < sinks, else at
``sinks + (p - sinks) % ring``. Which position a slot holds follows from the session's length alone.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of B sessions, of one layer or, with one more leading axis, of several.

    Attributes:
      k, v: [B, G, capacity, K], of a floating dtype or int8.
      k_scale, v_scale: float32 [B, G, 1, capacity] of an int8 cache: a row times its scale is what it stands for.
        (The axis of one makes a head's scales contiguous in a TPU's memory.) None otherwise.
    """

    k: Any
    v: Any
    k_scale: Any = None
    v_scale: Any = None

    @property
    def arrays(self) -> tuple[Any, ...]:
        """The arrays that there are."""
        return (self.k, self.v) if self.k_scale is None else (self.k, self.v, self.k_scale, self.v_scale)

    @property
    def capacity(self) -> int:
        """Slots of a session."""
        return self.k.shape[-2]


def empty_cache(sessions: int, kv_heads: int, capacity: int, head_dim: int, dtype: Any) -> KVCache:
    """A cache of nothing."""
    shape = (sessions, kv_heads, capacity, head_dim)
    arrays = [jnp.zeros(shape, dtype) for _ in range(2)]
    if dtype == jnp.int8:
        arrays += [jnp.zeros((sessions, kv_heads, 1, capacity), jnp.float32) for _ in range(2)]
    return KVCache(*arrays)


def slots_of(positions: Int[Array, "*s"], sinks: int, ring: int) -> Int[Array, "*s"]:
    """The slot of each token position."""
    return jnp.where(positions < sinks, positions, sinks + (positions - sinks) % ring)


def positions_of(length: Int[Array, " b"], sinks: int, ring: int) -> Int[Array, "b c"]:
    """The position that each slot holds once `length` tokens were written; -1: none yet."""
    slot = jnp.arange(sinks + ring)
    newest = length[:, None] - 1
    turn = (newest - slot) // ring  # how often the ring has gone round this slot since its first use
    return jnp.where(slot < sinks, jnp.where(slot <= newest, slot, -1), jnp.where(turn < 0, -1, slot + turn * ring))


def quantize(x: Float[Array, "*s k"]) -> tuple[Int[Array, "*s k"], Float[Array, "*s"]]:
    """Symmetric int8 by row: ``x ~ q * scale`` with scale = max |x| / 127, float32; a row of zeros has scale 0."""
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=-1) / 127
    q = jnp.round(x / jnp.where(scale > 0, scale, 1)[..., None])
    return q.astype(jnp.int8), scale


def encode(
    cache: KVCache, k: Float[Array, "b t g k"], v: Float[Array, "b t g k"]
) -> tuple[Shaped[Array, "b g t k"], Shaped[Array, "b g t k"], tuple[Float[Array, "b g 1 t"], ...]]:
    """New keys and values as the cache holds them, head-major, and their scales (none, or two)."""
    k, v = (x.transpose(0, 2, 1, 3) for x in (k, v))
    if cache.k_scale is None:
        return k.astype(cache.k.dtype), v.astype(cache.v.dtype), ()
    (k, k_scale), (v, v_scale) = quantize(k), quantize(v)
    return k, v, (k_scale[:, :, None], v_scale[:, :, None])
