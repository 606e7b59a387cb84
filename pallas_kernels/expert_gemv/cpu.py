"""The experts of a few tokens on a CPU: a micro-turn of a few conversations.

A loop over the experts that anybody chose, in rising order, and within it over tiles of their rows, which lie sorted
by expert. XLA copies what a loop slices before it multiplies by it, so what is sliced is the least: one expert of one
layer out of the weights of all layers, once. An expert's last tile runs on into the next expert's rows; what it writes
there is overwritten when their own turn comes, or dropped. Tile sizes come from static shapes alone, and a row's bits
do not depend on them (the tests hold XLA to that).
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels.grouped_matmul import routing


def tile_rows(rows: int) -> int:
    """Rows of a tile, from the static number of rows T k."""
    return 4 if rows <= 32 else 8


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
    experts, _, d, f = gate_up.shape[-4:]
    first = 0 if layer is None else layer * experts
    gate_up, down = gate_up.reshape(-1, 2, d, f), down.reshape(-1, f, d)
    order, inverse, sizes = routing.sort_by_expert(expert_ids, experts)
    starts = jnp.cumsum(sizes) - sizes
    needed = jnp.argsort(sizes == 0, stable=True)
    rows, k = order.size, expert_ids.shape[1]
    tile = tile_rows(rows)
    sorted_x = jnp.take(x, jnp.pad(order // k, (0, tile)), axis=0, mode="clip")

    def product(rows: Array, weight: Array) -> Array:
        return jnp.matmul(rows, weight.astype(rows.dtype), preferred_element_type=jnp.float32)

    def one_expert(i: Array, out: Array) -> Array:
        e = first + needed[i]
        gate, up = (lax.dynamic_slice(gate_up, (e, plane, 0, 0), (1, 1, d, f))[0, 0] for plane in (0, 1))
        down_e = lax.dynamic_index_in_dim(down, e, keepdims=False)

        def one_tile(j: Array, out: Array) -> Array:
            at = starts[needed[i]] + j * tile
            rows = lax.dynamic_slice_in_dim(sorted_x, at, tile)
            hidden = product(rows, gate), product(rows, up)
            if gate_up_scale is not None:
                scale = gate_up_scale.reshape(-1, 2, f)[e]
                hidden = hidden[0] * scale[0], hidden[1] * scale[1]
            y = product((jax.nn.silu(hidden[0]) * hidden[1]).astype(x.dtype), down_e)
            if down_scale is not None:
                y = y * down_scale.reshape(-1, d)[e]
            return lax.dynamic_update_slice_in_dim(out, y, at, 0)

        return lax.fori_loop(0, (sizes[needed[i]] + tile - 1) // tile, one_tile, out)

    out = lax.fori_loop(0, jnp.sum(sizes > 0), one_expert, jnp.zeros((rows + tile, d), jnp.float32))
    y = jnp.take(out, inverse, axis=0, mode="clip").reshape(*expert_ids.shape, d)
    used = (expert_ids < experts)[:, :, None]
    return jnp.sum(jnp.where(used, y * weights[:, :, None].astype(jnp.float32), 0), axis=1).astype(x.dtype)
