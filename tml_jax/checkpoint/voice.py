"""The voice of a saved model, where it has one: ``vocoder.safetensors``, the weights of `streams.magnitudes`."""

import os
import pathlib
import shutil
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from tml_jax.checkpoint.tensors import TensorSpec, read_file, write_file
from tml_jax.streams import magnitudes
from tml_jax.streams.micro_turn import StreamSpec

FILE = "vocoder.safetensors"


def read_voice(directory: str | os.PathLike[str], spec: StreamSpec) -> dict[str, np.ndarray] | None:
    """The weights in a model's folder, float32; None where it has none.

    Args:
      directory: the folder.
      spec: of the model's stream.

    Raises:
      ValueError: the file is damaged, or of another stream's sizes.
    """
    path = pathlib.Path(directory) / FILE
    if not path.is_file():
        return None
    found, wanted = read_file(path), magnitudes.shapes(spec)
    for name in sorted(found.keys() | wanted.keys()):
        there = found[name].shape if name in found else None
        if there != wanted.get(name):
            raise ValueError(
                f"{path} is not of this model's stream: {name} is {there or 'absent'} in the file, and "
                f"{wanted.get(name, 'absent')} is needed."
            )
    weights = {name: np.asarray(x, np.float32) for name, x in found.items()}
    if not all(np.isfinite(x).all() for x in weights.values()):
        raise ValueError(f"{path} is damaged: not all of its weights are numbers.")
    return weights


def copy_voice(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies the voice from one model's folder to another's, where there is one."""
    if (source / FILE).is_file():
        shutil.copyfile(source / FILE, target / FILE)


def write_voice(directory: str | os.PathLike[str], weights: Mapping[str, np.ndarray]) -> pathlib.Path:
    """Writes weights, in bfloat16, to a model's folder, made where it isn't there; returns the file."""
    path = pathlib.Path(directory) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {name: np.asarray(x).astype(ml_dtypes.bfloat16) for name, x in weights.items()}
    write_file(path, [TensorSpec(name, x.shape, x.dtype) for name, x in stored.items()], lambda name: (stored[name],))
    return path
