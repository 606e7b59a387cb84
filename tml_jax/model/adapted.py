"""A weight with a low-rank addition, as it lies among a model's params while LoRA trains it (`model.lora`).

Linear maps `contract` with it, which keeps the factors apart: neither the sum nor a gradient of its size is ever there.
Experts, whose kernels take whole matrices, are summed for the layer at hand, and again in the backward pass, as PEFT
does; the routed ones on each device its own, so that devices add up gradients of the factors alone.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from pallas_kernels.int8 import Int8Weight


@dataclasses.dataclass(frozen=True)
class LowRank:
    """How the addition to a layer's weight lies: A is [*batch, *inputs, rank] and B [*batch, rank, *outputs].

    `batch`, `inputs` and `outputs` are axes of the weight; batch counts experts. Stacked over layers, all three have
    one more axis, the first.
    """

    batch: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def of_a(self, values: Sequence[Any], rank: Any) -> tuple[Any, ...]:
        """A's own of what a weight has for each axis: sizes, logical axes or slices."""
        stack, values = self._split(values)
        return (*stack, *(values[i] for i in self.batch + self.inputs), rank)

    def of_b(self, values: Sequence[Any], rank: Any) -> tuple[Any, ...]:
        """The same of B."""
        stack, values = self._split(values)
        return (*stack, *(values[i] for i in self.batch), rank, *(values[i] for i in self.outputs))

    def product(self, a: Any, b: Any) -> Any:
        """``A B`` in the weight's own order of axes, of numpy's arrays or JAX's."""
        lead = a.ndim - 1 - len(self.inputs)
        y = a.reshape(*a.shape[:lead], -1, a.shape[-1]) @ b.reshape(*b.shape[: lead + 1], -1)
        y = y.reshape(*a.shape[:-1], *b.shape[lead + 1 :])
        stack, order = lead - len(self.batch), self.batch + self.inputs + self.outputs
        return y.transpose(*range(stack), *(stack + order.index(i) for i in range(len(order))))

    def _split(self, values: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        stack = len(values) - len(self.batch + self.inputs + self.outputs)
        return values[:stack], values[stack:]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["base", "a", "b"], meta_fields=["low_rank", "scale"])
@dataclasses.dataclass(frozen=True)
class Adapted:
    """A weight with an addition; it lies in a model's params as an array does and is summed where it is used."""

    base: Array
    a: Array
    b: Array
    low_rank: LowRank
    scale: float

    def __getitem__(self, index: Any) -> Array:
        """A part of the sum, made in float32 and rounded once to the base's dtype."""
        added = self.scale * self.low_rank.product(self.a, self.b)
        return (self.base.astype(jnp.float32) + added).astype(self.base.dtype)[index]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return self.base.shape

    def contract(self, x: Float[Array, "..."], axes: int) -> Float[Array, "..."]:
        """``x . W`` over the last `axes` of x and the first of the weight, which are all of its inputs."""
        a, b = self.a.astype(x.dtype), self.b.astype(x.dtype)
        return jnp.tensordot(x, self.base, axes) + self.scale * jnp.tensordot(jnp.tensordot(x, a, axes), b, 1)

    def specs(self, cut: PartitionSpec) -> "Adapted":
        """How its arrays are cut where the weight is cut so; a like tree."""
        a, b = self.low_rank.of_a(tuple(cut), None), self.low_rank.of_b(tuple(cut), None)
        return dataclasses.replace(self, base=cut, a=PartitionSpec(*a), b=PartitionSpec(*b))


def contract(x: Float[Array, "..."], weight: Any, axes: int = 1) -> Float[Array, "..."]:
    """``x . weight`` over the last `axes` of x and the first of the weight: an array, `Adapted` or int8."""
    return weight.contract(x, axes) if isinstance(weight, Adapted | Int8Weight) else jnp.tensordot(x, weight, axes)
