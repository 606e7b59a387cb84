"""Named real shapes: the routed experts of the 276B model (configs/inkling_small.py) on one device."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.grouped_matmul import tpu_rows, tpu_weights

D, F, TOP_K = 4096, 2048, 6


@dataclasses.dataclass(frozen=True)
class Workload:
    """`rows` rows sorted over `experts` experts, through gate and up and through down, in bfloat16."""

    name: str
    rows: int
    experts: int

    @property
    def weight_bytes(self) -> int:
        """Of the smaller weight, down."""
        return 2 * self.experts * F * D

    def calls(self) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
        """Each kernel call of a training step: a function, and the shapes of its arguments."""

        def array(*shape: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, jnp.bfloat16)

        m, e = self.rows, self.experts
        x, hidden, both = array(1, m, D), array(1, m, F), array(2, m, F)
        gate_up, down = array(e, 2, D, F), array(e, 1, F, D)
        sizes, scale = jax.ShapeDtypeStruct((e,), jnp.int32), jax.ShapeDtypeStruct((m,), jnp.float32)
        rows, weights = tpu_rows.grouped_planes, tpu_weights.grouped_transposed
        return {
            "gate_up": (lambda a, w, s: rows(a, w, s, combine="swiglu"), (x, gate_up, sizes)),
            "down": (rows, (hidden, down, sizes, scale)),
            "gate_up_again": (rows, (x, gate_up, sizes)),
            "gate_up_d_lhs": (lambda a, w, s: rows(a, w, s, combine="sum", transpose=True), (both, gate_up, sizes)),
            "down_d_lhs": (lambda a, w, s: rows(a, w, s, transpose=True), (x, down, sizes)),
            "gate_up_d_weights": (weights, (array(m, D), both, sizes)),
            "down_d_weights": (weights, (array(m, F), x, sizes)),
        }


WORKLOADS = (
    Workload("train_8192", 8192 * TOP_K, 256),
    Workload("train_8192_32_experts", 8192 * TOP_K, 32),
    Workload("prefill_2048", 2048 * TOP_K, 256),
)
