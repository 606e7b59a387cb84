"""Compiles one function for one TPU chip that isn't there. For tests marked `tpu_compile`."""

import os
import re

import jax
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pallas_kernels.static.chips import TOPOLOGIES
from pallas_kernels.static.compile import ENVIRONMENT
from tml_jax.perf import hlo


def compile_for(chip, f, *args, donate=()):
    """The compiled `f` for arguments of these shapes on one device of the chip; `donate` gives arguments away."""
    pytest.importorskip("libtpu")
    os.environ.update(ENVIRONMENT)
    devices = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip]).devices
    mesh = Mesh(np.array(devices[:1]), ("device",))
    placed = NamedSharding(mesh, PartitionSpec())
    args = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed), args)
    with jax.set_mesh(mesh):
        return jax.jit(f, donate_argnums=donate).lower(*args).compile()


def large_copies(text, least):
    """Copies, transposes and fusions that make an array of `least` bytes or more."""
    made = re.findall(r"= (\S+) (?:copy|transpose|fusion|copy-start|pad|slice)\(", text)
    return [result for result in made if hlo.num_bytes(result) >= least]
