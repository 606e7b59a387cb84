"""Weights in Orbax checkpoints, array by array, without arrays on devices.

`write_arrays` writes what Orbax's own handlers restore (Zarr 3, a file for each block), from any number of processes at
once and with one block in memory. A block appears when it is whole and carries its CRC-32C: what was cut short goes on,
and every reader notices a damaged block. `open_arrays` reads blocks of these, and of what training saves.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from tml_jax.checkpoint.huggingface import read_json
from tml_jax.checkpoint.weights import Index, Weights, block_shape, blocks
from tml_jax.model.config import InteractionConfig

_METADATA = "_METADATA"
_CODECS = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]


class StoredArray:
    """An array of an Orbax checkpoint, a `Weight`.

    Raises:
      ValueError: it can't be read.
    """

    def __init__(self, directory: pathlib.Path, name: str, array: ts.TensorStore) -> None:
        self._directory, self._name, self._array = directory, name, array
        self.shape, self.dtype = tuple(array.shape), np.dtype(array.dtype.numpy_dtype)

    def __getitem__(self, index: Index) -> np.ndarray:
        """A block of it."""
        try:
            return self._array[index].read().result()
        except ValueError as error:
            raise ValueError(f"The checkpoint {self._directory} is damaged: {self._name} cannot be read.") from error


def open_arrays(directory: pathlib.Path) -> dict[str, StoredArray]:
    """The arrays of a tree that Orbax or `write_arrays` wrote, by dotted path, not yet read.

    Raises:
      ValueError: there is none, or it is damaged.
    """
    layout = read_json(directory / _METADATA)
    found = {}
    for entry in layout["tree_metadata"].values():
        if entry["value_metadata"]["value_type"] in ("jax.Array", "np.ndarray"):
            name = ".".join(key["key"] for key in entry["key_metadata"])
            spec = _spec(directory, name, zarr3=layout["use_zarr3"], ocdbt=layout["use_ocdbt"])
            try:
                found[name] = StoredArray(directory, name, ts.open(spec, read=True).result())
            except ValueError as error:
                raise ValueError(f"The checkpoint {directory} is damaged: it lacks {name}.") from error
    return found


def _spec(directory: pathlib.Path, name: str, *, zarr3: bool, ocdbt: bool) -> dict[str, Any]:
    files = {"driver": "file", "path": f"{directory.absolute()}/{'' if ocdbt else f'{name}/'}"}
    store = {"driver": "ocdbt", "base": files, "path": f"{name}/"} if ocdbt else files
    return {"driver": "zarr3" if zarr3 else "zarr", "kvstore": store}


def write_arrays(directory: pathlib.Path, weights: Weights, share: tuple[int, int] = (0, 1)) -> None:
    """Writes one process's share of the blocks; those that are there and whole stay.

    Args:
      directory: of the tree, which is whole once every process has written.
      weights: by dotted path.
      share: number and count of the processes that write.
    """
    number = 0
    for name, weight in weights.items():
        array = _create(directory, name, weight.shape, np.dtype(weight.dtype))
        for index in blocks(weight.shape, np.dtype(weight.dtype).itemsize):
            if number % share[1] == share[0] and not _is_whole(array[index]):
                array[index].write(np.asarray(weight[index])).result()
            number += 1
    if share[0] == 0:
        tree = {str(tuple(name.split("."))): _tree_entry(name.split(".")) for name in weights}
        layout = {"tree_metadata": tree, "use_ocdbt": False, "use_zarr3": True}
        layout |= {"store_array_data_equal_to_fill_value": True, "custom_metadata": None}
        (directory / _METADATA).write_text(json.dumps(layout))


def _tree_entry(keys: Sequence[str]) -> dict[str, Any]:
    dictionary = 2  # a key of one
    return {
        "key_metadata": [{"key": key, "key_type": dictionary} for key in keys],
        "value_metadata": {"value_type": "jax.Array", "skip_deserialize": False},
    }


def _create(directory: pathlib.Path, name: str, shape: tuple[int, ...], dtype: np.dtype) -> ts.TensorStore:
    grid = {"name": "regular", "configuration": {"chunk_shape": block_shape(shape, dtype.itemsize)}}
    spec = _spec(directory, name, zarr3=True, ocdbt=False) | {"store_data_equal_to_fill_value": True}
    spec["metadata"] = {"shape": shape, "chunk_grid": grid, "codecs": _CODECS, "data_type": dtype.name}
    return ts.open(spec, create=True, open=True).result()


def _is_whole(block: ts.TensorStore) -> bool:
    if block.storage_statistics(query_not_stored=True).result().not_stored:
        return False
    try:
        block.read().result()
    except ValueError:
        return False
    return True


def open_training(workdir: pathlib.Path) -> tuple[InteractionConfig, dict[str, StoredArray]]:
    """The model of a run's newest checkpoint: the average of its weights, where it keeps one.

    Raises:
      ValueError: the run has no checkpoint, or it can't be read.
    """
    directory = workdir.absolute() / "checkpoints"
    steps = [found.step for found in ocp.path.step.standard_name_format().find_all(directory)]
    if not steps:
        raise ValueError(f"{workdir} holds no checkpoint yet.")
    newest = directory / str(max(steps))
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
            meta = checkpointer.restore(newest / "meta")
    except Exception as error:  # whatever Orbax raises for a damaged file
        raise ValueError(f"The checkpoint {newest} is damaged: its config cannot be read.") from error
    arrays = open_arrays(newest / "state")
    part = "average." if any(name.startswith("average.") for name in arrays) else "params."
    weights = {name.removeprefix(part): array for name, array in arrays.items() if name.startswith(part)}
    return InteractionConfig.from_json(meta["config"]["model"]), weights
