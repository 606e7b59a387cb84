"""What is kept of a session on disk, so that another process can go on with it: its inputs, and now and then its state.

A session has a folder, named after it::

    head         the session: its config and what a resumer must prove; locked (flock) by the process that runs it
    00000.log    its micro-turns' inputs, in order, `every` of them a file
    00003.state  everything it was after the inputs of 00000 to 00002, which are not needed any more

All files are records of a length, a checksum and MessagePack. A record is written by one system call before anybody
is told of what it holds, so that nothing is lost with the process; a last record that is cut off was never told of.
Nothing is synced to the disk: what the machine had not written out is lost with the machine.

Whatever else changes, a head is one such record, and its `format` says how the rest is written.
"""

import asyncio
import contextlib
import dataclasses
import errno
import fcntl
import os
import pathlib
import shutil
import struct
import threading
import time
import zlib
from typing import Any, Self

import msgpack
import numpy as np

from tml_jax.serve.errors import HeldElsewhereError, NotHereError, UnknownSessionError
from tml_jax.serve.inbox import Block, Note
from tml_jax.wire.events import Position

FORMAT = 3  # one more whenever a field of what is kept is added, goes, or means something else
_HEAD = struct.Struct("<II")
_ARRAY = 1


def pack(value: Any) -> bytes:
    """A record of plain values and numpy arrays."""

    def other(x: Any) -> Any:
        if isinstance(x, np.ndarray | np.generic):
            x = np.asarray(x)
            return msgpack.ExtType(_ARRAY, msgpack.packb((x.dtype.name, x.shape, x.tobytes())))
        raise TypeError(f"{type(x).__name__} is no part of a record")

    body = msgpack.packb(value, default=other)
    return _HEAD.pack(len(body), zlib.crc32(body)) + body


def unpack(data: bytes) -> tuple[list[Any], int]:
    """The whole records that data begins with, and how many bytes they take."""

    def array(code: int, body: bytes) -> np.ndarray:
        dtype, shape, content = msgpack.unpackb(body)
        return np.frombuffer(content, np.dtype(dtype)).reshape(shape)

    records, at = [], 0
    while len(data) >= at + _HEAD.size:
        size, checksum = _HEAD.unpack_from(data, at)
        body = data[at + _HEAD.size : at + _HEAD.size + size]
        if not body or len(body) < size or zlib.crc32(body) != checksum:
            break
        records.append(msgpack.unpackb(body, ext_hook=array, strict_map_key=False))
        at += _HEAD.size + size
    return records, at


def fields_of(block: Block) -> dict[str, Any]:
    """A block as it is kept: of plain values and arrays."""
    fields = {field.name: getattr(block, field.name) for field in dataclasses.fields(Block)}
    for name in ("not_before", "sound", "cut", "waiting"):  # are of this process
        del fields[name]
    levels = block.levels
    fields |= {"levels": None if levels is None else levels.astype(np.uint8), "received": vars(block.received)}
    return fields | {"notes": [vars(note) for note in block.notes]}


def block_of(fields: dict[str, Any], cut: bool = False) -> Block:
    """What `fields_of` gave; `cut` where the state after it was to be kept."""
    notes = tuple(Note(**note | {"answers": tuple(note["answers"])}) for note in fields["notes"])
    levels = None if fields["levels"] is None else fields["levels"].astype(np.int32)
    standing = tuple(map(tuple, fields["standing"]))
    whole = {"notes": notes, "levels": levels, "received": Position(**fields["received"]), "standing": standing}
    return Block(**fields | whole | {"tokens": tuple(fields["tokens"]), "cut": cut})


@dataclasses.dataclass(frozen=True)
class Kept:
    """What there is of a session.

    Attributes:
      head: as `SessionLog.create` was given it.
      turn, state: micro-turns that the newest state has seen, and it; 0 and None: there is none.
      blocks: the inputs after it.
      stood_s: seconds since the last of them.
    """

    head: dict[str, Any]
    turn: int
    state: dict[str, Any] | None
    blocks: list[Block]
    stood_s: float

    @property
    def last(self) -> Block | None:
        """The newest input, of a state alone what it says of it; None where there is none."""
        if self.blocks or self.state is None:
            return self.blocks[-1] if self.blocks else None
        last = self.state["last"]
        return Block(None, received=Position(**last["received"]), heard=last["heard"], held=last["held"])


