"""A recording: all that a session is a function of, what came of it, and the sound of both sides.

A session's folder is written as `session_log` does, and nothing of it is removed::

    head         the session, the model and the stream; locked by the process that writes
    00000.log    its micro-turns, `EVERY` of them a file
    00003.state  what the session was when this process took it up from another, where it did

A micro-turn is one record, written once it was told: its input as a session that can be resumed keeps it, the block
that it was stepped in, what the model wrote, both sounds, and the journal's lines. Whatever kills the process, the
records before are whole.
"""

import contextlib
import dataclasses
import itertools
import pathlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from tml_jax.serve.config import SessionConfig
from tml_jax.serve.engine import Engine, TurnResult
from tml_jax.serve.errors import JournalError, UnknownSessionError
from tml_jax.serve.session_log import FORMAT, Kept, SessionLog, fields_of, read_head, unpack
from tml_jax.wire.journal import Event, Journal
from tml_jax.wire.pcm import to_pcm

FORM = 1  # one more whenever a record's own fields change; its input has `session_log.FORMAT`
EVERY = 300
_BEGUN = ("row", "outlet", "waiting")  # what the model's side of a session needs of its state


class Recording(Journal):
    """The journal of a session that is recorded."""

    def __init__(
        self,
        parent: pathlib.Path,
        head: dict[str, Any],
        kept: Kept | None,
        path: pathlib.Path | None,
        after: int | None,
    ) -> None:
        """Makes one whose folder, in `parent`, comes with the first micro-turn: who is refused leaves none.

        Args:
          parent: where recordings are.
          head: of this one, with its `session`.
          kept: what another process has left of the session.
          path, after: as of a journal.
        """
        super().__init__(path, keep=True, after=after)
        self._parent, self._head = parent, head
        self._state: dict[str, Any] | None = None
        if kept is not None and kept.state is not None:
            self._state = {"turn": kept.turn} | {name: kept.state[name] for name in _BEGUN}
        self._log: SessionLog | None = None
        self._turn, self._over = 0, False
        self._writing = threading.Lock()

    def taken(self) -> list[Event]:
        """The journal's lines since it was last asked."""
        lines, self.events = self.events, []
        return lines

    def append(self, result: TurnResult, said: np.ndarray | None, lines: list[Event]) -> None:
        """Writes a micro-turn that was told.

        Args:
          result: what was stepped.
          said: float32 [samples], the sound that was made of it; None where nothing can be heard.
          lines: of the journal.

        Raises:
          JournalError: it cannot be written.
        """
        record = {"turn": result.turn, "block": fields_of(result.block), "rung": result.rung, "lines": lines}
        record |= {"tokens": result.tokens, "heard": result.heard, "mel": result.mel if result.speaking else None}
        user = np.zeros(0, np.float32) if result.block.sound is None else result.block.sound
        record |= {"said": said, "user": to_pcm(user)}
        try:
            with self._writing:
                if not self._over:
                    self._write(result.turn, record)
        except OSError as error:
            raise JournalError(f"The recording of this session cannot be written: {error.strerror}.") from error

    def _write(self, turn: int, record: dict[str, Any]) -> None:
        if self._log is None:
            name = self._head["session"]
            names = itertools.chain([name], (f"{name}.{number}" for number in itertools.count(1)))
            folder = next(place for name in names if not (place := self._parent / name).exists())
            self._log = SessionLog.create(folder, self._head, EVERY)
            if self._state is not None:
                self._log.save(turn, self._state)
                self._state = None
        self._log.write(turn, record)
        self._turn = turn

    def close(self) -> None:
        """Closes the journal, and the recording with the last lines."""
        super().close()
        with self._writing:
            self._over = True
            if self._log is None:
                return
            try:
                if self.events:
                    self._log.write(self._turn, {"lines": self.events})
            finally:
                self._log.close(forget=False)


def open_journal(
    session_id: str,
    config: SessionConfig,
    engine: Engine,
    kept: Kept | None,
    journal_dir: pathlib.Path | None,
    record_dir: pathlib.Path | None,
) -> Journal:
    """The journal of a session that begins, or that another process has `kept`; a recording, where they are made."""
    path = journal_dir and journal_dir / f"{session_id}.jsonl"
    after = None if kept is None else kept.state["journal"] if kept.state else 0
    if record_dir is None:
        return Journal(path, after=after)
    bundle = engine.bundle
    head = {"recording": FORM, "session": session_id, "began": time.time(), "config": config.to_plain()}
    head |= {"stream": dataclasses.asdict(bundle.spec), "slots": engine.num_slots}
    head |= {"name": bundle.name, "identity": engine.identity}
    return Recording(record_dir, head, kept, path, after)


class Recorded:
    """What there is of a recording, whose end may be cut off anywhere.

    Attributes:
      head: the session's `config`, its model's `name` and `identity`, the `stream`, and the `slots` of the step.
      state: the conversation that it begins with, where another process began that; else None.
      turn: the micro-turn that it begins with.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        """Opens one.

        Raises:
          ValueError: there is none, or one of another version.
        """
        self._folder, self.head = folder, dict[str, Any]()
        with contextlib.suppress(UnknownSessionError):
            self.head = read_head(folder)
        if "recording" not in self.head:
            raise ValueError(
                f"There is no recording in {folder}: give a session's folder, below that of launch.serve --record_dir."
            )
        if (self.head["recording"], self.head["format"]) != (FORM, FORMAT):
            raise ValueError(f"The recording in {folder} was made by another version of tml_jax, which can read it.")
        states = [state for path in folder.glob("*.state") for state in unpack(path.read_bytes())[0]]
        self.state: dict[str, Any] | None = states[0] if states else None
        self.turn = int(self.state["turn"]) if self.state else 0

    def records(self) -> Iterator[dict[str, Any]]:
        """What `Recording` wrote, in order, up to the first record that is cut off or damaged.

        Those of micro-turns have a `turn`; the last one may have nothing but `lines`.
        """
        due = self.turn
        for path in sorted(self._folder.glob("*.log"), key=lambda path: int(path.stem)):
            data = path.read_bytes()
            found, size = unpack(data)
            for record in found:
                if record.get("turn", due) != due:
                    return
                due += "turn" in record
                yield record
            if size < len(data):
                return
