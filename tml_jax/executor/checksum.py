"""A checksum of weights, wherever they lie: two models that differ in one bit of one weight have different ones."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tml_jax.executor.executor import Executor


def checksum(executor: Executor, params: Any) -> str:
    """Of a tree of arrays, their bits and places, dtypes, shapes and paths: 16 hexadecimal digits.

    The same however the arrays are cut over devices, for integers are summed. Reads each array once.
    """
    digest, program = hashlib.sha256(), executor.program(_sum)  # compiled once for each shape
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for (path, x), total in zip(leaves, jax.device_get([program(x) for _, x in leaves]), strict=True):
        digest.update(f"{jax.tree_util.keystr(path)} {np.dtype(x.dtype).name} {x.shape} {int(total)}\n".encode())
    return digest.hexdigest()[:16]


def _sum(x: jax.Array) -> jax.Array:
    """Sum modulo 2^32 of the elements' bits, each times an odd number of its place: one element's change changes it."""
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis in range(x.ndim):
        place = place * jnp.uint32(16_777_619) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)
