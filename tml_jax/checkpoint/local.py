"""The fast tier of training checkpoints: each process writes what its own devices hold to its own host's disk.

It needs no network and no other process, so it can be written often. It is of use where a run goes on with the same
processes and the same mesh, and every one of them finds its part: then no step since is lost. Otherwise the run goes on
from the checkpoint that all hosts share (`store.TrainCheckpoints`).
"""

import json
import os
import pathlib
import threading
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

_KEEP = 2


class LocalCheckpoints:
    """The newest states of a run, in ``directory/<process>/<step>.safetensors``.

    Args:
      directory: on a disk of each host's own; None: there is none, and nothing is ever due.
      run: what tells this run from others, such as its config, as JSON.
      every: steps from one to the next.
    """

    def __init__(self, directory: str | os.PathLike[str] | None, run: Any, every: int = 1) -> None:
        self.directory = None if directory is None else pathlib.Path(directory).absolute() / str(jax.process_index())
        self._every = every
        place = {"run": run, "processes": jax.process_count(), "process": jax.process_index()}
        self._place = json.dumps(place, sort_keys=True)
        self._writer: threading.Thread | None = None
        self._failure: OSError | None = None

    def due(self, step: int) -> bool:
        """Whether it is time to save after so many steps."""
        return self.directory is not None and step % self._every == 0

    def save(self, step: int, state: Any, data: Any) -> None:
        """Begins to save what follows `step`; returns once the state is copied and may be overwritten.

        Args:
          step: steps taken so far.
          state: a tree of arrays. data: anything JSON can hold.

        Raises:
          OSError: the one before could not be written.
        """
        self.finish()
        for leaf in jax.tree.leaves(state):
            leaf.copy_to_host_async()
        parts = {
            name: np.array(shard.data)
            for path, leaf in jax.tree.leaves_with_path(state)
            for name, shard in _parts(path, leaf).items()
        }
        metadata = {"place": self._place, "data": json.dumps(data)}
        self._writer = threading.Thread(target=self._write, args=(step, parts, metadata), name="local checkpoint")
        self._writer.start()

    def finish(self) -> None:
        """Waits until what was saved is written."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _write(self, step: int, parts: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
        try:
            path = self._path(step)
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_name("unfinished")
            save_file(parts, unfinished, metadata)
            unfinished.replace(path)  # what has its name is whole
            for old in self._steps()[:-_KEEP]:
                self._path(old).unlink()
        except OSError as error:
            self._failure = error

    def _path(self, step: int) -> pathlib.Path:
        assert self.directory is not None
        return self.directory / f"{step}.safetensors"

    def _steps(self) -> list[int]:
        return sorted(int(path.stem) for path in self._path(0).parent.glob("*.safetensors"))

    def newest(self, abstract: Any) -> int | None:
        """The newest step that every process can restore; None: there is none. All processes have to ask.

        Args:
          abstract: ShapeDtypeStructs of the state, with shardings.
        """
        if self.directory is None:
            return None
        mine = [step for step in self._steps()[-_KEEP:] if self._fits(step, abstract)]
        if jax.process_count() == 1:
            return max(mine, default=None)
        padded = np.full(_KEEP, -1, np.int32)
        padded[: len(mine)] = mine
        common = set.intersection(*(set(row.tolist()) for row in multihost_utils.process_allgather(padded))) - {-1}
        return max(common, default=None)

    def _fits(self, step: int, abstract: Any) -> bool:
        """Whether this process finds all its parts there."""
        try:
            with safe_open(self._path(step), "np") as file:
                if (file.metadata() or {}).get("place") != self._place:
                    return False
                found = set(file.keys())
        except (OSError, SafetensorError):
            return False
        wanted = {
            _name(path, index, leaf.shape)
            for path, leaf in jax.tree.leaves_with_path(abstract)
            for index in leaf.sharding.addressable_devices_indices_map(leaf.shape).values()
        }
        return wanted == found

    def restore(self, abstract: Any, step: int) -> tuple[Any, Any]:
        """The state and the data of a step that `newest` gave."""
        with safe_open(self._path(step), "np") as file:

            def read(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
                # Of a copy: what is mapped ends with the file.
                return jax.make_array_from_callback(
                    leaf.shape, leaf.sharding, lambda index: np.array(file.get_tensor(_name(path, index, leaf.shape)))
                )

            state = jax.block_until_ready(jax.tree.map_with_path(read, abstract))
            return state, json.loads(file.metadata()["data"])


def _name(path: Any, index: tuple[slice, ...], shape: tuple[int, ...]) -> str:
    """Of a part of an array: its path in the tree, and where in the array it lies."""
    ranges = (index_.indices(size)[:2] for index_, size in zip(index, shape, strict=True))
    return f"{jax.tree_util.keystr(path)} {','.join(f'{start}:{stop}' for start, stop in ranges)}"


def _parts(path: Any, array: jax.Array) -> dict[str, Any]:
    """This process's parts of an array, each once."""
    return {_name(path, shard.index, array.shape): shard for shard in array.addressable_shards}
