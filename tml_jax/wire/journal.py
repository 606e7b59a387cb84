"""The record of a session: JSON lines, one per event, appended as it happens.

Every line holds ``t`` (seconds of session time), ``turn`` (the micro-turn) and ``type``; the timeline picture and
the metrics read nothing else. What comes in is dated by the start of its micro-turn, what the model writes by when
it is heard: the output of micro-turn k has ``t = (k + 1) * 0.2``. Types and their own fields:

=======================  =============================================================================================
session                  first line: ``session`` (id), ``seed``, ``micro_turn_s``, ``started_unix_s``
sound                    ``level``: loudness of the user's sound in this micro-turn, root mean square, full scale 1
silence                  ``ms`` of silence put in for sound that did not arrive in time
lost                     ``ms`` of sound that the client had numbered and did not send
frame                    ``count`` of frames that arrived in this micro-turn
text, instructions       ``text`` that was typed, given
listen, speak, delegate  the decision of this micro-turn, exactly one per micro-turn
voice                    ``level`` of the sound that the model makes in this micro-turn; ``onset_ms``: how far into
                         the micro-turn it begins, where it is loud enough to be heard
word, heard              ``text`` that the model says; that it heard the user say: pieces with their own spaces
                         (`behaviour.whole_words` puts them together)
background               ``task``, ``state`` (started, progress, finished, failed), ``text``
step                     ``ms`` from when it was due to results, ``missed``: whether that was longer than a micro-turn
error                    ``text``: why the session failed
end                      last line of a session that ended well
=======================  =============================================================================================
"""

import contextlib
import json
import os
import pathlib
from types import TracebackType
from typing import Any, Self, TextIO

import numpy as np

from tml_jax.wire import events

Event = dict[str, Any]
AUDIBLE_DB = -40.0
"""Sound of this level, dBFS over 10 ms, is heard; the model's own voice lies around -18 dBFS."""


class Journal:
    """Appends events to a file, a whole line at a time: whatever kills the process, the lines before it are there.

    Attributes:
      events: what was written, when `keep` was asked for.
    """

    def __init__(self, path: pathlib.Path | None, *, keep: bool = False, after: int | None = None) -> None:
        """Makes a journal; the file is opened by the first event. Without a path events are only kept.

        One that goes on with a file does so `after` as many of its bytes; what follows them is written anew.
        """
        self._path, self._keep, self._after = path, keep, after
        self._file: TextIO | None = None
        self._closed = False
        self.events: list[Event] = []

    def write(self, kind: str, t: float, turn: int, **fields: Any) -> Event:
        """Appends one event and returns it."""
        event: Event = {"t": round(t, 4), "turn": turn, "type": kind, **fields}
        if self._closed:
            return event
        if self._path is not None and self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # What people say to a machine is nobody else's to read.
            self._file = os.fdopen(os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", 1, "utf-8")
            if self._after is not None and self.size > self._after:
                os.truncate(self._path, self._after)
        if self._file is not None:
            self._file.write(json.dumps(event, ensure_ascii=False) + "\n")
        if self._keep:
            self.events.append(event)
        return event

    @property
    def size(self) -> int:
        """Bytes of the file so far."""
        return os.fstat(self._file.fileno()).st_size if self._file is not None and not self._closed else 0

    def close(self) -> None:
        """Closes the file; later events are dropped."""
        self._closed = True
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_journal(path: pathlib.Path) -> list[Event]:
    """The events of a journal, in the order written. A last line that a crash cut off is left out.

    Raises:
      ValueError: the file is no journal.
    """
    lines = path.read_text(encoding="utf-8").split("\n")
    complete, torn = lines[:-1], lines[-1]
    read = []
    for number, line in enumerate(complete, 1):
        try:
            event = json.loads(line)
            read.append(event | {"t": float(event["t"]), "turn": int(event["turn"]), "type": str(event["type"])})
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path} is not a session journal: line {number} is no event.") from None
    if torn:
        with contextlib.suppress(ValueError):  # cut off when the process died
            read.append(json.loads(torn))
    return read


def journal_event(journal: Journal, event: events.Event, micro_turn_s: float, has_audio: bool) -> None:
    """Writes what a client is told as journal lines."""
    turn = getattr(event, "turn", 0)
    starts, heard_at = turn * micro_turn_s, (turn + 1) * micro_turn_s
    match event:
        case events.Turn():
            if has_audio:
                journal.write("sound", starts, turn, level=round(event.input_level, 5))
            if event.frames:
                journal.write("frame", starts, turn, count=event.frames)
            if event.frames_dropped:
                journal.write("frames_dropped", starts, turn, count=event.frames_dropped)
            if event.silence_ms:
                journal.write("silence", starts, turn, ms=event.silence_ms)
            if event.lost_ms:
                journal.write("lost", starts, turn, ms=event.lost_ms)
            if event.shortened_ms:
                journal.write("shortened", starts, turn, ms=event.shortened_ms)
            journal.write(event.decision.value, heard_at, turn)
            waited = round(event.queued_ms, 3)
            journal.write("step", heard_at, turn, ms=round(event.step_ms, 3), missed=event.missed, queued_ms=waited)
        case events.HeardWords():
            journal.write("heard", heard_at, turn, text=event.text)
        case events.Words():
            journal.write("word", heard_at, turn, text=event.text)
        case events.Sound():
            onset = onset_ms(event.samples, micro_turn_s)
            heard = {} if onset is None else {"onset_ms": onset}
            journal.write("voice", heard_at, turn, level=round(event.level, 5), **heard)
        case events.Background():
            journal.write("background", heard_at, turn, task=event.task, state=event.state, text=event.text)


def onset_ms(samples: np.ndarray, micro_turn_s: float) -> int | None:
    """How far into a micro-turn its sound, float mono, begins to be heard; None where nothing of it can be."""
    blocks = round(micro_turn_s * 100)
    power = np.square(samples[: len(samples) // blocks * blocks]).reshape(blocks, -1).sum(axis=1) / max(1, len(samples))
    loud = np.flatnonzero(power * blocks > 10 ** (AUDIBLE_DB / 10))
    return int(loud[0]) * 10 if len(loud) else None
