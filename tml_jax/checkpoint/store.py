"""What is kept of a model: training checkpoints (Orbax) and models to run (safetensors).

A training checkpoint holds a whole training state and the position in the data, for resuming. A saved model is a
directory that `load_model` needs nothing else to run: ``config.json``, ``tokenizer.json``, ``model.safetensors``. A
saved LoRA is one with ``lora.json`` (`checkpoint.lora`), which names another that it needs.
"""

import base64
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from pallas_kernels.int8 import Int8Weight
from tml_jax import sharding
from tml_jax.checkpoint import lora as lora_files
from tml_jax.checkpoint.huggingface import read_json
from tml_jax.checkpoint.quantize import SCALE, quantize
from tml_jax.checkpoint.tensors import DEFAULT_SHARD_BYTES, TensorFiles, TensorSpec, write_tensors
from tml_jax.checkpoint.voice import copy_voice
from tml_jax.checkpoint.weights import Weights, blocks, cast, flatten, place_params
from tml_jax.model.config import InteractionConfig, TextConfig
from tml_jax.model.interaction import InteractionModel, Params
from tml_jax.model.lora import Lora
from tml_jax.model.quantized import as_int8, scale_shape, shared_axes
from tml_jax.streams.text import Tokenizer

CONFIG_FILE, TOKENIZER_FILE = "config.json", "tokenizer.json"
# Of an imported model, the config.json that it was published with: what is exported again has its every field.
PUBLISHED_FILE = "published_config.json"


class Restored(NamedTuple):
    """A training checkpoint: the step it was saved after, the training state, the data iterator's own state."""

    step: int
    state: Any
    data: Any


