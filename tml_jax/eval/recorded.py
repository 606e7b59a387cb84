"""A recorded timeline: what a user said, what a system answered, and when; the one thing that suites score.

A case is a folder (two that belong together, as Full-Duplex-Bench's noisy and clean input do, share one and differ by a
prefix of their files' names):

==================  ==============================================================================================
``input.wav``       the user's sound
``output.wav``      the system's sound, from the same moment on
``session.jsonl``   the journal (`wire.journal`), where the system has one
``output.json``     what the system says, word by word: ``{"text", "chunks": [{"text", "timestamp": [start, end]}]}``;
                    of ``{"text"}`` alone forced alignment finds the times (extra ``speech``)
``case.json``       ``suite``, ``category``, ``duration_s``, and ``expectations`` as the simulator writes them
any other ``.json``  annotations, kept as they are
==================  ==============================================================================================

Only the two sounds are needed, so any folder of recordings can be scored: what is heard is then told by loudness.
Times are seconds from the first sample.
"""

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import soundfile

from tml_jax.client import summary
from tml_jax.data import alignment
from tml_jax.streams.sound import read_sound
from tml_jax.wire.behaviour import Behaviour
from tml_jax.wire.journal import Journal, read_journal

RATE = 16_000
"""Hz of both sounds; others are converted as they are read."""
PAUSE_S = 0.1
"""A shorter silence parts no stretch of sound that is told by loudness."""
_AUDIBLE = 1e-3
_LEADS_S = 0.4  # a journal dates a word by its micro-turn, and its sound may begin in the next one
_WORD_S = 0.2  # how long a word is taken to last where no sound tells
_WORD = re.compile(r"\w(?:[\w']*\w)?")


class Chunk(NamedTuple):
    """A word that a system says, seconds; `end_s` is None where a recogniser could not tell."""

    text: str
    start_s: float
    end_s: float | None


@dataclasses.dataclass(frozen=True, eq=False)
class Recorded:
    """One case, as it was heard. Sounds are kept as 16 bits, so that what is scored equals what is saved.

    Attributes:
      name: path of its folder in the run's.
      input, output: float32 [samples] at `RATE`; the output of a run that kept no sound is None.
      duration_s: how long both sides lasted.
      suite, category: what it belongs to; where nobody says, none, and the name of the folder that holds its folder.
      expectations: what a good system does here, as the simulator writes it.
      events: the journal; None where the system has none.
      chunks: what it says; None where nobody wrote it down.
      annotations: the other JSON files of the folder, by name without the ending.
      prefix: of its files' names.
    """

    name: str
    input: np.ndarray
    output: np.ndarray | None
    duration_s: float
    suite: str = ""
    category: str = ""
    expectations: Sequence[dict[str, Any]] = ()
    events: Sequence[dict[str, Any]] | None = None
    chunks: Sequence[Chunk] | None = None
    annotations: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    prefix: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "input", _to_16_bits(self.input) / np.float32(32768))
        if self.output is not None:
            object.__setattr__(self, "output", _to_16_bits(self.output) / np.float32(32768))

    def behaviour(self) -> Behaviour:
        """What the system did: by its journal or, where it has none, by its sound, and what is written down of it."""
        if self.events is not None:
            return Behaviour.from_events(self.events)
        words = tuple((chunk.start_s, word.lower()) for chunk in self.chunks or () for word in chunk.text.split())
        return Behaviour(self.heard(PAUSE_S), words, ())

    def heard(self, gap_s: float) -> tuple[tuple[float, float], ...]:
        """Stretches (start, end) in which the system's sound is loud; a shorter pause than `gap_s` parts none."""
        return stretches(self.output, gap_s)

    def save(self, out: pathlib.Path) -> None:
        """Writes the case to its folder below `out`.

        Raises:
          OSError: it cannot be written.
        """
        folder = out / self.name
        folder.mkdir(parents=True, exist_ok=True)
        for side, samples in (("input", self.input), ("output", self.output)):
            if samples is not None:
                soundfile.write(folder / f"{self.prefix}{side}.wav", _to_16_bits(samples), RATE)
        about = {"suite": self.suite, "category": self.category, "duration_s": self.duration_s}
        _write(folder / f"{self.prefix}case.json", about | {"expectations": list(self.expectations)})
        for name, annotation in self.annotations.items():
            _write(folder / f"{name}.json", annotation)
        if self.chunks is not None:
            _write(folder / f"{self.prefix}output.json", _transcript(self.chunks))
        journal = folder / f"{self.prefix}session.jsonl"
        journal.unlink(missing_ok=True)
        if self.events is not None:
            with Journal(journal) as kept:
                for event in self.events:
                    rest = {key: value for key, value in event.items() if key not in ("type", "t", "turn")}
                    kept.write(event["type"], event["t"], event["turn"], **rest)


def load(folder: pathlib.Path, name: str = "", prefix: str = "") -> Recorded:
    """Reads the case in a folder.

    Raises:
      ValueError: a sound is missing, or a file is damaged.
    """
    about: dict[str, Any] = _read(folder / f"{prefix}case.json", {})
    journal = folder / f"{prefix}session.jsonl"
    spoken, heard = (read_sound(folder / f"{prefix}{side}.wav", RATE) for side in ("input", "output"))
    try:
        return Recorded(
            name=name or folder.name,
            input=spoken,
            output=heard,
            duration_s=float(about.get("duration_s", max(len(spoken), len(heard)) / RATE)),
            suite=about.get("suite", ""),
            category=about.get("category", folder.resolve().parent.name),
            expectations=tuple(about.get("expectations", ())),
            events=read_journal(journal) if journal.exists() else None,
            chunks=read_transcript(folder / f"{prefix}output.json", heard),
            annotations=annotations_in(folder),
            prefix=prefix,
        )
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{folder / prefix}case.json is not as a recorded case has it ({error}).") from error


