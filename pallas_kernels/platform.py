"""Which implementation of an op is traced, and the TPU that it is traced for.

On a TPU the Pallas kernels run; on a GPU plain jnp in few large products; elsewhere plain jnp in loops that suit a
CPU. Tests and benches force another one:

    with platform.forced("interpret"):
        y = jax.jit(api.some_op)(x)

What is forced is read while tracing and is not part of jit's cache key: jit anew inside the block.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any, Literal

import jax
from jax.experimental.pallas import tpu as pltpu

# "interpret": the TPU kernel's arithmetic on any machine. "checked": the same, slowly, watching for races, reads of
# memory that was never written, and reads out of bounds.
Implementation = Literal["tpu", "interpret", "checked", "gpu", "cpu", "reference"]

_OF_PLATFORM: dict[str, Implementation] = {"tpu": "tpu", "gpu": "gpu", "cuda": "gpu", "rocm": "gpu"}

_forced: contextvars.ContextVar[Implementation | None] = contextvars.ContextVar("implementation", default=None)

# The name that a topology gives a chip ("v5p:2x2x1") -> its version, and the TensorCores of one jax device.
CHIPS: dict[str, tuple[pltpu.ChipVersion, int]] = {
    "v5e": (pltpu.ChipVersion.TPU_V5E, 1),
    "v5p": (pltpu.ChipVersion.TPU_V5P, 2),
    "v6e": (pltpu.ChipVersion.TPU_V6E, 1),
    "tpu7x": (pltpu.ChipVersion.TPU_7X, 1),
}


@contextlib.contextmanager
def forced(implementation: Implementation) -> Iterator[None]:
    """Traces every op inside the block with this implementation."""
    token = _forced.set(implementation)
    try:
        yield
    finally:
        _forced.reset(token)


def implementation() -> Implementation:
    """What an op is traced with here: what is forced, else by the mesh in use, else by the default backend."""
    if chosen := _forced.get():
        return chosen
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = device.platform if device else jax.default_backend()
    return _OF_PLATFORM.get(name, "cpu")


def interpret() -> Any:
    """The `interpret` argument of every `pl.pallas_call`."""
    if _forced.get() == "checked":
        return pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan", out_of_bounds_reads="raise")
    return _forced.get() == "interpret"


def compiler_params(dimension_semantics: tuple[str, ...], vmem_limit_bytes: int) -> pltpu.CompilerParams:
    """The `compiler_params` of every `pl.pallas_call`.

    Without checks of the bounds of DMAs: for each they cost several times the bundles of the DMA itself, a third of a
    live stream's cycles. The interpreter checks bounds in the tests.
    """
    return pltpu.CompilerParams(
        dimension_semantics=dimension_semantics, vmem_limit_bytes=vmem_limit_bytes, disable_bounds_checks=True
    )


def chip() -> pltpu.TpuInfo:
    """The TPU that is traced for; v5p's where a kernel is interpreted."""
    return pltpu.get_tpu_info() if implementation() == "tpu" else pltpu.get_tpu_info_for_chip(*CHIPS["v5p"])
