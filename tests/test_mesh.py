"""How devices are laid out as a mesh: on the torus of a slice, and over slices."""

import os

import jax
import numpy as np
import pytest
from jax.experimental import topologies

from pallas_kernels.static.compile import ENVIRONMENT
from tml_jax import sharding


def devices(topology, **kwargs):
    """Those of a TPU slice, or several, that aren't there."""
    pytest.importorskip("libtpu")
    os.environ.update(ENVIRONMENT)
    return topologies.get_topology_desc(platform="tpu", topology_name=topology, **kwargs).devices


def coordinates(mesh):
    """Of each device, [data, fsdp, expert, tensor, 3]."""
    return np.array([list(device.coords) for device in mesh.devices.flat]).reshape(*mesh.devices.shape, 3)


@pytest.mark.tpu_compile
def test_each_axis_lies_along_the_torus():
    where = coordinates(sharding.make_mesh((1, 4, 8, 1), devices("v5p:2x4x4")))
    for axis in (1, 2):
        # From one to the next along an axis never changes a coordinate that the other axis runs along.
        moved = np.diff(where, axis=axis).any(axis=tuple(i for i in range(4)))
        assert moved.any() and not (moved & np.diff(where, axis=3 - axis).any(axis=(0, 1, 2, 3))).any()
    assert len({tuple(c) for c in where.reshape(-1, 3)}) == 32


@pytest.mark.tpu_compile
def test_slices_differ_along_data_alone():
    mesh = sharding.make_mesh((4, 1, 2, 1), devices("v5p:2x2x1", num_slices=2))
    found = np.array([device.slice_index for device in mesh.devices.flat]).reshape(mesh.devices.shape)
    assert found[:, 0, 0, 0].tolist() == [0, 0, 1, 1]
    assert (found == found[:, :1, :1, :1]).all()
    with pytest.raises(ValueError, match=r"`data`, its first size, evenly over the 2 slices"):
        sharding.make_mesh((1, 4, 2, 1), mesh.devices.flatten())


@pytest.mark.tpu_compile
@pytest.mark.parametrize(("shape", "count"), [((1, 2, 8, 2), 32), ((3, 1, 1, 1), 3), ((5, 1, 1, 1), 5)])
def test_what_does_not_lie_on_the_torus_is_refused(shape, count):
    with pytest.raises(ValueError, match=rf"doesn't lie on these {count} devices"):
        sharding.make_mesh(shape, devices("v5p:2x4x4")[:count])


def test_sizes_have_to_be_those_of_the_devices():
    with pytest.raises(ValueError, match=r"4 sizes .* whose product is the 1 devices"):
        sharding.make_mesh((2, 1, 1, 1), jax.devices()[:1])
