"""Grouped matmul: rows sorted by group, each times its group's matrix; and the experts' SwiGLU built on it."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels import platform
from pallas_kernels.grouped_matmul import cpu, gpu, reference, tpu
from pallas_kernels.int8 import Int8Weight

_MODULES = {"tpu": tpu, "interpret": tpu, "checked": tpu, "gpu": gpu, "cpu": cpu, "reference": reference}


def grouped_matmul(
    lhs: Float[Array, "m k"],
    rhs: Float[Array, "e k n"],
    group_sizes: Int[Array, " e"],
    row_scale: Float[Array, " m"] | None = None,
) -> Float[Array, "m n"]:
    """Multiplies each row by its group's matrix.

    Args:
      lhs: [M, K], rows sorted by group.
      rhs: [E, K, N], a matrix per group.
      group_sizes: int32 [E], rows of each group; their sum may be less than M, the rows past it give zero.
      row_scale: [M], a factor of each row of the result, such as a routing weight. None: one.

    Returns:
      [M, N]. A row's bits do not depend on the other rows.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    _check("grouped_matmul", "[M, K], [E, K, N] and [E]", lhs, rhs, group_sizes, rhs.ndim == 3 and rhs.shape[1])
    if row_scale is not None and row_scale.shape != lhs.shape[:1]:
        raise ValueError(f"grouped_matmul needs a row_scale of shape {lhs.shape[:1]}; got {row_scale.shape}.")
    if lhs.shape[0] == 0:
        return jnp.zeros((0, rhs.shape[2]), lhs.dtype)
    return _MODULES[platform.implementation()].grouped_matmul(lhs, rhs, jnp.asarray(group_sizes), row_scale)


def grouped_swiglu(
    lhs: Float[Array, "m d"], gate_up: Float[Array, "e 2 d f"], group_sizes: Int[Array, " e"]
) -> Float[Array, "m f"]:
    """``silu(row gate) * (row up)`` with the gate and up of each row's group (Shazeer 2020, arXiv:2002.05202).

    Args:
      lhs: [M, D], rows sorted by group.
      gate_up: [E, 2, D, F], gate before up.
      group_sizes: int32 [E]; rows past their sum give zero.

    Returns:
      [M, F]. A row's bits do not depend on the other rows.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    fits = gate_up.ndim == 4 and gate_up.shape[1] == 2 and gate_up.shape[2]
    _check("grouped_swiglu", "[M, D], [E, 2, D, F] and [E]", lhs, gate_up, group_sizes, fits)
    if lhs.shape[0] == 0:
        return jnp.zeros((0, gate_up.shape[3]), lhs.dtype)
    return _MODULES[platform.implementation()].grouped_swiglu(lhs, gate_up, jnp.asarray(group_sizes))


def expert_mlp(
    x: Float[Array, "t d"],
    expert_ids: Int[Array, "t k"],
    weights: Float[Array, "t k"],
    gate_up: "Float[Array, '*l e 2 d f'] | Int8Weight",
    down: "Float[Array, '*l e f d'] | Int8Weight",
    layer: Int[Array, ""] | None = None,
) -> Float[Array, "t d"]:
    """The routed experts: ``sum_k weights * down_e(silu(gate_e(x)) * up_e(x))``.

    Args:
      x: [T, D] tokens.
      expert_ids: int32 [T, k]; an id of E or more uses no expert and gives nothing.
      weights: [T, k].
      gate_up: [E, 2, D, F], gate before up; down: [E, F, D]. Int8 ones, with a scale a column, have no gradient.
      layer: int32 scalar. With it gate_up and down are those of all layers, [L, ...], of which a TPU copies none.

    Returns:
      [T, D].

    Raises:
      ValueError: shapes do not fit.
    """
    *layers, experts, planes, d, f = gate_up.shape
    fits = planes == 2 and down.shape == (*layers, experts, f, d) and len(layers) == (layer is not None)
    if not fits or x.shape[-1] != d or expert_ids.shape != weights.shape:
        raise ValueError(
            "expert_mlp needs x [T, D], ids and weights [T, k], gate_up [E, 2, D, F], down [E, F, D], the last two "
            f"stacked over layers if there is a layer; got {x.shape}, {expert_ids.shape}, {weights.shape}, "
            f"{gate_up.shape}, {down.shape}{'' if layer is None else ' and a layer'}."
        )
    module = _MODULES[platform.implementation()]
    if module is tpu:
        return tpu.expert_mlp(x, expert_ids, weights, gate_up, down, layer)
    if layer is not None:
        gate_up, down = jax.tree.map(lambda w: lax.dynamic_index_in_dim(w, layer, keepdims=False), (gate_up, down))
    return module.expert_mlp(x, expert_ids, weights, gate_up, down)


def _check(name: str, needs: str, lhs: Array, rhs: Array, group_sizes: Array, width: int) -> None:
    if lhs.ndim != 2 or not width or lhs.shape[1] != width or group_sizes.shape != rhs.shape[:1]:
        raise ValueError(f"{name} needs {needs}; got {lhs.shape}, {rhs.shape} and {group_sizes.shape}.")
    if lhs.dtype != rhs.dtype:
        raise ValueError(f"{name} needs one dtype; got {lhs.dtype} and {rhs.dtype}.")
