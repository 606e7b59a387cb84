"""The experts of a few tokens on a GPU, in plain XLA: copies of the chosen experts, or every expert once.

Time goes into reading weights. Where there are fewer choices than experts, each choice reads its own expert; else
nearly every expert is somebody's, and all are computed for all tokens, each read once.
"""

import jax
import jax.numpy as jnp
from jax import lax
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
    num = down.shape[-3]
    is_own = expert_ids.size < num
    if is_own:  # [T, k] experts a token, each of one choice
        at = jnp.minimum(expert_ids, num - 1)
        chosen = (expert_ids < num)[:, :, None] & jnp.eye(expert_ids.shape[1], dtype=bool)
    else:  # all E experts for each token
        at = jnp.arange(num)
        chosen = expert_ids[:, :, None] == at
    axes = "te" if is_own else "e"

    def of_layer(weight: Array) -> Array:
        if is_own:
            return weight[at] if layer is None else weight[layer, at]
        return weight if layer is None else lax.dynamic_index_in_dim(weight, layer, keepdims=False)

    def product(rows: str, x: Array, out: str, weight: Array, scale: Array | None) -> Array:
        """Rows times the experts that `axes` names, in float32."""
        each = of_layer(weight).astype(x.dtype)
        y = jnp.einsum(f"{rows},{axes}{out}", x, each, preferred_element_type=jnp.float32)
        return y if scale is None else y * of_layer(scale)

    gate, up = jnp.moveaxis(product("td", x, "pdf->tepf", gate_up, gate_up_scale), 2, 0)
    y = product("tef", (jax.nn.silu(gate) * up).astype(x.dtype), "fd->ted", down, down_scale)
    weight = jnp.sum(jnp.where(chosen, weights[:, :, None], 0), axis=1, dtype=jnp.float32)
    return jnp.sum(jnp.where(jnp.any(chosen, axis=1)[:, :, None], weight[:, :, None] * y, 0), axis=1).astype(x.dtype)