def load_all(root: pathlib.Path, suite: str = "") -> Iterator[Recorded]:
    """Every case below a folder, in the order of their names; of a suite, those that say that they are of no other.

    Raises:
      ValueError: there is none of any suite, or one is damaged.
    """
    found = sorted(root.rglob("*output.wav"))
    if not found:
        raise ValueError(f"{root} holds no recorded case: a folder with input.wav and output.wav.")
    for path in found:
        prefix = path.name.removesuffix("output.wav")
        if suite and _read(path.parent / f"{prefix}case.json", {}).get("suite", "") not in ("", suite):
            continue
        name = path.parent.relative_to(root).as_posix()
        yield load(path.parent, name if name != "." else path.parent.name, prefix)


def annotations_in(folder: pathlib.Path) -> dict[str, Any]:
    """What the JSON files of a folder hold, by their names, but for those that a case itself consists of.

    Raises:
      ValueError: one is damaged.
    """
    found = (path for path in sorted(folder.glob("*.json")) if not path.name.endswith(("case.json", "output.json")))
    return {path.stem: _read(path, None) for path in found}


def stretches(samples: np.ndarray | None, gap_s: float) -> tuple[tuple[float, float], ...]:
    """Where a sound at `RATE` is loud (`client.summary.segments`), (start, end); nothing where all of it is silence."""
    if samples is None or np.abs(samples).max(initial=0) < _AUDIBLE:
        return ()
    return tuple((one.start_s, one.end_s) for one in summary.segments(samples, RATE, gap_s))


def chunks_of(done: Behaviour) -> tuple[Chunk, ...]:
    """A behaviour's words with the times of their sound.

    A journal dates a word by the micro-turn that says it. It begins there, or with the stretch of sound that follows at
    once; it ends with the next word, or with its stretch.
    """
    starts = []
    for time, _ in done.words:
        inside = any(start <= time < end for start, end in done.sound)
        later = next((start for start, _ in done.sound if time <= start < time + _LEADS_S), time)
        starts.append(time if inside else later)
    found = []
    for i, (start, (_, word)) in enumerate(zip(starts, done.words, strict=True)):
        limit = next((end for begin, end in done.sound if begin <= start < end), start + _WORD_S)
        after = next((later for later in starts[i + 1 :] if later > start), limit)
        found.append(Chunk(word, start, min(after, limit)))
    return tuple(found)


def words_after(chunks: Sequence[Chunk], time_s: float) -> tuple[Chunk, ...]:
    """The words that are heard after `time_s`, as a transcript of the sound from there on has them."""
    heard = (c for c in chunks if (c.start_s if c.end_s is None else c.end_s) > time_s)
    return tuple(Chunk(c.text, max(c.start_s, time_s), c.end_s) for c in heard)


def read_transcript(path: pathlib.Path, sound: np.ndarray) -> tuple[Chunk, ...] | None:
    """The words of an ``output.json``, said in a sound at `RATE`; None where there is no such file.

    Raises:
      ValueError: it is no transcript, or has no times and they cannot be found.
    """
    read = _read(path, None)
    try:
        if read is None:
            return None
        if "chunks" not in read:
            return _aligned(path, _WORD.findall(read["text"].lower().replace("’", "'")), sound)
        return tuple(Chunk(c["text"].strip(), *c["timestamp"]) for c in read["chunks"])
    except (KeyError, TypeError, AttributeError):
        sentence = "is no transcript: it has neither a text nor chunks of a text and a timestamp each."
        raise ValueError(f"{path} {sentence}") from None


@functools.cache
def _aligner() -> alignment.Aligner:
    return alignment.load_aligner()


def _aligned(path: pathlib.Path, words: Sequence[str], sound: np.ndarray) -> tuple[Chunk, ...]:
    try:
        found = _aligner()(sound, words) if words else []
    except RuntimeError as error:
        raise ValueError(f"{path} has no times, and to find them pocketsphinx is needed. {error}") from error
    if found is None:
        raise ValueError(f"{path} has no times, and its words were not found in the sound, one after the other.")
    return tuple(Chunk(word.text, word.start_s, word.end_s) for word in found)


def _transcript(chunks: Sequence[Chunk]) -> dict[str, Any]:
    pieces = [{"text": text, "timestamp": times} for text, *times in chunks]
    return {"text": " ".join(chunk.text for chunk in chunks), "chunks": pieces}


def _to_16_bits(samples: np.ndarray) -> np.ndarray:
    return np.clip(np.round(samples * np.float32(32768)), -32768, 32767).astype(np.int16)


def _read(path: pathlib.Path, otherwise: Any) -> Any:
    if not path.exists():
        return otherwise
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}.") from error


def _write(path: pathlib.Path, what: Any) -> None:
    path.write_text(json.dumps(what, indent=1, ensure_ascii=False, default=float) + "\n", encoding="utf-8")
