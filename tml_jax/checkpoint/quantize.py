"""Weights made int8: symmetric, with a float32 scale for each output of a linear map, or row of a table.

A weight ``name`` is stored as int8 and ``name.scale``, whose size is 1 along the axes that share a scale
(`model.quantized`).
"""

from typing import Any

import numpy as np

SCALE = ".scale"


def quantize(weight: Any, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """int8 values and their float32 scale, 1 along `axes`; the largest value becomes 127 or -127.

    A value that isn't finite spoils its scale and so all that share it: it never reads back as a number.
    """
    x = np.asarray(weight, np.float32)
    largest = np.max(np.abs(x), axis=axes, keepdims=True)
    scale = np.where(largest == 0, np.float32(1), largest / np.float32(127))
    with np.errstate(invalid="ignore"):
        return np.rint(x / scale).astype(np.int8), scale
