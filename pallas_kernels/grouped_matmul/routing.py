"""Between tokens and rows sorted by expert: one ordering, and gathers both ways (a scatter would be far slower)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels import platform

GroupedMatmul = Callable[..., Array]
Tile = Callable[[Array, int, "Array | None", Any], Any]


def sort_by_expert(
    expert_ids: Int[Array, "t k"], experts: int
) -> tuple[Int[Array, " r"], Int[Array, " r"], Int[Array, " e"]]:
    """Orders the R = T k choices by expert, stably; ids of `experts` or more come last.

    Returns:
      order: int32 [R], which choice each sorted row is. inverse: where each choice went.
      sizes: int32 [E], rows of each expert.
    """
    flat = jnp.minimum(expert_ids.reshape(-1).astype(jnp.int32), experts)
    rows = jnp.arange(flat.size, dtype=jnp.int32)
    if platform.implementation() in ("tpu", "interpret", "checked"):
        inverse, sizes = _places(flat, experts)
        order = _inverted(inverse, rows)
    else:
        if (experts + 1) * flat.size < 2**31:  # one key a row: several times faster than sorting pairs
            order = jnp.sort(flat * flat.size + rows) % max(flat.size, 1)
        else:
            order = jnp.argsort(flat, stable=True)
        inverse = _inverted(order, rows)
        sizes = jnp.sum(flat[:, None] == jnp.arange(experts), axis=0, dtype=jnp.int32)
    return order, inverse, sizes


def _inverted(order: Int[Array, " r"], rows: Int[Array, " r"]) -> Int[Array, " r"]:
    return jnp.zeros_like(order).at[order].set(rows, unique_indices=True, mode="promise_in_bounds")


def _places(flat: Int[Array, " r"], experts: int) -> tuple[Int[Array, " r"], Int[Array, " e"]]:
    """Where each row goes, and each expert's rows, by counting: two products by triangles of ones.

    A TPU's compiler takes seconds for each sort, and a layer of a training step has four.
    """
    block = 256  # counts up to it are exact in bfloat16
    hot = jnp.pad(flat, (0, -flat.size % block), constant_values=experts)[:, None] == jnp.arange(experts + 1)
    hot = hot.reshape(-1, block, experts + 1)
    counts = jnp.sum(hot, axis=1, dtype=jnp.int32)

    def before(ones: Array, axis: int) -> Array:
        """The sum along `axis` of what comes before."""
        n = ones.shape[axis]
        triangle = jnp.tril(jnp.ones((n, n), jnp.bfloat16), -1)
        total = jnp.tensordot(
            triangle, ones.astype(jnp.bfloat16), axes=((1,), (axis,)), preferred_element_type=jnp.float32
        )
        return jnp.moveaxis(total, 0, axis).astype(jnp.int32)

    sizes = jnp.sum(counts, axis=0)
    first = before(counts, 0) + jnp.cumsum(sizes) - sizes
    place = jnp.sum(jnp.where(hot, before(hot, 1) + first[:, None], 0), axis=2)
    return place.reshape(-1)[: flat.size], sizes[:experts]


def swiglu(halves: Float[Array, "2 r f"]) -> Float[Array, "r f"]:
    """``silu(gate) * up``."""
    return jax.nn.silu(halves[0]) * halves[1]


def swiglu_of_one_product(
    grouped_matmul: GroupedMatmul,
    lhs: Float[Array, "m d"],
    gate_up: Float[Array, "e 2 d f"],
    group_sizes: Int[Array, " e"],
) -> Float[Array, "m f"]:
    """`api.grouped_swiglu` as one grouped product with gate and up side by side."""
    experts, f = gate_up.shape[0], gate_up.shape[3]
    beside = jax.tree.map(lambda w: jnp.swapaxes(w, 1, 2).reshape(experts, -1, 2 * f), gate_up)
    y = grouped_matmul(lhs, beside, group_sizes)
    return jax.nn.silu(y[:, :f]) * y[:, f:]


def combine(y: Float[Array, "r d"], expert_ids: Array, experts: int) -> Float[Array, "t d"]:
    """The sum of each token's rows, weighted already; y [T k, D] is in the order of the choices."""
    used = (expert_ids < experts)[:, :, None]
    return jnp.sum(jnp.where(used, y.reshape(*expert_ids.shape, -1), 0), axis=1)


@jax.custom_vjp
def spread(x: Float[Array, "t d"], order: Int[Array, " r"], inverse: Int[Array, " r"]) -> Float[Array, "r d"]:
    """Row ``order[r] // k`` of x for each r: tokens in the order of their experts, k times each."""
    return jnp.take(x, order // (order.shape[0] // max(x.shape[0], 1)), axis=0, mode="clip")


def _spread_fwd(x: Array, order: Array, inverse: Array) -> tuple[Array, tuple[Array, int]]:
    return spread(x, order, inverse), (inverse, x.shape[0])


def _spread_bwd(saved: tuple[Array, int], grad: Array) -> tuple[Array, None, None]:
    inverse, tokens = saved
    back = jnp.take(grad, inverse, axis=0, mode="clip")
    return back.reshape(tokens, inverse.shape[0] // max(tokens, 1), grad.shape[1]).sum(1), None, None


spread.defvjp(_spread_fwd, _spread_bwd)


@jax.custom_vjp
def collect(y: Float[Array, "r d"], order: Int[Array, " r"], inverse: Int[Array, " r"]) -> Float[Array, "r d"]:
    """Undoes `order`: a gather forward, and a gather backward."""
    return jnp.take(y, inverse, axis=0, mode="clip")


def _collect_fwd(y: Array, order: Array, inverse: Array) -> tuple[Array, Array]:
    return collect(y, order, inverse), order


def _collect_bwd(order: Array, grad: Array) -> tuple[Array, None, None]:
    return jnp.take(grad, order, axis=0, mode="clip"), None, None


collect.defvjp(_collect_fwd, _collect_bwd)


def sorted_mlp(
    grouped_swiglu: GroupedMatmul,
    grouped_matmul: GroupedMatmul,
    x: Float[Array, "t d"],
    expert_ids: Int[Array, "t k"],
    weights: Float[Array, "t k"],
    gate_up: Float[Array, "e 2 d f"],
    down: Float[Array, "e f d"],
) -> Float[Array, "t d"]:
    """`api.expert_mlp` as two grouped products over sorted rows."""
    experts = gate_up.shape[-4]
    if x.shape[0] == 0:
        return jnp.zeros_like(x)
    order, inverse, sizes = sort_by_expert(expert_ids, experts)
    hidden = grouped_swiglu(spread(x, order, inverse), gate_up, sizes)
    scale = collect(weights.reshape(-1, 1), inverse, order)[:, 0]
    y = collect(grouped_matmul(hidden, down, sizes, scale), order, inverse)
    return combine(y, expert_ids, experts)
