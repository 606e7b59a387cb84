"""What is kept of a model: training checkpoints (Orbax) and models to run (safetensors).

A training checkpoint holds a whole training state and the position in the data, for resuming. A saved model is a
directory that `load_model` needs nothing else to run: ``config.json``, ``tokenizer.json``, ``model.safetensors``.
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

from tml_jax import sharding
from tml_jax.checkpoint.huggingface import flatten, place_params, read_json
from tml_jax.checkpoint.tensors import DEFAULT_SHARD_BYTES, TensorFiles, TensorSpec, write_tensors
from tml_jax.model.config import InteractionConfig
from tml_jax.model.interaction import InteractionModel, Params
from tml_jax.streams.text import Tokenizer

CONFIG_FILE, TOKENIZER_FILE = "config.json", "tokenizer.json"


class Restored(NamedTuple):
    """A training checkpoint: the step it was saved after, the training state, the data iterator's own state."""

    step: int
    state: Any
    data: Any


class TrainCheckpoints:
    """The checkpoints of a training run, in ``workdir/checkpoints``.

    A checkpoint appears when it is whole: a run killed while saving leaves the one before. Use as a context manager,
    or `close` it.

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
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=False)
        handlers = {"state": ocp.StandardCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)

    def save(self, step: int, state: Any, data: Any = None) -> None:
        """Saves what follows `step`.

        Args:
          step: steps taken so far.
          state: any tree of arrays: params, optimiser state, averages, keys.
          data: the data iterator's state: bytes, or anything JSON can hold.
        """
        kept = {"bytes": base64.b64encode(data).decode()} if isinstance(data, bytes) else {"json": data}
        meta = {"data": kept, "config": self._config}
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        self._manager.save(step, args=args, force=True)
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
            difference = _difference(meta["config"], self._config)
            raise ValueError(f"Checkpoint {path} is of another config: {difference}. Choose another workdir.")
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
        """Ends the manager's threads."""
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


def _difference(old: Any, new: Any, name: str = "config") -> str:
    """The first field in which two configs differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                return _difference(old.get(key), new.get(key), f"{name}.{key}")
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
      dtype: of the weights on disk (the few that a model always keeps in float32 stay so); None: as they are.
      max_shard_bytes: of a weights file.
    """
    directory = pathlib.Path(directory)
    weights = flatten(params)
    if dtype is None:
        dtypes = {path: np.dtype(x.dtype) for path, x in weights.items()}
    else:
        dtypes = {path: np.dtype(x.dtype) for path, x in flatten(InteractionModel(config, dtype).abstract).items()}
    specs = [TensorSpec(path, tuple(x.shape), dtypes[path]) for path, x in weights.items()]

    def pieces(path: str) -> Iterator[np.ndarray]:
        yield np.asarray(weights[path]).astype(dtypes[path])

    write_tensors(directory, specs, pieces, max_shard_bytes=max_shard_bytes)
    write_config(directory, config)
    if pathlib.Path(tokenizer_path).absolute() != (directory / TOKENIZER_FILE).absolute():
        shutil.copyfile(tokenizer_path, directory / TOKENIZER_FILE)


def write_config(directory: pathlib.Path, config: InteractionConfig) -> None:
    """Writes a saved model's ``config.json``."""
    (directory / CONFIG_FILE).write_text(json.dumps(config.to_json(), indent=2) + "\n")


def open_model(directory: str | os.PathLike[str]) -> tuple[InteractionConfig, TensorFiles]:
    """A saved model's config and its weights, by dotted path, mapped and not yet read.

    Raises:
      ValueError: the directory holds no model, its files are damaged, or its weights are not of its config.
    """
    directory = pathlib.Path(directory)
    if not (directory / CONFIG_FILE).is_file():
        raise ValueError(f"{directory} holds no model: it has no {CONFIG_FILE}.")
    try:
        config = InteractionConfig.from_json(read_json(directory / CONFIG_FILE))
    except TypeError as error:
        raise ValueError(f"{directory / CONFIG_FILE} is not the config of an interaction model ({error}).") from error
    files = TensorFiles(directory)
    wanted = {path: x.shape for path, x in flatten(InteractionModel(config).abstract).items()}
    for name in sorted(wanted.keys() | set(files)):
        found = files.spec(name).shape if name in files else None
        if found != wanted.get(name):
            raise ValueError(
                f"The weights in {directory} are not of its {CONFIG_FILE}: {name} is {_shape(found)} in the file and "
                f"{_shape(wanted.get(name))} in the model."
            )
    return config, files


def load_params(
    directory: str | os.PathLike[str],
    *,
    dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
) -> tuple[InteractionConfig, Params]:
    """A saved model without its tokenizer; as `load_model`."""
    config, files = open_model(directory)
    model = InteractionModel(config, dtype)
    placement = sharding.shardings(model.axes, model.abstract, mesh) if mesh is not None else None
    return config, place_params(model, lambda path, index: files[path][index], placement)


def load_model(
    directory: str | os.PathLike[str],
    *,
    dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
) -> tuple[InteractionConfig, Params, Tokenizer]:
    """A saved model: its sizes, weights and tokenizer.

    Args:
      directory: written by `save_model`, or by `launch.convert`.
      dtype: of the model, whatever the weights were stored in.
      mesh: cuts the weights as their logical axes say, each device's block read alone; None: the default device.

    Raises:
      ValueError: the directory holds no model, its files are damaged, or its weights are not of its config.
    """
    config, params = load_params(directory, dtype=dtype, mesh=mesh)
    path = pathlib.Path(directory) / TOKENIZER_FILE
    if not path.is_file():
        raise ValueError(f"{directory} holds no {TOKENIZER_FILE}.")
    return config, params, Tokenizer(str(path))
