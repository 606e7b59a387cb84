"""Grouped matmul: rows sorted by expert, each times its expert's matrix; and the expert MLP built on it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.grouped_matmul import cpu, tpu


def grouped_matmul(
    lhs: Float[Array, "m k"], rhs: Float[Array, "e k n"], group_sizes: Int[Array, " e"]
) -> Float[Array, "m n"]:
    """Multiplies each row by its group's matrix.

    Args:
      lhs: [M, K], rows sorted by group.
      rhs: [E, K, N], a matrix per group.
      group_sizes: int32 [E], rows of each group; their sum may be less than M, the rows past it give zero.

    Returns:
      [M, N]. A row's bits do not depend on the other rows.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    if lhs.ndim != 2 or rhs.ndim != 3 or lhs.shape[1] != rhs.shape[1] or group_sizes.shape != rhs.shape[:1]:
        raise ValueError(
            f"grouped_matmul needs [M, K], [E, K, N] and [E]; got {lhs.shape}, {rhs.shape} and {group_sizes.shape}."
        )
    if lhs.dtype != rhs.dtype:
        raise ValueError(f"grouped_matmul needs one dtype; got {lhs.dtype} and {rhs.dtype}.")
    if lhs.shape[0] == 0:
        return jnp.zeros((0, rhs.shape[2]), lhs.dtype)
    return (tpu if _on_tpu() else cpu).grouped_matmul(lhs, rhs, group_sizes)


def expert_mlp(
    x: Float[Array, "t d"],
    expert_ids: Int[Array, "t k"],
    weights: Float[Array, "t k"],
    gate_up: Float[Array, "e d f2"],
    down: Float[Array, "e f d"],
) -> Float[Array, "t d"]:
    """The routed experts' SwiGLU: ``sum_k weights * down_e(silu(gate_e(x)) * up_e(x))``.

    Args:
      x: [T, D] tokens.
      expert_ids: int32 [T, k]; an id of E or more uses no expert and gives nothing.
      weights: [T, k].
      gate_up: [E, D, 2F], gate and up side by side; down: [E, F, D].

    Returns:
      [T, D].

    Raises:
      ValueError: shapes do not fit.
    """
    experts, d, f2 = gate_up.shape
    if down.shape != (experts, f2 // 2, d) or x.shape[-1] != d or expert_ids.shape != weights.shape:
        raise ValueError(
            f"expert_mlp needs x [T, D], ids and weights [T, k], gate_up [E, D, 2F], down [E, F, D]; got {x.shape}, "
            f"{expert_ids.shape}, {weights.shape}, {gate_up.shape}, {down.shape}."
        )
    return (tpu if _on_tpu() else cpu).expert_mlp(x, expert_ids, weights, gate_up, down)


def _on_tpu() -> bool:
    """Whether what is being traced will run on a TPU: the mesh in use says so, else the default backend."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.device_kind.startswith("TPU") if device else jax.default_backend() == "tpu"
