"""Grouped matmul and the experts' SwiGLU on a TPU, with their gradients: three ways to call two kernels."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.grouped_matmul import routing
from pallas_kernels.grouped_matmul.tpu_rows import grouped_planes
from pallas_kernels.grouped_matmul.tpu_weights import grouped_transposed


@jax.custom_vjp
def grouped_matmul(
    lhs: Float[Array, "m k"],
    rhs: Float[Array, "e k n"],
    group_sizes: Int[Array, " e"],
    row_scale: Float[Array, " m"] | None = None,
) -> Float[Array, "m n"]:
    """See `api.grouped_matmul`."""
    return grouped_planes(lhs[None], rhs[:, None], group_sizes, row_scale)[0]


def _matmul_fwd(lhs: Array, rhs: Array, group_sizes: Array, row_scale: Array | None) -> tuple[Array, tuple]:
    return grouped_matmul(lhs, rhs, group_sizes, row_scale), (lhs, rhs, group_sizes, row_scale)


def _matmul_bwd(saved: tuple, grad: Array) -> tuple[Array | None, ...]:
    lhs, rhs, group_sizes, row_scale = saved
    d_lhs = grouped_planes(grad[None], rhs[:, None], group_sizes, transpose=True)[0]
    if row_scale is None:
        return d_lhs, grouped_transposed(lhs, grad[None], group_sizes)[:, 0], None, None
    # The gradient of the scale, grad . (lhs W), is also lhs . (grad W^T).
    scale = row_scale[:, None].astype(lhs.dtype)
    d_scale = jnp.sum(lhs.astype(jnp.float32) * d_lhs.astype(jnp.float32), axis=1).astype(row_scale.dtype)
    d_rhs = grouped_transposed(lhs, (grad * scale)[None], group_sizes)[:, 0]
    return d_lhs * scale, d_rhs, None, d_scale


grouped_matmul.defvjp(_matmul_fwd, _matmul_bwd)


@jax.custom_vjp
def grouped_swiglu(
    lhs: Float[Array, "m d"], gate_up: Float[Array, "e 2 d f"], group_sizes: Int[Array, " e"]
) -> Float[Array, "m f"]:
    """See `api.grouped_swiglu`: both halves in one pass over the rows."""
    return grouped_planes(lhs[None], gate_up, group_sizes, combine="swiglu")[0]


def _swiglu_fwd(lhs: Array, gate_up: Array, group_sizes: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return grouped_swiglu(lhs, gate_up, group_sizes), (lhs, gate_up, group_sizes)


def _swiglu_bwd(saved: tuple[Array, Array, Array], grad: Array) -> tuple[Array, Array, None]:
    """Gate and up are computed again: kept, they would be the largest activations of a layer."""
    lhs, gate_up, group_sizes = saved
    halves = grouped_planes(lhs[None], gate_up, group_sizes)
    _, vjp = jax.vjp(routing.swiglu, halves)
    (d_halves,) = vjp(grad)
    d_lhs = grouped_planes(d_halves, gate_up, group_sizes, combine="sum", transpose=True)[0]
    return d_lhs, grouped_transposed(lhs, d_halves, group_sizes), None


grouped_swiglu.defvjp(_swiglu_fwd, _swiglu_bwd)

expert_mlp = functools.partial(routing.sorted_mlp, grouped_swiglu, grouped_matmul)
