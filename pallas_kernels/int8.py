"""A weight of int8 values with a float32 scale for each output: in a file, in memory and in a program's arguments.

Products are of the values, in the dtype of what they multiply, and the scale is a factor of the result: exactly the
product with the weight that is stored, since what shares a scale is summed up.
"""

import dataclasses
import functools
import re
import string
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@functools.partial(jax.tree_util.register_dataclass, data_fields=["values", "scale"], meta_fields=["dtype"])
@dataclasses.dataclass(frozen=True)
class Int8Weight:
    """``values * scale``, of numpy's arrays, mapped files or JAX's; a tree of both, and an array to whoever asks.

    Attributes:
      values: int8. scale: float32, of size 1 along the axes that share one. dtype: of the array that it stands for.
    """

    values: Any
    scale: Any
    dtype: Any = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return self.values.shape

    @property
    def ndim(self) -> int:
        """Of the weight."""
        return self.values.ndim

    @property
    def shared(self) -> tuple[int, ...]:
        """The axes that share a scale, and are there to share it."""
        return tuple(axis for axis, size in enumerate(self.scale.shape) if size < self.shape[axis])

    def __getitem__(self, index: Any) -> "Int8Weight":
        """A part of it, still int8.

        Args:
          index: of the first axes: slices, numbers, or on one axis that shares no scale an array of numbers.
        """
        if index is ...:
            return self
        index = index if isinstance(index, tuple) else (index,)
        sizes = self.scale.shape[: len(index)]
        alone = (slice(None) if isinstance(i, slice) else 0 for i in index)
        of_scale = tuple(one if n == 1 else i for one, n, i in zip(alone, sizes, index, strict=True))
        return dataclasses.replace(self, values=self.values[index], scale=self.scale[of_scale])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The weight."""
        return np.asarray(np.asarray(self.values) * np.asarray(self.scale), dtype or self.dtype)

    def __jax_array__(self) -> Array:
        """The weight."""
        return (self.values * self.scale).astype(self.dtype)

    def einsum(self, spec: str, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """``jnp.einsum(spec, x, weight)`` in x's dtype; the result's axes are named, but for a leading ellipsis.

        Where an axis is summed that shares no scale, such as that of experts, that sum is the last step.
        """
        of_x, of_w, out = re.split(",|->", spec)
        sizes = dict(zip(of_w, self.scale.shape, strict=True))
        summed = "".join(axis for axis in of_w if axis not in out and sizes[axis] > 1)
        lead, named = ("...", out[3:]) if out.startswith("...") else ("", out)
        named = summed + named
        y = jnp.einsum(f"{of_x},{of_w}->{lead}{named}", x, self.values.astype(x.dtype))
        scale = jnp.einsum(f"{of_w}->{''.join(axis for axis in named if axis in of_w)}", self.scale)
        y = y.astype(jnp.float32) * scale.reshape([sizes.get(axis, 1) for axis in named])
        first = y.ndim - len(named)
        return jnp.sum(y, axis=tuple(range(first, first + len(summed)))).astype(x.dtype)

    def contract(self, x: Float[Array, "..."], axes: int) -> Float[Array, "..."]:
        """``x . W`` over the last `axes` of x and the first of the weight, in x's dtype."""
        names = string.ascii_lowercase[: self.ndim]
        return self.einsum(f"...{names[:axes]},{names}->...{names[axes:]}", x)

    def specs(self, cut: jax.sharding.PartitionSpec) -> "Int8Weight":
        """How its arrays are cut where the weight is cut so; a like tree."""
        parts = (part if n > 1 else None for part, n in zip(cut, self.scale.shape, strict=True))
        return dataclasses.replace(self, values=cut, scale=jax.sharding.PartitionSpec(*parts))


Weight = Array | Int8Weight


def einsum(spec: str, x: Float[Array, "..."], weight: Any) -> Float[Array, "..."]:
    """``jnp.einsum(spec, x, weight)``; of an int8 weight, `Int8Weight.einsum`."""
    return weight.einsum(spec, x) if isinstance(weight, Int8Weight) else jnp.einsum(spec, x, weight)


def split(weight: Any) -> tuple[Array, Array | None]:
    """The values of matrices [..., in, out] and the scales of their columns [..., out]; None of a float weight."""
    return (weight.values, jnp.squeeze(weight.scale, -2)) if isinstance(weight, Int8Weight) else (weight, None)
