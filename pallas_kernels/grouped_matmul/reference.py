"""The oracle, in plain jnp: every expert on every row, then a choice. Right, and wasteful."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def grouped_matmul(
    lhs: Float[Array, "m k"], rhs: Float[Array, "e k n"], group_sizes: Int[Array, " e"]
) -> Float[Array, "m n"]:
    """See `api.grouped_matmul`."""
    ends = jnp.cumsum(group_sizes)
    rows = jnp.arange(lhs.shape[0])[:, None]
    member = (rows < ends) & (rows >= ends - group_sizes)
    every = jnp.einsum("mk,ekn->emn", lhs, rhs)
    return jnp.sum(jnp.where(member.T[:, :, None], every, 0), axis=0)


def expert_mlp(
    x: Float[Array, "t d"],
    expert_ids: Int[Array, "t k"],
    weights: Float[Array, "t k"],
    gate_up: Float[Array, "e d f2"],
    down: Float[Array, "e f d"],
) -> Float[Array, "t d"]:
    """See `api.expert_mlp`."""
    gate, up = jnp.split(jnp.einsum("td,edf->tef", x, gate_up), 2, axis=-1)
    every = jnp.einsum("tef,efd->ted", jax.nn.silu(gate) * up, down)
    chosen = expert_ids[:, :, None] == jnp.arange(gate_up.shape[0])
    weight = jnp.sum(jnp.where(chosen, weights[:, :, None], 0), axis=1)
    return jnp.sum(jnp.where(weight[:, :, None] != 0, weight[:, :, None] * every, 0), axis=1)
