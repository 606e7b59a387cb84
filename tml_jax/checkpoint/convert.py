"""Between checkpoints in the published layout and saved models, a layer at a time and bit for bit.

A saved model can also be saved again with its weights in another dtype, which rounds them.
"""

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np

from tml_jax.checkpoint import huggingface, store
from tml_jax.checkpoint.tensors import DEFAULT_SHARD_BYTES, TensorSpec, write_tensors
from tml_jax.model.config import InteractionConfig, text_config_from_hf
from tml_jax.model.interaction import InteractionModel

Path = str | os.PathLike[str]


def is_published(directory: Path) -> bool:
    """Whether a directory holds a checkpoint in the published layout (True) or a saved model (False).

    Raises:
      ValueError: it has no readable ``config.json``.
    """
    config = huggingface.read_json(pathlib.Path(directory) / store.CONFIG_FILE)
    return "text_config" in config or "model_type" in config


def to_saved_model(
    source: Path, target: Path, *, seed: int = 0, max_shard_bytes: int = DEFAULT_SHARD_BYTES
) -> huggingface.Report:
    """Published layout -> saved model. Every weight keeps its stored dtype, so that the way back is exact.

    Args:
      source: with ``config.json`` and, if there is one, ``tokenizer.json``.
      target: an empty or new directory.
      seed: of the interaction heads, where the checkpoint has none.
      max_shard_bytes: of a weights file.

    Raises:
      ValueError: the checkpoint is damaged or is not of its config, its tokenizer isn't, or the target isn't empty;
        nothing was written then.
    """
    checkpoint = huggingface.HuggingFaceCheckpoint(source)
    target = _new_directory(source, target, checkpoint.config)
    model = InteractionModel(checkpoint.config)
    fresh = huggingface.fresh_params(model, checkpoint.report.fresh, seed)
    specs = [
        TensorSpec(path, x.shape, np.dtype(x.dtype) if path in fresh else checkpoint.dtype(path))
        for path, x in huggingface.flatten(model.abstract).items()
    ]
    dtypes = {spec.name: spec.dtype for spec in specs}

    def pieces(path: str) -> Iterator[np.ndarray]:
        if path in fresh:
            yield np.asarray(fresh[path])
            return
        for layer in checkpoint.layers(path):
            yield layer.astype(dtypes[path], copy=False)

    write_tensors(target, specs, pieces, max_shard_bytes=max_shard_bytes)
    _copy(source, target, store.CONFIG_FILE, store.PUBLISHED_FILE)
    store.write_config(target, checkpoint.config)
    return checkpoint.report


def to_published(source: Path, target: Path, *, max_shard_bytes: int = DEFAULT_SHARD_BYTES) -> None:
    """Saved model -> published layout, in the stored dtypes; int8 weights as the float32 that they stand for.

    A model that was imported has the ``config.json`` that it came with, word for word, and ours beside it.

    Raises:
      ValueError: as `to_saved_model`.
    """
    config, weights = store.open_model(source)
    published = _published_config(pathlib.Path(source) / store.PUBLISHED_FILE, config)
    target = _new_directory(source, target, config)
    huggingface.export_params(target, config, weights, published=published, max_shard_bytes=max_shard_bytes)


def to_dtype(source: Path, target: Path, dtype: str, *, max_shard_bytes: int = DEFAULT_SHARD_BYTES) -> None:
    """Saved model -> saved model, its weights in another dtype, as `store.write_weights`.

    Raises:
      ValueError: the source is no saved model, or as `to_saved_model`.
    """
    if is_published(source):
        raise ValueError(f"{source} is in the published layout; convert it to a saved model first.")
    config, weights = store.open_model(source)
    target = _new_directory(source, target, config)
    store.write_weights(target, config, weights, dtype=dtype, max_shard_bytes=max_shard_bytes)
    _copy(source, target, store.PUBLISHED_FILE)
    store.write_config(target, config)


def _new_directory(source: Path, target: Path, config: InteractionConfig) -> pathlib.Path:
    """Makes the target, with the source's tokenizer where it has one, which must be the model's."""
    tokenizer, target = pathlib.Path(source) / store.TOKENIZER_FILE, pathlib.Path(target)
    if tokenizer.is_file():
        store.open_tokenizer(tokenizer, config.text)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is not empty; name a new directory.")
    target.mkdir(parents=True, exist_ok=True)
    _copy(source, target, store.TOKENIZER_FILE)
    return target


def _copy(source: Path, target: pathlib.Path, name: str, new_name: str | None = None) -> None:
    """Copies a file that a directory may have."""
    path = pathlib.Path(source) / name
    if path.is_file():
        shutil.copyfile(path, target / (new_name or name))


def _published_config(path: pathlib.Path, config: InteractionConfig) -> dict[str, Any] | None:
    """The config that a model was imported with, which must still be the model's; None: it wasn't imported."""
    if not path.is_file():
        return None
    published = huggingface.read_json(path)
    if (text := text_config_from_hf(published)) != config.text:
        sizes = store.difference(dataclasses.asdict(text), dataclasses.asdict(config.text), "text")
        raise ValueError(f"{path} is of a model of other sizes: {sizes}; remove it to write a config.json without it.")
    return published
