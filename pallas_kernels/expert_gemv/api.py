"""The routed experts of a few tokens: decoding, where the time goes into reading the weights of many experts."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels import int8, platform
from pallas_kernels.expert_gemv import cpu, gpu, reference, tpu
from pallas_kernels.grouped_matmul import api as grouped
from pallas_kernels.int8 import Int8Weight

_MODULES = {"tpu": tpu, "interpret": tpu, "checked": tpu, "gpu": gpu, "cpu": cpu, "reference": reference}

# Rows (tokens times experts of a token) up to which a loop over single experts is the faster on a CPU.
CPU_ROWS = 256


def is_few(tokens: int, k: int) -> bool:
    """Whether a call of this size is decoding and belongs here, rather than to `grouped_matmul`: by shape alone."""
    if platform.implementation() in ("cpu", "reference"):
        return 0 < tokens * k <= CPU_ROWS
    return 0 < tokens <= tpu.MAX_TOKENS


def expert_gemv(
    x: Float[Array, "t d"],
    expert_ids: Int[Array, "t k"],
    weights: Float[Array, "t k"],
    gate_up: "Float[Array, '*l e 2 d f'] | Int8Weight",
    down: "Float[Array, '*l e f d'] | Int8Weight",
    layer: Int[Array, ""] | None = None,
) -> Float[Array, "t d"]:
    """``sum_k weights * down_e(silu(gate_e x) * up_e x)``, reading each chosen expert's weights once.

    Args:
      x: [T, D] tokens, bfloat16 or float32; T is at most `tpu.MAX_TOKENS` on a TPU.
      expert_ids: int32 [T, k]; an id of E or more uses no expert and gives nothing.
      weights: [T, k].
      gate_up: [E, 2, D, F], gate before up; down: [E, F, D]. Both of x's dtype, or both int8 with a scale a column.
      layer: int32 scalar. With it gate_up and down are those of all layers, [L, ...]. In a scan over layers pass it
        rather than a slice: XLA would copy all experts of a layer to make the slice.

    Returns:
      [T, D]. A token's bits do not depend on the other tokens; on a GPU, on their number alone. Its gradient, of
      weights that are no int8, goes through `grouped_matmul`: decoding has none, and a kernel of its own would serve
      nobody.

    Raises:
      ValueError: shapes or dtypes do not fit, too many tokens, or a gradient of int8 weights.
    """
    (gate_up, gate_up_scale), (down, down_scale) = int8.split(gate_up), int8.split(down)
    _check(x, expert_ids, weights, gate_up, down, gate_up_scale, down_scale, layer is not None)
    if expert_ids.size == 0 or gate_up.shape[-4] == 0:
        return jnp.zeros_like(x)
    return _expert_gemv(x, expert_ids, weights, gate_up, down, gate_up_scale, down_scale, layer)


def _check(
    x: Array,
    expert_ids: Array,
    weights: Array,
    gate_up: Array,
    down: Array,
    gate_up_scale: Array | None,
    down_scale: Array | None,
    stacked: bool,
) -> None:
    *layers, experts, planes, d, f = gate_up.shape if gate_up.ndim == 4 + stacked else (0, 0, 0, 0)
    tokens_fit = x.ndim == expert_ids.ndim == 2 and x.shape[1] == d and expert_ids.shape == weights.shape
    if not tokens_fit or expert_ids.shape[0] != x.shape[0] or planes != 2 or down.shape != (*layers, experts, f, d):
        raise ValueError(
            "expert_gemv needs x [T, D], ids and weights [T, k], gate_up [E, 2, D, F], down [E, F, D], the last two "
            f"stacked over layers if there is a layer; got {x.shape}, {expert_ids.shape}, {weights.shape}, "
            f"{gate_up.shape}, {down.shape}{' and a layer' if stacked else ''}."
        )
    scales = [None if s is None else (s.shape, s.dtype.name) for s in (gate_up_scale, down_scale)]
    if gate_up.dtype == jnp.int8:
        dtypes_fit = scales == [((*layers, experts, 2, f), "float32"), ((*layers, experts, d), "float32")]
        dtypes_fit &= down.dtype == jnp.int8
    else:
        dtypes_fit = gate_up.dtype == down.dtype == x.dtype and scales == [None, None]
    if x.dtype not in (jnp.bfloat16, jnp.float32) or not dtypes_fit:
        raise ValueError(
            "expert_gemv needs x in bfloat16 or float32, and either experts of that dtype, or int8 ones with float32 "
            f"scales [E, 2, F] and [E, D]; got {x.dtype}, {gate_up.dtype}, {down.dtype} and scales {scales}."
        )


@jax.custom_vjp
def _expert_gemv(x: Array, expert_ids: Array, weights: Array, *experts: Array | None) -> Array:
    return _MODULES[platform.implementation()].expert_gemv(x, expert_ids, weights, *experts)


def _fwd(*args: Array | None) -> tuple[Array, tuple[Array | None, ...]]:
    return _expert_gemv(*args), args


def _bwd(args: tuple[Array | None, ...], grad: Array) -> tuple[Array | None, ...]:
    x, expert_ids, weights, gate_up, down, _, _, layer = args
    if gate_up.dtype == jnp.int8:
        raise ValueError("expert_gemv has no gradient of int8 weights: train with the float ones.")

    def mlp(x: Array, weights: Array, gate_up: Array, down: Array) -> Array:
        return grouped.expert_mlp(x, expert_ids, weights, gate_up, down, layer)

    d_x, d_weights, d_gate_up, d_down = jax.vjp(mlp, x, weights, gate_up, down)[1](grad)
    return d_x, None, d_weights, d_gate_up, d_down, None, None, None


_expert_gemv.defvjp(_fwd, _bwd)
