"""Grouped matmul on a TPU: XLA's own grouped kernel behind `lax.ragged_dot`.

The compiler makes one Mosaic call of it (libtpu 0.0.42, the one that this jax pins), whose loop keeps the matrix
unit about as busy as the library kernels do. On a CPU the same operation multiplies every row by every expert.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.grouped_matmul import routing


def grouped_matmul(
    lhs: Float[Array, "m k"], rhs: Float[Array, "e k n"], group_sizes: Int[Array, " e"]
) -> Float[Array, "m n"]:
    """See `api.grouped_matmul`."""
    y = jax.lax.ragged_dot(lhs, rhs, group_sizes)
    return jnp.where(jnp.arange(lhs.shape[0])[:, None] < jnp.sum(group_sizes), y, 0)


expert_mlp = functools.partial(routing.sorted_mlp, grouped_matmul)
