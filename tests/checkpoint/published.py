"""Synthetic checkpoints in the published layout."""

import json
import pathlib
import zlib

import ml_dtypes
import numpy as np

from tml_jax.checkpoint.huggingface import config_to_hf, entries
from tml_jax.checkpoint.tensors import TensorFiles, TensorSpec, cut_into_shards, write_tensors
from tml_jax.model.config import InteractionConfig

SHARDS = 6


def publish(directory: pathlib.Path, config: InteractionConfig, *, heads: bool) -> None:
    """Writes a checkpoint of six shards with bfloat16 weights of random bits, small and finite.

    Args:
      directory: made.
      config: the model's sizes.
      heads: with our own parts, and with their sizes in the config; else as Inkling is published.
    """
    ours = ("interaction.",) if not heads else ()
    dtype = np.dtype(ml_dtypes.bfloat16)
    specs = [TensorSpec(e.name, e.published_shape, dtype) for e in entries(config) if not e.name.startswith(ours)]

    def pieces(name: str) -> list[np.ndarray]:
        spec = next(spec for spec in specs if spec.name == name)
        bits = np.random.default_rng(zlib.crc32(name.encode())).integers(0x3C00, 0x3D80, spec.shape, np.uint16)
        return [bits.view(dtype)]

    # Tensors are not cut: somewhat more than a sixth in each.
    sixth = sum(spec.nbytes for spec in specs) / SHARDS
    sizes = (int(sixth * factor) for factor in np.arange(1, 2, 0.01))
    size = next(size for size in sizes if len(cut_into_shards(specs, size)) == SHARDS)
    write_tensors(directory, specs, pieces, max_shard_bytes=size)
    hf = config_to_hf(config)
    if not heads:
        del hf["interaction"]
    (directory / "config.json").write_text(json.dumps(hf))


def tensors(directory: pathlib.Path) -> dict[str, bytes]:
    """What a checkpoint holds: name -> dtype, shape and bits."""
    files = TensorFiles(directory)
    return {name: repr(files.spec(name)).encode() + x.tobytes() for name, x in files.items()}
