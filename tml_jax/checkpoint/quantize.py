"""Weights as int8 on disk: symmetric, with a float32 scale for each output of a linear map, or row of a table.

A weight ``name`` is stored as int8 and ``name.scale``, whose size is 1 along the axes that share a scale. Those are a
matrix's input axes, as its declaration says (`InteractionModel.matrices`): layers and experts never share one.
"""

import dataclasses
from typing import Any

import numpy as np
from flax import traverse_util

from tml_jax.model.interaction import InteractionModel

SCALE = ".scale"
# Of what is no matrix, these are worth it. The router, which decides by small differences, and the attention profiles
# are small and keep their dtype, as norms and convolutions do.
_TABLES = ("text.table", "audio.table", "transformer.unembed")


def shared_axes(model: InteractionModel) -> dict[str, tuple[int, ...]]:
    """Of each weight that is stored as int8, by dotted path, the axes along which its values share a scale."""
    matrices = traverse_util.flatten_dict(model.matrices, sep=".")
    axes = {path: roles[0] for path, roles in matrices.items() if roles is not None}
    shapes = traverse_util.flatten_dict(model.abstract, sep=".")
    return axes | {path: (len(shapes[path].shape) - 1,) for path in _TABLES}


def scale_shape(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the scale of a weight whose values share one along `axes`."""
    return tuple(1 if i in axes else size for i, size in enumerate(shape))


def quantize(weight: Any, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """int8 values and their float32 scale, 1 along `axes`; the largest value becomes 127 or -127.

    A value that isn't finite spoils its scale and so all that share it: it never reads back as a number.
    """
    x = np.asarray(weight, np.float32)
    largest = np.max(np.abs(x), axis=axes, keepdims=True)
    scale = np.where(largest == 0, np.float32(1), largest / np.float32(127))
    with np.errstate(invalid="ignore"):
        return np.rint(x / scale).astype(np.int8), scale


@dataclasses.dataclass(frozen=True)
class Int8Weight:
    """A stored weight that reads as float32, a block at a time.

    Attributes:
      values: int8. scale: float32, of `scale_shape`. Both may be mapped files.
    """

    values: np.ndarray
    scale: np.ndarray
    dtype = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return self.values.shape

    def __getitem__(self, index: Any) -> np.ndarray:
        """A block of it; only that block, and its scales, are read.

        Args:
          index: a slice of each axis, or of the first ones; or a layer's number.
        """
        index = index if isinstance(index, tuple) else (index,)
        sizes = self.scale.shape[: len(index)]
        of_scale = tuple(
            slice(None) if n == 1 and isinstance(i, slice) else i for i, n in zip(index, sizes, strict=True)
        )
        return self.values[index] * self.scale[of_scale]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of it."""
        return np.asarray(self[()], dtype)
