"""The smallest parts: the declaration of a weight, linear maps, RMS norm and the short convolution.

A weight is declared once, by `Declare`: shape, logical axes, initialiser and, for a matrix, which axes go in and
which come out. Abstract arrays, shardings, initial values and the optimiser's view of it all come from that
declaration. `Declare.stack` adds a leading "layers" axis, for layers that are scanned over.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

Axes = tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class Declare:
    """Declares weights. `repeats` > 0 declares them for that many stacked layers at once."""

    rngs: nnx.Rngs
    dtype: Any = jnp.float32
    repeats: int = 0

    def stack(self, repeats: int) -> "Declare":
        """The same, for `repeats` stacked layers."""
        return dataclasses.replace(self, repeats=repeats)

    def table(self, shape: tuple[int, ...], axes: Axes, std: float, *, dtype: Any = None) -> nnx.Param:
        """A weight that is looked up, or used element by element: normal, of standard deviation `std`."""
        return self._param(self._normal(std), shape, axes, dtype)

    def matrix(
        self,
        shape: tuple[int, ...],
        axes: Axes,
        inputs: tuple[int, ...] = (0,),
        batch: tuple[int, ...] = (),
        gain: float = 1.0,
    ) -> nnx.Param:
        """A linear map from its `inputs` axes to the rest, one for each index of its `batch` axes.

        Normal, of standard deviation ``gain / sqrt(fan in)``.
        """
        std = gain / math.sqrt(math.prod(shape[i] for i in inputs))
        outputs = tuple(i for i in range(len(shape)) if i not in inputs + batch)
        shift = int(self.repeats > 0)
        roles = (tuple(i + shift for i in inputs), tuple(i + shift for i in outputs))
        return self._param(self._normal(std), shape, axes, None, roles)

    def full(self, shape: tuple[int, ...], axes: Axes, value: float, *, dtype: Any = None) -> nnx.Param:
        """A weight that starts as a constant."""
        return self._param(lambda s, d: jnp.full(s, value, d), shape, axes, dtype)

    def _normal(self, std: float) -> Any:
        return lambda shape, dtype: std * jax.random.normal(self.rngs.params(), shape, dtype)

    def _param(self, init: Any, shape: tuple[int, ...], axes: Axes, dtype: Any, roles: Any = None) -> nnx.Param:
        assert len(shape) == len(axes), (shape, axes)
        if self.repeats:
            shape, axes = (self.repeats, *shape), ("layers", *axes)
        return nnx.Param(init(shape, dtype or self.dtype), axes=axes, matrix=roles)


class Linear(nnx.Module):
    """``y = x . w`` over the last axis of x; w is [in, *out], without a bias."""

    def __init__(self, make: Declare, shape: tuple[int, ...], axes: Axes, *, gain: float = 1.0) -> None:
        self.w = make.matrix(shape, axes, gain=gain)

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b _"]:
        """x [..., in] -> [..., *out]."""
        return jnp.tensordot(x, self.w[...], axes=1)


class RMSNorm(nnx.Module):
    """Root-mean-square norm over the last axis, computed in float32 (Zhang & Sennrich 2019)."""

    def __init__(self, make: Declare, size: int, eps: float = 1e-6, axis: str | None = None) -> None:
        self.w = make.full((size,), (axis,), 1.0)
        self.eps = eps

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """x [..., size] -> the same shape and dtype."""
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return self.w[...] * y.astype(x.dtype)


class ShortConv(nnx.Module):
    """Depthwise causal convolution with a residual, in float32; it remembers its last ``width - 1`` inputs."""

    def __init__(self, make: Declare, size: int, width: int, axis: str | None) -> None:
        self.w = make.table((width, size), (None, axis), 0.5 / width, dtype=jnp.float32)

    def __call__(
        self, x: Float[Array, "b t d"], state: Float[Array, "b w d"] | None, count: Int[Array, " b"] | None
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b w d"] | None]:
        """Convolves a block.

        Args:
          x: [B, T, D] new inputs.
          state: [B, width - 1, D] float32, the inputs before; None: the sequence starts here (zeros, nothing kept).
          count: [B], how many of the T inputs are real; they come first. None with `state` None.

        Returns:
          [B, T, D] in x's dtype, and the new state: the last ``width - 1`` real inputs.
        """
        w = self.w[...]
        width, length = w.shape[0], x.shape[1]
        y = x.astype(jnp.float32)
        before = jnp.zeros((x.shape[0], width - 1, x.shape[2]), jnp.float32) if state is None else state
        padded = jnp.concatenate([before, y], axis=1)
        out = y
        for tap in range(width):
            out = out + w[tap] * jax.lax.slice_in_dim(padded, tap, tap + length, axis=1)
        if state is not None:
            index = count[:, None] + jnp.arange(width - 1)
            state = jnp.take_along_axis(padded, index[:, :, None], axis=1)
        return out.astype(x.dtype), state
