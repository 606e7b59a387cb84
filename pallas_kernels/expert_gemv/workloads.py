"""Named real shapes: the routed experts of the 276B model (configs/inkling_small.py) while it decodes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.expert_gemv import tpu

D, F, EXPERTS, TOP_K = 4096, 2048, 256, 6


@dataclasses.dataclass(frozen=True)
class Workload:
    """`tokens` tokens of a step through `experts` experts; bfloat16, the weights perhaps int8."""

    name: str
    tokens: int
    int8: bool = False
    experts: int = EXPERTS

    @property
    def weights_dtype(self) -> Any:
        """Of gate_up and down."""
        return jnp.int8 if self.int8 else jnp.bfloat16

    def call(self) -> tuple[Callable[..., Any], tuple[jax.ShapeDtypeStruct, ...]]:
        """The kernel, and the shapes of its arguments."""

        def array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, dtype)

        e = self.experts
        ids, weights = array(jnp.int32, self.tokens, TOP_K), array(jnp.float32, self.tokens, TOP_K)
        gate_up, down = array(self.weights_dtype, e, 2, D, F), array(self.weights_dtype, e, F, D)
        scales = (array(jnp.float32, e, 2, F), array(jnp.float32, e, D)) if self.int8 else ()
        return tpu.expert_gemv, (array(jnp.bfloat16, self.tokens, D), ids, weights, gate_up, down, *scales)

    def expert_ids(self, seed: int = 0) -> np.ndarray:
        """Choices [T, k] of a balanced router among `EXPERTS`; those past `experts` are on other devices."""
        rng = np.random.default_rng(seed)
        chosen = np.argsort(rng.random((self.tokens, EXPERTS)), axis=1)[:, :TOP_K]
        return np.minimum(chosen, self.experts).astype(np.int32)


_SHAPES = {
    "decode_1_session": 1,
    "decode_16_sessions": 16,
    "decode_64_sessions": 64,
    # A silent micro-turn: four tokens of sound and the decision to listen.
    "micro_turn_16_sessions": 16 * 5,
}
WORKLOADS = (
    *(Workload(name, tokens) for name, tokens in _SHAPES.items()),
    *(Workload(f"{name}_int8", tokens, int8=True) for name, tokens in _SHAPES.items()),
    Workload("decode_64_sessions_32_experts", 64, experts=32),
)
