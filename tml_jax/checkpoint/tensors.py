"""Named tensors in safetensors files, read and written piece by piece.

A directory holds ``model.safetensors``, or shards and the ``model.safetensors.index.json`` that says which tensor
lies in which. Reading maps the files into memory, so that a slice of a tensor costs only that slice; writing takes
each tensor in pieces. Neither ever holds a checkpoint, or a stack of layers, in memory.
"""

import collections
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

DEFAULT_SHARD_BYTES = 5_000_000_000
_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """Name, shape and dtype of a stored tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Bytes that its values take."""
        return math.prod(self.shape) * self.dtype.itemsize


class TensorFiles(Mapping[str, np.ndarray]):
    """The tensors of a directory, by name; each is a read-only array mapped from its file.

    Raises:
      ValueError: there are no such files, one of them is damaged or cut off, or the index names a file that isn't
        there or a tensor that its file doesn't hold.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = pathlib.Path(directory)
        self._places: dict[str, tuple[pathlib.Path, TensorSpec, int]] = {}
        index = self.directory / _INDEX
        files: Mapping[str, set[str] | None]
        if index.is_file():
            files = _read_index(index)
        elif (self.directory / _FILE).is_file():
            files = {_FILE: None}
        else:
            raise ValueError(f"{self.directory} holds no model.safetensors and no model.safetensors.index.json.")
        for file, expected in files.items():
            if not (self.directory / file).is_file():
                raise ValueError(f"{index} names {file}, which is not there.")
            places = _read_header(self.directory / file)
            if expected is not None and (lost := sorted(expected - set(places))):
                raise ValueError(f"{index} places tensor {lost[0]!r} in {file}, which does not hold it.")
            # In the order in which the file has them; what the index places elsewhere was replaced.
            self._places.update({name: place for name, place in places.items() if name in (expected or places)})

    def __getitem__(self, name: str) -> np.ndarray:
        """The tensor, mapped: only what is read of it is read from disk."""
        path, spec, offset = self._places[name]
        if not spec.nbytes:
            return np.empty(spec.shape, spec.dtype)
        return np.memmap(path, spec.dtype, "r", offset, spec.shape)

    def __iter__(self) -> Iterator[str]:
        """Their names."""
        return iter(self._places)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._places)

    def spec(self, name: str) -> TensorSpec:
        """Shape and dtype of a tensor, without reading it."""
        return self._places[name][1]


def read_file(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All tensors of one file, read into memory.

    Raises:
      ValueError: it is damaged or cut off.
    """
    places = _read_header(pathlib.Path(path))
    return {
        name: np.fromfile(file, spec.dtype, math.prod(spec.shape), offset=offset).reshape(spec.shape)
        for name, (file, spec, offset) in places.items()
    }


def _read_index(index: pathlib.Path) -> Mapping[str, set[str]]:
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        files: dict[str, set[str]] = collections.defaultdict(set)
        for name, file in weight_map.items():
            files[file].add(name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not an index of safetensors files ({type(error).__name__}: {error}).") from error
    return dict(files)


def _read_header(path: pathlib.Path) -> dict[str, tuple[pathlib.Path, TensorSpec, int]]:
    """Where each tensor of a file lies."""
    try:
        length = path.stat().st_size
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(size, length)))
        header.pop("__metadata__", None)
        end = 8 + size + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if length >= end:
            with safe_open(path, "np"):  # checks all of the header
                pass
    except (SafetensorError, OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error}).") from error
    if length < end:
        raise ValueError(f"{path} is cut off: it has {length} of the {end} bytes that its header tells of.")
    places = {}
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"Tensor {name!r} of {path} has dtype {entry['dtype']}, which is not supported.")
        spec = TensorSpec(name, tuple(entry["shape"]), _DTYPES[entry["dtype"]])
        places[name] = (path, spec, 8 + size + entry["data_offsets"][0])
    return places


def write_tensors(
    directory: str | os.PathLike[str],
    specs: Sequence[TensorSpec],
    pieces: Callable[[str], Iterable[Any]],
    *,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    share: tuple[int, int] | None = None,
) -> None:
    """Writes tensors: one file, or shards with an index where they would pass `max_shard_bytes`.

    Each file appears under its name only when it is whole, and on the disk.

    Args:
      directory: made where it isn't there.
      specs: what will be written, in order.
      pieces: of a name, its values: arrays of its dtype which, flattened one after another, are the tensor.
      max_shard_bytes: a tensor larger than this has a file of its own.
      share: number and count of the processes that write; each writes files of its own, and leaves those that are
        there. None: one process, and all anew.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    shards = cut_into_shards(specs, max_shard_bytes)
    total = len(shards)
    names = [f"model-{i + 1:05d}-of-{total:05d}.safetensors" for i in range(total)] if total > 1 else [_FILE]
    number, count = share or (0, 1)
    for name, shard in list(zip(names, shards, strict=True))[number::count]:
        if share is None or not (directory / name).is_file():
            write_file(directory / name, shard, pieces)
    if total == 1 or number:
        return
    weight_map = {spec.name: name for name, shard in zip(names, shards, strict=True) for spec in shard}
    index = {"metadata": {"total_size": sum(s.nbytes for s in specs)}, "weight_map": weight_map}
    (directory / _INDEX).write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")


def cut_into_shards(specs: Sequence[TensorSpec], max_shard_bytes: int) -> list[list[TensorSpec]]:
    """What lies in which file of `write_tensors`."""
    shards: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in specs:
        if shards[-1] and size + spec.nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(spec)
        size += spec.nbytes
    return shards


def write_file(path: pathlib.Path, specs: Sequence[TensorSpec], pieces: Callable[[str], Iterable[Any]]) -> None:
    """Writes one safetensors file; arguments as `write_tensors`."""
    # Widest dtypes first: every tensor then starts at a multiple of its item size.
    specs = sorted(specs, key=lambda spec: -spec.dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for spec in specs:
        span = [offset, offset + spec.nbytes]
        header[spec.name] = {"dtype": _CODES[spec.dtype], "shape": list(spec.shape), "data_offsets": span}
        offset = span[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for spec in specs:
            written = 0
            for piece in pieces(spec.name):
                array = np.ascontiguousarray(piece)
                assert array.dtype == spec.dtype, (spec, array.dtype)
                file.write(array.view(np.uint8).data if array.size else b"")
                written += array.nbytes
            assert written == spec.nbytes, (spec, written)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
