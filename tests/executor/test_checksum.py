"""Weights are told from others by a checksum: of every bit, and of where it is."""

import jax
import jax.numpy as jnp
import numpy as np

from tml_jax.executor.checksum import checksum
from tml_jax.executor.executor import Executor


def test_every_change_changes_it() -> None:
    executor = Executor()
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4, 5)), jnp.float32)
    last = x.at[2, 3, 4].set(jnp.nextafter(x[2, 3, 4], jnp.inf))
    trees = [
        {"a": x, "b": x[0]},
        {"a": last, "b": x[0]},
        {"a": x.at[0, 0, 0].set(x[0, 0, 1]).at[0, 0, 1].set(x[0, 0, 0]), "b": x[0]},
        {"a": x.transpose(0, 2, 1), "b": x[0]},
        {"a": x.reshape(3, 20), "b": x[0]},
        {"c": x, "b": x[0]},
        {"a": x, "b": x[0].astype(jnp.bfloat16)},
        {"a": x, "b": jax.lax.bitcast_convert_type(x[0], jnp.int32)},
        {"a": x},
    ]
    found = [checksum(executor, tree) for tree in trees]
    assert len(set(found)) == len(trees)
    assert checksum(executor, {"b": x[0], "a": jnp.array(x)}) == found[0]
