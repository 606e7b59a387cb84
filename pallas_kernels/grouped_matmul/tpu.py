"""Grouped matmul and the experts' SwiGLU on a TPU, with their gradients: three ways to call two kernels."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.grouped_matmul import routing
from pallas_kernels.grouped_matmul.tpu_rows import grouped_planes
from pallas_kernels.grouped_matmul.tpu_weights import grouped_transposed


@jax.custom_vjp
def grouped_matmul(
    lhs: Float[Array, "m k"],
    rhs: Float[Array, "*l e k n"],
    group_sizes: Int[Array, " e"],
    row_scale: Float[Array, " m"] | None = None,
    layer: Int[Array, ""] | None = None,
) -> Float[Array, "m n"]:
    """See `api.grouped_matmul`; with a `layer` rhs is that of all layers."""
    planes = jax.tree.map(lambda w: jnp.expand_dims(w, -3), rhs)
    return grouped_planes(lhs[None], planes, group_sizes, row_scale, layer)[0]


def _matmul_fwd(lhs: Array, rhs: Array, group_sizes: Array, row_scale: Any, layer: Any) -> tuple[Array, tuple]:
    return grouped_matmul(lhs, rhs, group_sizes, row_scale, layer), (lhs, rhs, group_sizes, row_scale, layer)


def _matmul_bwd(saved: tuple, grad: Array) -> tuple[Array | None, ...]:
    lhs, stack, group_sizes, row_scale, layer = saved
    rhs = stack if layer is None else stack[layer]
    d_lhs = grouped_planes(grad[None], rhs[:, None], group_sizes, transpose=True)[0]
    if row_scale is None:
        d_rhs = grouped_transposed(lhs, grad[None], group_sizes)[:, 0]
        return d_lhs, _of_layer(d_rhs, stack, layer), None, None, None
    # The gradient of the scale, grad . (lhs W), is also lhs . (grad W^T).
    scale = row_scale[:, None].astype(lhs.dtype)
    d_scale = jnp.sum(lhs.astype(jnp.float32) * d_lhs.astype(jnp.float32), axis=1).astype(row_scale.dtype)
    d_rhs = grouped_transposed(lhs, (grad * scale)[None], group_sizes)[:, 0]
    return d_lhs * scale, _of_layer(d_rhs, stack, layer), None, d_scale, None


grouped_matmul.defvjp(_matmul_fwd, _matmul_bwd)


def _of_layer(gradient: Array, stack: Array, layer: Array | None) -> Array:
    return gradient if layer is None else jnp.zeros_like(stack).at[layer].set(gradient)


@jax.custom_vjp
def grouped_swiglu(
    lhs: Float[Array, "m d"],
    gate_up: Float[Array, "*l e 2 d f"],
    group_sizes: Int[Array, " e"],
    layer: Int[Array, ""] | None = None,
) -> Float[Array, "m f"]:
    """See `api.grouped_swiglu`: both halves in one pass over the rows; with a `layer`, of the weights of all layers."""
    return grouped_planes(lhs[None], gate_up, group_sizes, None, layer, combine="swiglu")[0]


def _swiglu_fwd(lhs: Array, gate_up: Array, group_sizes: Array, layer: Any) -> tuple[Array, tuple[Any, ...]]:
    return grouped_swiglu(lhs, gate_up, group_sizes, layer), (lhs, gate_up, group_sizes, layer)


def _swiglu_bwd(saved: tuple[Any, ...], grad: Array) -> tuple[Array, Array, None, None]:
    """Gate and up are computed again: kept, they would be the largest activations of a layer."""
    lhs, stack, group_sizes, layer = saved
    gate_up = stack if layer is None else stack[layer]
    halves = grouped_planes(lhs[None], gate_up, group_sizes)
    _, vjp = jax.vjp(routing.swiglu, halves)
    (d_halves,) = vjp(grad)
    d_lhs = grouped_planes(d_halves, gate_up, group_sizes, combine="sum", transpose=True)[0]
    return d_lhs, _of_layer(grouped_transposed(lhs, d_halves, group_sizes), stack, layer), None, None


grouped_swiglu.defvjp(_swiglu_fwd, _swiglu_bwd)


def expert_mlp(
    x: Array, expert_ids: Array, weights: Array, gate_up: Array, down: Array, layer: Array | None = None
) -> Array:
    """See `api.expert_mlp`; with a `layer`, of the weights of all layers."""
    swiglu, product = (functools.partial(f, layer=layer) for f in (grouped_swiglu, grouped_matmul))
    return routing.sorted_mlp(swiglu, product, x, expert_ids, weights, gate_up, down)
