"""The oracle, in plain jnp: every expert on every row, then a choice. Right, and wasteful."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.grouped_matmul import routing
from pallas_kernels.int8 import einsum


def grouped_matmul(
    lhs: Float[Array, "m k"],
    rhs: Float[Array, "e k n"],
    group_sizes: Int[Array, " e"],
    row_scale: Float[Array, " m"] | None = None,
) -> Float[Array, "m n"]:
    """See `api.grouped_matmul`."""
    ends = jnp.cumsum(group_sizes)
    rows = jnp.arange(lhs.shape[0])[:, None]
    member = (rows < ends) & (rows >= ends - group_sizes)
    every = jnp.einsum("mk,ekn->emn", lhs, rhs)
    y = jnp.sum(jnp.where(member.T[:, :, None], every, 0), axis=0)
    return y if row_scale is None else y * row_scale[:, None].astype(y.dtype)


def grouped_swiglu(
    lhs: Float[Array, "m d"], gate_up: Float[Array, "e 2 d f"], group_sizes: Int[Array, " e"]
) -> Float[Array, "m f"]:
    """See `api.grouped_swiglu`."""
    return routing.swiglu(jnp.stack([grouped_matmul(lhs, gate_up[:, plane], group_sizes) for plane in (0, 1)]))


def expert_mlp(
    x: Float[Array, "t d"],
    expert_ids: Int[Array, "t k"],
    weights: Float[Array, "t k"],
    gate_up: Float[Array, "e 2 d f"],
    down: Float[Array, "e f d"],
) -> Float[Array, "t d"]:
    """See `api.expert_mlp`."""
    hidden = routing.swiglu(einsum("td,epdf->ptef", x, gate_up))
    every = einsum("tef,efd->ted", hidden, down)
    chosen = expert_ids[:, :, None] == jnp.arange(gate_up.shape[0])
    weight = jnp.sum(jnp.where(chosen, weights[:, :, None], 0), axis=1)
    return jnp.sum(jnp.where(weight[:, :, None] != 0, weight[:, :, None] * every, 0), axis=1)
