"""Recorded or prepared conversations on disk, read by window: TensorStore arrays (zarr3) and one JSON index.

All conversations lie one after another along the first axis of each array; the index says where each begins. A
window of a few hundred micro-turns touches only the chunks that hold it.
"""

import json
import os
import pathlib
from typing import Any

import numpy as np
import tensorstore as ts

from tml_jax.streams.micro_turn import MicroTurnInput, MicroTurnOutput, StreamSpec, empty_input, empty_output

INDEX = "index.json"
_VERSION = 1
_CHUNK_TURNS = 128
# On disk a value takes no more room than it needs; it is read back in the dtype of the stream's own arrays.
_DISK_DTYPES = {"audio": "uint8", "patches": "float16", "mel": "float16"}


def _parts(spec: StreamSpec) -> dict[str, tuple[int, str, np.ndarray]]:
    """Array name -> (0 for inputs or 1 for outputs, field, an empty one of one micro-turn)."""
    both = (empty_input(spec, (1,)), empty_output(spec, (1,)))
    return {f"{'io'[i]}_{name}": (i, name, value) for i, part in enumerate(both) for name, value in vars(part).items()}


class ConversationStore:
    """A store of conversations; `create` or `open` it."""

    def __init__(self, path: pathlib.Path, spec: StreamSpec, index: dict[str, Any], *, create: bool) -> None:
        self.path, self.spec, self._index = path, spec, index
        self._arrays = {
            name: self._open(name, field, value, create) for name, (_, field, value) in _parts(spec).items()
        }

    @classmethod
    def create(cls, path: str | os.PathLike[str], spec: StreamSpec) -> "ConversationStore":
        """A new, empty store.

        Raises:
          ValueError: there is something at `path` already.
        """
        path = pathlib.Path(path)
        if path.exists() and any(path.iterdir()):
            raise ValueError(f"{path} is not empty; a new conversation store needs a folder of its own.")
        path.mkdir(parents=True, exist_ok=True)
        store = cls(path, spec, {"version": _VERSION, "spec": vars(spec), "conversations": []}, create=True)
        store._write_index()
        return store

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "ConversationStore":
        """An existing store.

        Raises:
          ValueError: there is none at `path`, or it is damaged.
        """
        path = pathlib.Path(path)
        if not (path / INDEX).is_file():
            raise ValueError(f"There is no conversation store at {path} ({INDEX} is missing).")
        try:
            index = json.loads((path / INDEX).read_text())
            if index["version"] != _VERSION:
                raise ValueError(f"version {index['version']}")
            return cls(path, StreamSpec(**index["spec"]), index, create=False)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"The conversation store at {path} cannot be read ({error}).") from error

    def _open(self, name: str, field: str, value: np.ndarray, create: bool) -> Any:
        dtype = _DISK_DTYPES.get(field, str(value.dtype))
        chunk = [_CHUNK_TURNS, *value.shape[1:]]
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str((self.path / name).absolute())}}
        if not create:
            return ts.open(spec, open=True).result()
        metadata = {
            "shape": [0, *value.shape[1:]],
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
            "data_type": dtype,
            "codecs": [{"name": "bytes"}, {"name": "zstd", "configuration": {"level": 3}}],
        }
        return ts.open(spec | {"metadata": metadata}, create=True).result()

    def __len__(self) -> int:
        """Conversations in the store."""
        return len(self._index["conversations"])

    def num_turns(self, conversation: int) -> int:
        """Micro-turns of a conversation."""
        return self._entry(conversation)["turns"]

    def metadata(self, conversation: int) -> dict[str, Any]:
        """What was stored with a conversation."""
        return self._entry(conversation)["metadata"]

    def _entry(self, conversation: int) -> dict[str, Any]:
        if not 0 <= conversation < len(self):
            raise ValueError(f"Conversation {conversation} is not in {self.path}, which holds {len(self)}.")
        return self._index["conversations"][conversation]

    def append(self, inputs: MicroTurnInput, outputs: MicroTurnOutput, metadata: dict[str, Any] | None = None) -> int:
        """Adds a conversation [N, ...]; it counts only once all of it is on disk.

        Returns:
          Its number.
        """
        start = sum(entry["turns"] for entry in self._index["conversations"])
        turns = len(inputs.active)
        writes = []
        for name, (which, field, _) in _parts(self.spec).items():
            value = np.asarray(getattr((inputs, outputs)[which], field))
            array = self._arrays[name].resize(exclusive_max=[start + turns, *value.shape[1:]]).result()
            self._arrays[name] = array
            writes.append(array[start : start + turns].write(value.astype(array.dtype.numpy_dtype)))
        for write in writes:
            write.result()
        self._index["conversations"].append({"start": start, "turns": turns, "metadata": metadata or {}})
        self._write_index()
        return len(self) - 1

    def _write_index(self) -> None:
        new = self.path / f"{INDEX}.new"
        new.write_text(json.dumps(self._index))
        new.replace(self.path / INDEX)

    def read(
        self, conversation: int, start_turn: int = 0, num_turns: int | None = None
    ) -> tuple[MicroTurnInput, MicroTurnOutput]:
        """A window of a conversation, [num_turns, ...].

        Raises:
          ValueError: the window is not inside the conversation, or the store is damaged.
        """
        entry = self._entry(conversation)
        num_turns = entry["turns"] - start_turn if num_turns is None else num_turns
        if start_turn < 0 or num_turns < 1 or start_turn + num_turns > entry["turns"]:
            raise ValueError(
                f"Micro-turns {start_turn} to {start_turn + num_turns} are not inside conversation {conversation} of "
                f"{self.path}, which has {entry['turns']}."
            )
        begin = entry["start"] + start_turn
        parts = _parts(self.spec)
        reads = {name: self._arrays[name][begin : begin + num_turns].read() for name in parts}
        fields: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] = ({}, {})
        try:
            for name, (which, field, value) in parts.items():
                fields[which][field] = np.asarray(reads[name].result()).astype(value.dtype)
        except ValueError as error:
            raise ValueError(f"The conversation store at {self.path} cannot be read ({error}).") from error
        return MicroTurnInput(**fields[0]), MicroTurnOutput(**fields[1])
