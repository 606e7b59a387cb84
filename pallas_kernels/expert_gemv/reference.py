"""The oracle, in plain jnp: every expert on every token in float32, then a choice."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def expert_gemv(
    x: Float[Array, "t d"],
    expert_ids: Int[Array, "t k"],
    weights: Float[Array, "t k"],
    gate_up: Float[Array, "*l e 2 d f"],
    down: Float[Array, "*l e f d"],
    gate_up_scale: Float[Array, "*l e 2 f"] | None = None,
    down_scale: Float[Array, "*l e d"] | None = None,
    layer: Int[Array, ""] | None = None,
) -> Float[Array, "t d"]:
    """See `api.expert_gemv`."""
    if layer is not None:
        gate_up, down = gate_up[layer], down[layer]
        gate_up_scale, down_scale = (None if scale is None else scale[layer] for scale in (gate_up_scale, down_scale))
    gate_up, down, weights = (array.astype(jnp.float32) for array in (gate_up, down, weights))
    if gate_up_scale is not None and down_scale is not None:
        gate_up, down = gate_up * gate_up_scale[:, :, None], down * down_scale[:, None]
    gate, up = jnp.einsum("td,egdf->gtef", x.astype(jnp.float32), gate_up, precision="highest")
    every = jnp.einsum("tef,efd->ted", jax.nn.silu(gate) * up, down, precision="highest")
    chosen = expert_ids[:, :, None] == jnp.arange(gate_up.shape[0])
    weight = jnp.sum(jnp.where(chosen, weights[:, :, None], 0), axis=1)
    used = jnp.any(chosen, axis=1)
    return jnp.sum(jnp.where(used[:, :, None], weight[:, :, None] * every, 0), axis=1).astype(x.dtype)