class SessionLog:
    """One session's folder, locked as long as this is open. Thread-safe."""

    def __init__(self, folder: pathlib.Path, lock: int, every: int) -> None:
        self._folder, self._lock, self._every, self._part = folder, lock, every, -1
        self._file: int | None = None
        self._writing = threading.Lock()

    @classmethod
    def create(cls, folder: pathlib.Path, head: dict[str, Any], every: int) -> Self:
        """Makes the folder. Raises OSError where it cannot be made."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
        lock = os.open(folder / "head", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.write(lock, pack(head | {"format": FORMAT, "every": every}))
        return cls(folder, lock, every)

    @classmethod
    def open(cls, folder: pathlib.Path) -> tuple[Self, Kept]:
        """Takes over what another process has left.

        Raises:
          UnknownSessionError: there is no such session, or too little of it.
          HeldElsewhereError: a process runs it.
          NotHereError: it is written otherwise than this can read, or damaged.
        """
        log = cls.locked(folder)
        try:
            return log, log._read()
        except BaseException:
            log.close(forget=False)
            raise

    @classmethod
    def locked(cls, folder: pathlib.Path) -> Self:
        """What another process has left, however it is written: to be closed. Raises as `open`."""
        try:
            lock = os.open(folder / "head", os.O_RDONLY)
        except OSError:
            raise UnknownSessionError from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            if isinstance(error, BlockingIOError):
                raise HeldElsewhereError from None
            raise
        return cls(folder, lock, 1)

    def _read(self) -> Kept:
        head = read_head(self._folder)
        check_format(head)
        newest, state, touched = 0, None, (self._folder / "head").stat().st_mtime
        saved = sorted(self._folder.glob("*.state"), reverse=True)
        for path in saved:
            if states := unpack(path.read_bytes())[0]:
                newest, state = int(path.stem), states[0]
                break
        damaged = bool(saved) and state is None
        blocks: list[Block] = []
        every = head["every"]
        last = max((int(path.stem) for path in self._folder.glob("*.log")), default=newest - 1)
        for number in range(newest, last + 1):
            path = self._folder / f"{number:05d}.log"
            records, size = unpack(path.read_bytes()) if path.exists() else ([], 0)
            if damaged := damaged or (len(records) < every and number < last):  # what followed it was told of
                break
            touched = max(touched, path.stat().st_mtime)
            os.truncate(path, size)  # what was cut off
            blocks += [block_of(fields, i + 1 == every) for i, fields in enumerate(records)]
        if damaged:
            raise NotHereError("What is kept of this session is damaged, and nothing can go on with it.")
        self._every = every
        return Kept(head, newest * every, state, blocks, max(0.0, time.time() - touched))

    def append(self, turn: int, block: Block) -> bool:
        """Keeps a micro-turn's input. Returns whether the state after it is wanted. Raises OSError."""
        self.write(turn, fields_of(block))
        return (turn + 1) % self._every == 0

    def write(self, turn: int, record: dict[str, Any]) -> None:
        """Appends a record to the part of a micro-turn. Raises OSError."""
        data = pack(record)
        with self._writing:
            if self._lock < 0:
                raise OSError(errno.EBADF, "the session is over here")
            if turn // self._every != self._part:
                self._close_part()
                self._part = turn // self._every
                path = self._folder / f"{self._part:05d}.log"
                self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            assert self._file is not None
            if os.write(self._file, data) < len(data):
                raise OSError(errno.ENOSPC, "no space is left")

    def save(self, turn: int, state: dict[str, Any]) -> None:
        """Keeps the state after so many micro-turns, and removes what it makes unneeded. Raises OSError."""
        number = turn // self._every
        path, new = self._folder / f"{number:05d}.state", self._folder / "state.new"
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(pack(state))
        new.rename(path)
        for old in (*self._folder.glob("*.state"), *self._folder.glob("*.log")):
            if int(old.stem) < number:
                old.unlink(missing_ok=True)

    def close(self, *, forget: bool) -> None:
        """Leaves the session to other processes, or removes it."""
        with self._writing:
            if self._lock < 0:
                return
            self._close_part()
            if forget:
                shutil.rmtree(self._folder, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1

    def _close_part(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def read_head(folder: pathlib.Path) -> dict[str, Any]:
    """What a session in this folder was made with, whoever runs it. Raises UnknownSessionError where there is none."""
    try:
        heads, _ = unpack((folder / "head").read_bytes())
    except OSError:
        raise UnknownSessionError from None
    if not heads:
        raise UnknownSessionError
    return heads[0]


def check_format(head: dict[str, Any]) -> None:
    """Raises NotHereError where what has this head is written otherwise than this version writes and reads it."""
    if (found := head.get("format", 1)) != FORMAT:
        raise NotHereError(
            f"This session was kept in format {found} by another version of the server, and this one reads format "
            f"{FORMAT} alone."
        )


def sweep(folder: pathlib.Path, older_than_s: float, since: float) -> None:
    """Removes sessions that no process runs and that nothing came of for so long, at least `since` that time."""
    for one in folder.iterdir() if folder.is_dir() else ():
        with contextlib.suppress(OSError, UnknownSessionError, HeldElsewhereError):
            touched = max((path.stat().st_mtime for path in one.iterdir()), default=0.0)
            if time.time() - max(touched, since) > older_than_s:
                SessionLog.locked(one).close(forget=True)


async def take_up(folder: pathlib.Path) -> tuple[SessionLog, Kept]:
    """`SessionLog.open`, in a thread; who is cancelled meanwhile leaves the session to others.

    Raises:
      UnknownSessionError, HeldElsewhereError, NotHereError: as `SessionLog.open`.
    """
    opening = asyncio.create_task(asyncio.to_thread(SessionLog.open, folder))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:  # or its lock would be held by nobody, for ever
        opening.add_done_callback(_leave)
        raise


def _leave(opened: asyncio.Task[tuple[SessionLog, Kept]]) -> None:
    if not opened.cancelled() and opened.exception() is None:
        opened.result()[0].close(forget=False)
