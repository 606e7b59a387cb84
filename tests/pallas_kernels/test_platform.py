"""Which implementation is traced, and that the checked one sees what it is there to see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import platform
from tests.pallas_kernels.checked import no_races


def copy_through_scratch(x, *, waits):
    """Doubles x by way of VMEM; without its wait it reads what may not have arrived."""

    def kernel(x_hbm, y, scratch, sem):
        copy = pltpu.make_async_copy(x_hbm, scratch, sem)
        copy.start()
        if waits:
            copy.wait()
        y[...] = 2 * scratch[...]
        if not waits:
            copy.wait()

    return pl.pallas_call(
        kernel,
        in_specs=[pl.BlockSpec(memory_space=pl.ANY)],
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        scratch_shapes=[pltpu.VMEM(x.shape, x.dtype), pltpu.SemaphoreType.DMA(())],
        interpret=platform.interpret(),
    )(x)


def test_the_checked_implementation_sees_a_race():
    x = jnp.ones((8, 128))
    with platform.forced("checked"):
        with no_races():
            np.testing.assert_array_equal(copy_through_scratch(x, waits=True), 2 * x)
        with pytest.raises(AssertionError), no_races():
            np.asarray(copy_through_scratch(x, waits=False))
        # Neither is a kernel that raced before one that didn't forgotten.
        with pytest.raises(AssertionError), no_races():
            np.asarray(copy_through_scratch(x, waits=False))
            np.asarray(copy_through_scratch(x, waits=True))


def test_without_a_tpu_the_cpus_implementation_is_traced():
    assert platform.implementation() == "cpu" and platform.interpret() is False
    with platform.forced("interpret"):
        assert platform.implementation() == "interpret" and platform.interpret() is True
        with platform.forced("reference"):
            assert platform.implementation() == "reference"
    assert platform.implementation() == "cpu"


@pytest.mark.parametrize(("backend", "implementation"), [("tpu", "tpu"), ("gpu", "gpu"), ("cpu", "cpu")])
def test_the_platform_chooses(monkeypatch, backend, implementation):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert platform.implementation() == implementation