class TrainCheckpoints:
    """The checkpoints of a training run, in ``workdir/checkpoints``.

    A checkpoint is written while training goes on, and appears when it is whole: a run killed while saving leaves the
    one before. Use as a context manager, or `close` it, which waits for what is being written.

    Args:
      workdir: of the run.
      keep: newest checkpoints to keep.
      config: of the experiment as JSON; restoring under another one is an error. None: not checked.
    """

    def __init__(
        self, workdir: str | os.PathLike[str], *, keep: int = 2, config: Mapping[str, Any] | None = None
    ) -> None:
        self.directory = pathlib.Path(workdir).absolute() / "checkpoints"
        self._config = json.loads(json.dumps(config))
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        handlers = {"state": ocp.StandardCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)

    def save(self, step: int, state: Any, data: Any = None) -> None:
        """Begins to save what follows `step`; returns once the state is copied and may be overwritten.

        Waits first for an earlier one that is still being written, and raises what went wrong with that.

        Args:
          step: steps taken so far.
          state: any tree of arrays: params, optimiser state, averages, keys.
          data: the data iterator's state: bytes, or anything JSON can hold.
        """
        kept = {"bytes": base64.b64encode(data).decode()} if isinstance(data, bytes) else {"json": data}
        meta = {"data": kept, "config": self._config}
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        self._manager.save(step, args=args, force=True)

    def finish(self) -> None:
        """Waits until what was saved is written."""
        self._manager.wait_until_finished()

    def latest(self) -> int | None:
        """The newest checkpoint's step, or None where there is none."""
        return self._manager.latest_step()

    def restore(self, abstract: Any, step: int | None = None) -> Restored:
        """Reads a checkpoint.

        Args:
          abstract: a tree like the state, of arrays or ShapeDtypeStructs; their shardings say where each goes.
          step: which one; None: the newest.

        Raises:
          ValueError: there is none, it can't be read, or it is of another config or another tree.
        """
        step = self.latest() if step is None else step
        if step is None:
            raise ValueError(f"{self.directory} holds no checkpoint.")
        if step not in self._manager.all_steps():
            raise ValueError(
                f"{self.directory} holds no checkpoint of step {step}; it has {self._manager.all_steps()}."
            )
        path = self.directory / str(step)
        try:
            meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        except Exception as error:  # whatever Orbax raises for a damaged file
            raise ValueError(f"Checkpoint {path} cannot be read ({_first_line(error)}).") from error
        if self._config is not None and meta["config"] is not None and meta["config"] != self._config:
            changed = difference(meta["config"], self._config)
            raise ValueError(f"Checkpoint {path} is of another config: {changed}. Choose another workdir.")
        self._check(path, step, abstract)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, abstract)
        try:
            args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            state = self._manager.restore(step, args=args)["state"]
        except Exception as error:
            raise ValueError(f"Checkpoint {path} cannot be read ({_first_line(error)}).") from error
        kept = meta["data"]
        return Restored(step, state, base64.b64decode(kept["bytes"]) if "bytes" in kept else kept["json"])

    def _check(self, path: pathlib.Path, step: int, abstract: Any) -> None:
        """Compares the saved tree's shapes with the wanted ones: Orbax would cut or pad an array silently."""
        try:
            saved = self._manager.item_metadata(step)["state"]
            found = {_keys(k): tuple(v.shape) for k, v in jax.tree_util.tree_flatten_with_path(saved.tree)[0]}
        except Exception as error:
            raise ValueError(f"Checkpoint {path} cannot be read ({_first_line(error)}).") from error
        wanted = {_keys(k): tuple(v.shape) for k, v in jax.tree_util.tree_flatten_with_path(abstract)[0]}
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                raise ValueError(
                    f"Checkpoint {path} does not match this run: {name} is {_shape(found.get(name))} in the "
                    f"checkpoint and {_shape(wanted.get(name))} in the model."
                )

    def close(self) -> None:
        """Waits until all is written, and ends the manager's threads."""
        self._manager.close()

    def __enter__(self) -> "TrainCheckpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _keys(path: tuple[Any, ...]) -> str:
    """A leaf's path by bare names: a saved tree has dicts where the live one has tuples and named tuples."""
    return ".".join(str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def difference(old: Any, new: Any, name: str = "config") -> str:
    """The first field in which two configs differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                return difference(old.get(key), new.get(key), f"{name}.{key}")
    return f"{name} was {old!r} and is now {new!r}"


def save_model(
    directory: str | os.PathLike[str],
    config: InteractionConfig,
    params: Params,
    tokenizer_path: str | os.PathLike[str],
    *,
    dtype: Any = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """Writes a model that `load_model` reads.

    Args:
      directory: made where it isn't there.
      config: the model's sizes.
      params: its weights.
      tokenizer_path: its ``tokenizer.json``, copied.
      dtype: as `write_weights`.
      max_shard_bytes: of a weights file.
    """
    directory = pathlib.Path(directory)
    write_weights(directory, config, flatten(jax.device_get(params)), dtype=dtype, max_shard_bytes=max_shard_bytes)
    write_config(directory, config)
    copy_tokenizer(tokenizer_path, directory)


def copy_tokenizer(path: str | os.PathLike[str], directory: pathlib.Path) -> None:
    """Copies a tokenizer to a model's directory; it may lie there already."""
    if pathlib.Path(path).absolute() != (directory / TOKENIZER_FILE).absolute():
        shutil.copyfile(path, directory / TOKENIZER_FILE)


def save_lora(
    directory: str | os.PathLike[str],
    lora: Lora,
    trained: Params,
    base: str | os.PathLike[str],
    tokenizer_path: str | os.PathLike[str],
) -> None:
    """Writes what a LoRA run trained, in float32; `load_model` reads it as the whole model.

    Args:
      directory: made where it isn't there.
      lora: says what is added to which weights.
      trained: what `Lora.init` began with.
      base: folder of the saved model that it is added to, which has to stay.
      tokenizer_path: its ``tokenizer.json``, copied.
    """
    directory = pathlib.Path(directory)
    weights = {path: np.asarray(x) for path, x in flatten(trained).items()}
    specs = [TensorSpec(path, x.shape, x.dtype) for path, x in weights.items()]
    write_tensors(directory, specs, lambda path: (weights[path],))
    write_config(directory, lora.model.config)
    lora_files.write_description(directory, lora.config, base)
    shutil.copyfile(tokenizer_path, directory / TOKENIZER_FILE)
    if (published := pathlib.Path(base) / PUBLISHED_FILE).is_file():
        shutil.copyfile(published, directory / PUBLISHED_FILE)
    copy_voice(pathlib.Path(base), directory)


def write_weights(
    directory: pathlib.Path,
    config: InteractionConfig,
    weights: Weights,
    *,
    dtype: Any = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    share: tuple[int, int] | None = None,
) -> None:
    """Writes a saved model's weights, a block at a time.

    Args:
      directory: made where it isn't there.
      config: the model's sizes.
      weights: by dotted path.
      dtype: of the weights on disk (the few that a model always keeps in float32 stay so). "int8": of matrices and
        tables, with their scales; what is small stays as it is. None: all as they are.
      max_shard_bytes, share: as `write_tensors`.
    """
    int8 = dtype is not None and np.dtype(dtype) == np.int8
    shared = shared_axes(InteractionModel(config)) if int8 else {}
    if dtype is not None and not int8:
        weights = in_dtype(weights, config, dtype)
    specs = []
    for path, x in weights.items():
        if path in shared:
            specs.append(TensorSpec(path, x.shape, np.dtype(np.int8)))
            specs.append(TensorSpec(path + SCALE, scale_shape(x.shape, shared[path]), np.dtype(np.float32)))
        else:
            specs.append(TensorSpec(path, x.shape, np.dtype(x.dtype)))

    def pieces(name: str) -> Iterator[np.ndarray]:
        path = name if name in weights else name.removesuffix(SCALE)
        weight, axes = weights[path], shared.get(path, ())
        for index in blocks(weight.shape, np.dtype(np.float32).itemsize, axes):
            block = np.asarray(weight[index])
            yield quantize(block, axes)[0 if name == path else 1] if path in shared else block

    write_tensors(directory, specs, pieces, max_shard_bytes=max_shard_bytes, share=share)


def in_dtype(weights: Weights, config: InteractionConfig, dtype: Any) -> Weights:
    """Weights as a model of this dtype keeps them: the few that are always float32 stay so."""
    kept = flatten(InteractionModel(config, dtype).abstract)
    return cast(weights, lambda path: kept[path].dtype)


def write_config(directory: pathlib.Path, config: InteractionConfig) -> None:
    """Writes a saved model's ``config.json``."""
    (directory / CONFIG_FILE).write_text(json.dumps(config.to_json(), indent=2) + "\n")


def read_config(directory: pathlib.Path) -> InteractionConfig:
    """Reads a saved model's ``config.json``.

    Raises:
      ValueError: there is none, or it holds something else, such as the config of a published model.
    """
    if not (directory / CONFIG_FILE).is_file():
        raise ValueError(f"{directory} holds no model: it has no {CONFIG_FILE}.")
    found = read_json(directory / CONFIG_FILE)
    if "model_type" in found:
        raise ValueError(f"{directory} has the published layout: `launch.convert --layout=saved` makes a model of it.")
    try:
        return InteractionConfig.from_json(found)
    except TypeError as error:
        raise ValueError(f"{directory / CONFIG_FILE} is not the config of an interaction model ({error}).") from error


def open_tokenizer(path: str | os.PathLike[str], text: TextConfig) -> Tokenizer:
    """Reads the tokenizer of a model of these sizes: both then mean the same rows by the control tokens.

    Raises:
      ValueError: the file can't be read, is another model's tokenizer, or the model has no rows for control tokens.
    """
    tokenizer = Tokenizer(path)
    if tokenizer.vocab_size != text.tokenizer_rows:
        raise ValueError(
            f"The tokenizer {path} is of another model: it uses {tokenizer.vocab_size} rows of the vocabulary, and the "
            f"model's config says {text.tokenizer_rows}."
        )
    if (stop := tokenizer.control.stop) > text.vocab_size:
        raise ValueError(
            f"The vocabulary has {text.vocab_size} rows, of which the tokenizer {path} uses {tokenizer.vocab_size}; "
            f"with the control tokens it needs {stop}."
        )
    return tokenizer


def check_shapes(
    directory: pathlib.Path, found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    """Compares the shapes in a directory's files with those that its config asks for.

    Raises:
      ValueError: one is missing, of another shape, or not the model's.
    """
    for name in sorted(wanted.keys() | found.keys()):
        if found.get(name) != wanted.get(name):
            raise ValueError(
                f"The weights in {directory} are not of its {CONFIG_FILE}: {name} is {_shape(found.get(name))} in the "
                f"file and {_shape(wanted.get(name))} in the model."
            )


def open_model(directory: str | os.PathLike[str]) -> tuple[InteractionConfig, dict[str, Any]]:
    """A saved model's config and its weights, by dotted path, mapped and not yet read.

    What is stored as int8, or as an addition to another model's weight, reads as float32.

    Raises:
      ValueError: the directory holds no model, its files are damaged, or its weights are not of its config.
    """
    directory = pathlib.Path(directory)
    config = read_config(directory)
    files = TensorFiles(directory)
    model = InteractionModel(config)
    if (directory / lora_files.FILE).is_file():
        return config, _open_lora(directory, model, files)
    shared = shared_axes(model)
    wanted = {path: x.shape for path, x in flatten(model.abstract).items()}
    int8 = {path for path in files if path in wanted and files.spec(path).dtype == np.int8}
    wanted |= {path + SCALE: scale_shape(wanted[path], shared.get(path, ())) for path in int8}
    check_shapes(directory, {name: files.spec(name).shape for name in files}, wanted)
    for path in int8:
        if (stored := files.spec(path + SCALE).dtype) != np.float32:
            raise ValueError(f"The weights in {directory} are damaged: {path + SCALE} is {stored}, not float32.")
    return config, {
        path: Int8Weight(files[path], files[path + SCALE]) if path in int8 else files[path]
        for path in flatten(model.abstract)
    }


def _open_lora(directory: pathlib.Path, model: InteractionModel, files: TensorFiles) -> dict[str, Any]:
    settings, base = lora_files.read_description(directory)
    lora = Lora(model, settings)
    wanted = {path: x.shape for path, x in flatten(lora.abstract).items()}
    check_shapes(directory, {name: files.spec(name).shape for name in files}, wanted)
    try:
        config, weights = open_model(base)
    except ValueError as error:
        raise ValueError(f"{directory} adds to the model in {base}, which can't be read: {error}") from error
    if config != model.config:
        changed = difference(model.config.to_json(), config.to_json())
        raise ValueError(f"{directory} adds to the model in {base}, which is of other sizes now: {changed}.")
    return lora_files.overlay(weights, lora, files)


def load_params(
    directory: str | os.PathLike[str],
    *,
    dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
    int8: bool = False,
) -> tuple[InteractionConfig, Params]:
    """A saved model without its tokenizer; as `load_model`."""
    config, weights = open_model(directory)
    model = InteractionModel(config, dtype)
    model = as_int8(model) if int8 else model
    placement = sharding.shardings(model.axes, model.abstract, mesh) if mesh is not None else None
    return config, place_params(model, weights, placement)


def load_model(
    directory: str | os.PathLike[str],
    *,
    dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
    int8: bool = False,
) -> tuple[InteractionConfig, Params, Tokenizer]:
    """A saved model: its sizes, weights and tokenizer.

    Args:
      directory: written by `save_model`, or by `launch.convert`.
      dtype: of the model, whatever the weights were stored in.
      mesh: cuts the weights as their logical axes say, each device's block read alone; None: the default device.
      int8: linear maps and tables are `Int8Weight`s, as they are stored or made so, one at a time: to be run alone.

    Raises:
      ValueError: the directory holds no model, its files are damaged, or its weights or its tokenizer are not of its
        config.
    """
    directory = pathlib.Path(directory)
    tokenizer = open_tokenizer(directory / TOKENIZER_FILE, read_config(directory).text)
    config, params = load_params(directory, dtype=dtype, mesh=mesh, int8=int8)
    return config, params, tokenizer
