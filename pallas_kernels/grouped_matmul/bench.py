"""The grouped matmul beside what else a user could pick, forward and backward, in one run.

`lax.ragged_dot` is the library's; the batched einsum does the same useful work on equal groups, with no routing to
deal with: the bound.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pallas_kernels import timing
from pallas_kernels.grouped_matmul import api

TOKENS, TOP_K, EXPERTS, K, N = 4096, 2, 16, 256, 512


def _batched_einsum(lhs: Array, rhs: Array, sizes: Array) -> Array:
    del sizes  # equal groups
    y = jnp.einsum("emk,ekn->emn", lhs.reshape(rhs.shape[0], -1, lhs.shape[1]), rhs)
    return y.reshape(lhs.shape[0], -1)


def _gradients(f: Callable[..., Array]) -> Callable[..., tuple[Array, Array]]:
    def run(lhs: Array, rhs: Array, sizes: Array, grad: Array) -> tuple[Array, Array]:
        return jax.vjp(lambda a, b: f(a, b, sizes), lhs, rhs)[1](grad)

    return run


def measure(repeats: int) -> dict[str, float]:
    """Medians in seconds and ratios, by name; a ratio above one means that ours is the faster."""
    rng = np.random.default_rng(0)
    m = TOKENS * TOP_K
    lhs, grad = (jnp.asarray(rng.standard_normal((m, size)), jnp.float32) for size in (K, N))
    rhs = jnp.asarray(rng.standard_normal((EXPERTS, K, N)) / np.sqrt(K), jnp.float32)
    sizes = jnp.asarray(rng.multinomial(m, np.ones(EXPERTS) / EXPERTS), jnp.int32)
    others = {"ragged_dot": jax.lax.ragged_dot, "batched_einsum": _batched_einsum}
    result: dict[str, float] = {}
    for direction in ("forward", "backward"):
        runs = {}
        for name, f in {"ours": api.grouped_matmul, **others}.items():
            if direction == "forward":
                runs[name] = lambda run=jax.jit(f): run(lhs, rhs, sizes)
            else:
                runs[name] = lambda run=jax.jit(_gradients(f)): run(lhs, rhs, sizes, grad)
        seconds = timing.interleaved(runs, repeats)
        result |= {f"grouped_matmul.{direction}.{name}_s": value for name, value in seconds.items()}
        result |= {f"grouped_matmul.{direction}.speed_over_{name}": seconds[name] / seconds["ours"] for name in others}
    return result
