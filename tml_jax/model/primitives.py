"""The smallest parts: the declaration of a weight, linear maps, RMS norm and the short convolution.

A weight is declared once, by `Declare`: shape, logical axes, initialiser and, for a matrix, which axes go in and
which come out. Abstract arrays, shardings, initial values and the optimiser's view of it all come from that
declaration. `Declare.stack` adds a leading "layers" axis, for layers that are scanned over.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from tml_jax.model.adapted import contract

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


def in_tiles(f: Callable[..., Any], tile: int | None, lead: int, *args: Any) -> Any:
    """Calls `f` with all rows, or `tile` rows at a time, so that a row's bits don't depend on how many there are.

    A compiler sums a row of a small matrix in another order than the same row of a large one. With tiles it compiles
    one shape. There are always two tiles or more: a loop that turns once would be dissolved into what is around it.

    Args:
      f: rowwise: of arrays [*rows, ...] to arrays [*rows, ...]; it gets tiles as rows [1, tile].
      tile: rows at a time. None: all.
      lead: how many leading axes of the arguments are rows.
      args: arrays, or trees of arrays, with the same leading axes.
    """
    if tile is None:
        return f(*args)
    shape = jax.tree.leaves(args)[0].shape[:lead]
    rows = math.prod(shape)
    tiles = max(2, -(-rows // tile))

    def split(x: Array) -> Array:
        x = x.reshape(rows, *x.shape[lead:])
        x = jnp.pad(x, ((0, tiles * tile - rows), *((0, 0),) * (x.ndim - 1)))
        return x.reshape(tiles, 1, tile, *x.shape[1:])

    y = jax.lax.map(lambda tiled: f(*tiled), jax.tree.map(split, args))
    return jax.tree.map(lambda x: x.reshape(tiles * tile, *x.shape[3:])[:rows].reshape(*shape, *x.shape[3:]), y)


def later(x: Float[Array, "b t *d"], steps: int) -> Float[Array, "b t *d"]:
    """Each row what was `steps` before, zeros first; one operation, for a cut axis sends but its edges."""
    return jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (steps, -steps, 0), *[(0, 0, 0)] * (x.ndim - 2)])


class Linear(nnx.Module):
    """``y = x . w`` over the last axis of x; w is [in, *out], without a bias."""

    def __init__(self, make: Declare, shape: tuple[int, ...], axes: Axes, *, gain: float = 1.0) -> None:
        self.w = make.matrix(shape, axes, gain=gain)

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b _"]:
        """x [..., in] -> [..., *out]."""
        return contract(x, self.w.get_value())


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

    def __init__(self, make: Declare, size: int, width: int, axis: str | None, row_tile: int | None = None) -> None:
        self.w = make.table((width, size), (None, axis), 0.5 / width, dtype=jnp.float32)
        self.row_tile = row_tile

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
        if state is None:
            taps = [later(y, width - 1 - tap) for tap in range(width)]
        else:
            padded = jnp.concatenate([state, y], axis=1)
            taps = [jax.lax.slice_in_dim(padded, tap, tap + length, axis=1) for tap in range(width)]
        out = in_tiles(lambda y, *taps: sum((w[i] * x for i, x in enumerate(taps)), y), self.row_tile, 2, y, *taps)
        if state is not None:
            index = count[:, None] + jnp.arange(width - 1)
            state = jnp.take_along_axis(padded, index[:, :, None], axis=1)
        return out.astype(x.dtype), state
