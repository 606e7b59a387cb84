"""Recorded or prepared conversations on disk, read by window: TensorStore arrays (zarr3) and one JSON index.

All conversations lie one after another along the first axis of each array, packed (`streams.packed`): the arrays of
patches and of mel have an axis of their own, and the index says where in each a conversation begins. A window of a few
hundred micro-turns touches only the chunks that hold it. Many stores, written apart, are read as one `Corpus`.
"""

import bisect
import itertools
import json
import os
import pathlib
from typing import Any

import numpy as np
import tensorstore as ts

from tml_jax.streams import packed
from tml_jax.streams.micro_turn import MicroTurnInput, MicroTurnOutput, StreamSpec

INDEX = "index.json"
_VERSION = 2
_CHUNK_TURNS, _CHUNK_PACKED = 128, 32
_PACKED = ("i_patches", "o_mel")


def _parts(spec: StreamSpec) -> dict[str, tuple[int, str, np.ndarray]]:
    """Array name -> (0 for inputs or 1 for outputs, field, an empty one of one row)."""
    both = packed.empty(spec, (1,), (), 1, 1)
    return {f"{'io'[i]}_{name}": (i, name, value) for i, part in enumerate(both) for name, value in vars(part).items()}


class ConversationStore:
    """A store of conversations; `create` or `open` it."""

    def __init__(self, path: pathlib.Path, spec: StreamSpec, index: dict[str, Any], *, create: bool) -> None:
        self.path, self.spec, self._index = path, spec, index
        self._arrays = {name: self._open(name, value, create) for name, (_, _, value) in _parts(spec).items()}

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

    def _open(self, name: str, value: np.ndarray, create: bool) -> Any:
        chunk = [_CHUNK_PACKED if name in _PACKED else _CHUNK_TURNS, *value.shape[1:]]
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str((self.path / name).absolute())}}
        if not create:
            return ts.open(spec, open=True).result()
        metadata = {
            "shape": [0, *value.shape[1:]],
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
            "data_type": str(value.dtype),
            "codecs": [{"name": "bytes"}, {"name": "zstd", "configuration": {"level": 3}}],
        }
        return ts.open(spec | {"metadata": metadata}, create=True).result()

    def __len__(self) -> int:
        """Conversations in the store."""
        return len(self._index["conversations"])

    def num_turns(self, conversation: int) -> int:
        """Micro-turns of a conversation."""
        return self._entry(conversation)["sizes"]["turns"]

    def metadata(self, conversation: int) -> dict[str, Any]:
        """What was stored with a conversation."""
        return self._entry(conversation)["metadata"]

    def _entry(self, conversation: int) -> dict[str, Any]:
        if not 0 <= conversation < len(self):
            raise ValueError(f"Conversation {conversation} is not in {self.path}, which holds {len(self)}.")
        return self._index["conversations"][conversation]

    def append(self, conversation: packed.Conversation, metadata: dict[str, Any] | None = None) -> int:
        """Adds a packed conversation [N]; it counts only once all of it is on disk.

        Returns:
          Its number.
        """
        last = self._index["conversations"][-1] if len(self) else None
        starts = {name: last["starts"][name] + last["sizes"][name] if last else 0 for name in ("turns", *_PACKED)}
        sizes = {"turns": len(conversation[0].active)}
        writes = []
        for name, (which, field, _) in _parts(self.spec).items():
            value = np.asarray(getattr(conversation[which], field))
            axis = name if name in _PACKED else "turns"
            start, sizes[axis] = starts[axis], len(value)
            array = self._arrays[name].resize(exclusive_max=[start + len(value), *value.shape[1:]]).result()
            self._arrays[name] = array
            writes.append(array[start : start + len(value)].write(value.astype(array.dtype.numpy_dtype)))
        for write in writes:
            write.result()
        self._index["conversations"].append({"starts": starts, "sizes": sizes, "metadata": metadata or {}})
        self._write_index()
        return len(self) - 1

    def _write_index(self) -> None:
        new = self.path / f"{INDEX}.new"
        new.write_text(json.dumps(self._index))
        new.replace(self.path / INDEX)

    def read(self, conversation: int, start_turn: int = 0, num_turns: int | None = None) -> packed.Conversation:
        """A window of a conversation, [num_turns].

        Raises:
          ValueError: the window is not inside the conversation, or the store is damaged.
        """
        turns = self.num_turns(conversation)
        stop = turns if num_turns is None else start_turn + num_turns
        if not 0 <= start_turn < stop <= turns:
            raise ValueError(
                f"Micro-turns {start_turn} to {stop} are not inside conversation {conversation} of {self.path}, which "
                f"has {turns}."
            )
        starts = self._entry(conversation)["starts"]
        upto = slice(starts["turns"], starts["turns"] + stop)
        counts = self._read(dict.fromkeys(("i_num_patches", "o_num_tokens", "o_speaking"), upto))
        per_turn = (counts["i_num_patches"], counts["o_num_tokens"] * counts["o_speaking"])
        where = {}
        for axis, count in zip(_PACKED, per_turn, strict=True):
            first = starts[axis] + int(np.sum(count[:start_turn]))
            where[axis] = slice(first, first + int(np.sum(count[start_turn:])))
        own = slice(starts["turns"] + start_turn, starts["turns"] + stop)
        values = self._read({name: where.get(name, own) for name in self._arrays})
        fields: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] = ({}, {})
        for name, (which, field, _) in _parts(self.spec).items():
            fields[which][field] = values[name]
        return MicroTurnInput(**fields[0]), MicroTurnOutput(**fields[1])

    def _read(self, slices: dict[str, slice]) -> dict[str, np.ndarray]:
        reads = {name: self._arrays[name][part].read() for name, part in slices.items()}
        try:
            return {name: np.asarray(read.result()) for name, read in reads.items()}
        except ValueError as error:
            raise ValueError(f"The conversation store at {self.path} cannot be read ({error}).") from error


class Corpus:
    """The conversations of a split: of one store, which has none, or of a folder's shards ``SPLIT/NUMBER``.

    Raises:
      ValueError: there are none at `path`, a store is damaged, or it was made for another stream.
    """

    def __init__(self, path: str | os.PathLike[str], split: str, spec: StreamSpec) -> None:
        whole = pathlib.Path(path)
        shards = sorted(index.parent for index in (whole / split).glob(f"*/{INDEX}"))
        self._stores = [ConversationStore.open(place) for place in shards or [whole]]
        if any(store.spec != spec for store in self._stores):
            raise ValueError(
                f"The conversation store at {path} was made for a model with another stream; make it anew."
            )
        self._ends = list(itertools.accumulate(map(len, self._stores)))
        if not self._ends[-1]:
            raise ValueError(f"The conversation store at {path} holds no {split} conversation.")

    def __len__(self) -> int:
        """Conversations in all."""
        return self._ends[-1]

    def window(self, conversation: int, rng: np.random.Generator, most: int) -> packed.Conversation:
        """A window of a conversation that begins anywhere, [most], or all of a shorter one."""
        which = bisect.bisect_right(self._ends, conversation)
        store, own = self._stores[which], conversation - (self._ends[which - 1] if which else 0)
        turns = store.num_turns(own)
        start = int(rng.integers(0, max(1, turns - most + 1)))
        return store.read(own, start, min(most, turns - start))
