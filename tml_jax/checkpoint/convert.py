"""Between published checkpoints, saved models, Orbax arrays and training runs, a block at a time and bit for bit.

What is read is `source.open_source`'s affair. Each conversion can be shared by the processes of a pod, on a file system
that all of them see, and goes on where it was cut short when it is called again with the same arguments. What it
writes is no model before it is whole: the ``config.json`` comes last.

A saved LoRA reads as the whole model that it stands for; its additions alone go into the layout of `peft`.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from tml_jax.checkpoint import huggingface, lora, orbax, store
from tml_jax.checkpoint.source import WEIGHTS_FOLDER, Source, open_source
from tml_jax.checkpoint.tensors import DEFAULT_SHARD_BYTES
from tml_jax.checkpoint.weights import Weights

Path = str | os.PathLike[str]
# In a target that isn't whole: what was to be written there.
_UNFINISHED = "unfinished_conversion.json"


def to_saved_model(
    source: Path, target: Path, *, dtype: str | None = None, seed: int = 0, max_shard_bytes: int = DEFAULT_SHARD_BYTES
) -> Source:
    """Any layout -> saved model.

    Args:
      source: as `open_source`; its tokenizer, where it has one, must be the model's.
      target: an empty or new directory, or one that this conversion was cut short in.
      dtype: as `store.write_weights`; None: every weight keeps its stored dtype, so that the way back is exact.
      seed: of the interaction heads, where the checkpoint has none.
      max_shard_bytes: of a weights file.

    Raises:
      ValueError: the source is damaged or not of its config, its tokenizer isn't, or the target isn't empty; nothing
        was written then.
    """
    opened = open_source(source)
    job = {"layout": "saved", "dtype": dtype, "seed": seed, "max_shard_bytes": max_shard_bytes}
    with _written(opened, target, job, opened.config.to_json()) as directory:
        store.write_weights(
            directory, opened.config, opened.filled(seed), dtype=dtype, max_shard_bytes=max_shard_bytes, share=_share()
        )
    return opened


def to_orbax(source: Path, target: Path, *, dtype: str | None = None, seed: int = 0) -> Source:
    """Any layout -> a saved model with its weights in Orbax arrays, which any mesh reads in parts; as `to_saved_model`.

    Raises:
      ValueError: as `to_saved_model`; or int8 is asked for, in which nothing but a saved model is stored.
    """
    opened = open_source(source)
    job = {"layout": "orbax", "dtype": dtype, "seed": seed}
    with _written(opened, target, job, opened.config.to_json()) as directory:
        orbax.write_arrays(directory / WEIGHTS_FOLDER, _in_dtype(opened, seed, dtype), _share())
    return opened


def to_peft(source: Path, target: Path) -> None:
    """Saved LoRA -> its additions alone, in the layout of `peft` (`lora.export_peft`).

    Raises:
      ValueError: the source is no saved LoRA, its weights are not of its config, or as `to_saved_model`.
    """
    lora.read_description(pathlib.Path(source))
    config, _ = store.open_model(source)
    target = pathlib.Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is not empty; name a new directory.")
    target.mkdir(parents=True, exist_ok=True)
    lora.export_peft(target, config, pathlib.Path(source))
    store.copy_tokenizer(pathlib.Path(source) / store.TOKENIZER_FILE, target)


def to_published(
    source: Path, target: Path, *, dtype: str | None = None, seed: int = 0, max_shard_bytes: int = DEFAULT_SHARD_BYTES
) -> Source:
    """Any layout -> published layout; int8 weights as the float32 that they stand for, otherwise as `to_saved_model`.

    A model that was imported has the ``config.json`` that it came with, word for word, and ours beside it. A training
    run that began with stored weights is exported in their dtypes.

    Raises:
      ValueError: as `to_orbax`.
    """
    opened = open_source(source)
    config = huggingface.config_to_hf(opened.config, opened.published_config())
    job = {"layout": "published", "dtype": dtype, "seed": seed, "max_shard_bytes": max_shard_bytes}
    with _written(opened, target, job, config) as directory:
        weights = _in_dtype(opened, seed, dtype)
        huggingface.write_weights(directory, opened.config, weights, max_shard_bytes=max_shard_bytes, share=_share())
    return opened


def _in_dtype(source: Source, seed: int, dtype: str | None) -> Weights:
    weights = source.filled(seed)
    return weights if dtype is None else store.in_dtype(weights, source.config, dtype)


def _share() -> tuple[int, int]:
    return jax.process_index(), jax.process_count()


def _together(moment: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(moment)


@contextlib.contextmanager
def _written(source: Source, target: Path, job: dict[str, Any], config: dict[str, Any]) -> Iterator[pathlib.Path]:
    """A directory to write weights to; when all processes have, it gets what makes it a model.

    Args:
      source: what is converted.
      target: the directory.
      job: what else the weights depend on.
      config: the ``config.json``.
    """
    if job["layout"] != "saved" and job["dtype"] == "int8":
        raise ValueError("Weights are stored as int8 in saved models alone: choose another dtype, or that layout.")
    if source.tokenizer.is_file():
        store.open_tokenizer(source.tokenizer, source.config.text)
    target, unfinished = pathlib.Path(target), pathlib.Path(target) / _UNFINISHED
    job = {**job, "from": str(source.directory.absolute()), "files": _files(source.directory)}
    going_on = unfinished.is_file() and huggingface.read_json(unfinished) == job
    if not going_on and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is not empty; name a new directory.")
    _together("checked")
    if jax.process_index() == 0:
        target.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(job, indent=1) + "\n")
    _together("begun")
    yield target
    _together("written")
    if jax.process_index() == 0:
        if source.tokenizer.is_file():
            store.copy_tokenizer(source.tokenizer, target)
        if job["layout"] != "published":
            source.copy_along(target)
        (target / store.CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
        unfinished.unlink()


def _files(directory: pathlib.Path) -> dict[str, list[int]]:
    """Length and age of the files that a model is read from."""
    names = (store.CONFIG_FILE, "*.safetensors", "checkpoints/*")
    found = sorted(path for name in names for path in directory.glob(name))
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in found}
