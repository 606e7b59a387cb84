"""The speech bank: what every voice says, when each word is said, and the sound of it.

A bank is a folder with one Ogg Opus file per voice (16 kHz mono, a voice's clips one after another with short
gaps) and `bank.json`, which says where each clip lies. Clips of the kinds `APART` lie in files of their own, so that
adding some leaves the bytes of a voice's other clips as they are. Opus keeps sample offsets: its delay is written in
the file and taken off again by the decoder. Reading and writing need numpy and soundfile
only.
"""

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Collection, Sequence
from typing import Any, Literal

import numpy as np
import soundfile
from jaxtyping import Float32, Int16

SAMPLE_RATE = 16_000
GAP_SAMPLES = SAMPLE_RATE // 20
INDEX_NAME = "bank.json"
_VERSION = 1
# libsndfile maps 0..1 to 256..6 kbit/s. At 16 kbit/s a band of speech is off by 0.6 dB on average, at 26 by 0.3.
_COMPRESSION = 0.96
_BLOCK_SAMPLES = SAMPLE_RATE

ClipKind = Literal["command", "word", "filler", "assistant", "talk", "request"]
APART: tuple[ClipKind, ...] = ("talk", "request")
"""Each of these has a file of its own in a voice, and a list of its own in the index."""
Split = Literal["train", "heldout"]


@dataclasses.dataclass(frozen=True)
class Word:
    """A word and when it is said, in seconds from the clip's first sample."""

    text: str
    start_s: float
    end_s: float


@dataclasses.dataclass(frozen=True)
class Voice:
    """A voice of the bank: its engine, its side of the held-out split, its licence and the file of most clips."""

    name: str
    engine: str
    split: Split
    licence: str
    file: str

    def file_of(self, kind: ClipKind) -> str:
        """The file of its clips of a kind."""
        return f"{self.file.removesuffix('.opus')}-{kind}.opus" if kind in APART else self.file


@dataclasses.dataclass(frozen=True)
class Clip:
    """One utterance: `num_samples` samples of `file` from `start_sample`, at `SAMPLE_RATE`.

    `text` is lower case without punctuation; `words` are its words in order, or none where talk has no times.
    """

    id: str
    voice: str
    engine: str
    text: str
    kind: ClipKind
    split: Split
    words: tuple[Word, ...]
    file: str
    start_sample: int
    num_samples: int

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.num_samples / SAMPLE_RATE


@dataclasses.dataclass(frozen=True)
class NewClip:
    """A clip to be written: `id` is unique within its voice."""

    id: str
    text: str
    kind: ClipKind
    words: tuple[Word, ...]
    audio: Float32[np.ndarray, " samples"]


def _matches(value: str, wanted: str | Collection[str] | None) -> bool:
    return wanted is None or (value == wanted if isinstance(wanted, str) else value in wanted)


class SpeechBank:
    """A bank opened for reading; a voice's file is decoded on first use and kept as int16."""

    def __init__(self, path: pathlib.Path, voices: Sequence[Voice], clips: Sequence[Clip]) -> None:
        self.path = path
        self.voices = {voice.name: voice for voice in voices}
        self.clips = list(clips)
        self._decoded: dict[str, Int16[np.ndarray, " samples"]] = {}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "SpeechBank":
        """Reads the index of the bank in the folder `path`.

        Raises:
          FileNotFoundError: there is no bank there.
          ValueError: the index isn't one that this code can read.
        """
        path = pathlib.Path(path)
        index = path / INDEX_NAME
        if not index.exists():
            raise FileNotFoundError(
                f"There is no speech bank at {path} ({INDEX_NAME} is missing); make one with "
                f"`python -m launch.prepare_data --out {path}`."
            )
        try:
            voices, clips = _parse_index(json.loads(index.read_text()))
        except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{index} isn't a speech bank index of version {_VERSION} ({error!r}); make the bank again with "
                f"`python -m launch.prepare_data --out {path}`."
            ) from error
        return cls(path, voices, clips)

    def select(
        self,
        *,
        split: str | Collection[str] | None = None,
        voice: str | Collection[str] | None = None,
        engine: str | Collection[str] | None = None,
        text: str | Collection[str] | None = None,
        kind: str | Collection[str] | None = None,
    ) -> list[Clip]:
        """The clips that match every given filter; a filter is one value or a collection of values."""
        wanted = {"split": split, "voice": voice, "engine": engine, "text": text, "kind": kind}
        return [
            clip for clip in self.clips if all(_matches(getattr(clip, name), want) for name, want in wanted.items())
        ]

    def audio(self, clip: Clip) -> Float32[np.ndarray, " samples"]:
        """The clip's waveform at 16 kHz, within [-1, 1], its own copy.

        Raises:
          FileNotFoundError: the voice's file is missing.
          ValueError: the file can't be decoded, has another rate, or ends before the clip does.
        """
        decoded = self._decoded.get(clip.file)
        if decoded is None:
            decoded = self._decoded[clip.file] = _decode(self.path / clip.file)
        end = clip.start_sample + clip.num_samples
        if end > len(decoded):
            raise ValueError(
                f"{self.path / clip.file} has {len(decoded)} samples, but clip {clip.id} ends at {end}; "
                "the file and the index don't belong together, so make the bank again."
            )
        return decoded[clip.start_sample : end].astype(np.float32) / 32768


def _decode(path: pathlib.Path) -> Int16[np.ndarray, " samples"]:
    if not path.exists():
        raise FileNotFoundError(f"The speech bank's file {path} is missing; make the bank again or copy the file.")
    try:
        samples, rate = soundfile.read(path, dtype="int16")
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path} can't be decoded as Ogg Opus ({error}); make the bank again.") from error
    if rate != SAMPLE_RATE or samples.ndim != 1:
        raise ValueError(f"{path} has rate {rate} and shape {samples.shape}; a bank is {SAMPLE_RATE} Hz mono.")
    return samples


def _parse_index(index: dict[str, Any]) -> tuple[list[Voice], list[Clip]]:
    if index["version"] != _VERSION or index["sample_rate"] != SAMPLE_RATE:
        raise ValueError(f"version {index['version']} at {index['sample_rate']} Hz")
    voices, clips = [], []
    for name, entry in index["voices"].items():
        voice = Voice(name, entry["engine"], entry["split"], entry["licence"], entry["file"])
        voices.append(voice)
        of_file = {voice.file: entry["clips"]} | {voice.file_of(kind): entry.get(kind, []) for kind in APART}
        for file, (clip_id, text, kind, start, length, words) in (
            (file, clip) for file, listed in of_file.items() for clip in listed
        ):
            clips.append(
                Clip(
                    id=f"{name}/{clip_id}",
                    voice=name,
                    engine=voice.engine,
                    text=text,
                    kind=kind,
                    split=voice.split,
                    words=tuple(Word(*word) for word in words),
                    file=file,
                    start_sample=start,
                    num_samples=length,
                )
            )
    return voices, clips


def write_voice(path: pathlib.Path, voice: Voice, clips: Sequence[NewClip]) -> dict[str, Any]:
    """Encodes a voice's clips into its files under the folder `path`; returns the voice's index entry.

    A file is replaced in one step, so a reader never sees half of it; one without clips isn't written.
    """
    path.mkdir(parents=True, exist_ok=True)
    entry: dict[str, Any] = {"engine": voice.engine, "split": voice.split, "licence": voice.licence, "file": voice.file}
    entry["clips"] = _write_clips(path / voice.file, [clip for clip in clips if clip.kind not in APART])
    for kind in APART:
        entry[kind] = _write_clips(path / voice.file_of(kind), [clip for clip in clips if clip.kind == kind])
    return entry


def _write_clips(path: pathlib.Path, clips: Sequence[NewClip]) -> list[list[Any]]:
    """One Opus file of the clips; returns their entries in the index."""
    if not clips:
        return []
    entries, pieces, start = [], [], 0
    gap = np.zeros(GAP_SAMPLES, np.float32)
    for clip in clips:
        words = [[w.text, round(w.start_s, 3), round(w.end_s, 3)] for w in clip.words]
        entries.append([clip.id, clip.text, clip.kind, start, len(clip.audio), words])
        pieces += [clip.audio, gap]
        start += len(clip.audio) + GAP_SAMPLES
    sound = np.concatenate(pieces)
    unfinished = path.with_name(f".{path.name}.part")
    with soundfile.SoundFile(
        unfinished, "w", SAMPLE_RATE, 1, format="OGG", subtype="OPUS", compression_level=_COMPRESSION
    ) as file:
        for block in range(0, len(sound), _BLOCK_SAMPLES):  # libsndfile overflows its stack on one large write
            file.write(sound[block : block + _BLOCK_SAMPLES])
    unfinished.replace(path)
    return entries


def write_index(path: pathlib.Path, entries: dict[str, dict[str, Any]]) -> None:
    """Writes `bank.json` in one step; `entries` maps a voice's name to what `write_voice` returned."""
    index = {"version": _VERSION, "sample_rate": SAMPLE_RATE, "voices": entries}
    unfinished = path / f".{INDEX_NAME}.part"
    unfinished.write_text(json.dumps(index, separators=(",", ":"), ensure_ascii=False))
    unfinished.replace(path / INDEX_NAME)


# What a subset keeps first: the assistant and the held-out voices, then the most natural engines.
_ENGINE_ORDER = ("kokoro", "fsdd", "flite", "festival", "piper", "espeak")
# Room for the index and the README beside the sound, per clip and per voice.
_INDEX_BYTES_PER_CLIP, _README_BYTES_PER_VOICE, _README_BYTES = 220, 250, 900


def export(path: pathlib.Path, out: pathlib.Path, max_bytes: int) -> list[Voice]:
    """Copies whole voices of the bank at `path` to `out`, the most useful first, within `max_bytes` in all.

    Returns the voices that are there; `out/README.md` lists them with their licences.
    """
    bank = SpeechBank.load(path)
    entries = json.loads((path / INDEX_NAME).read_text())["voices"]

    def rank(voice: Voice) -> tuple[bool, bool, int]:
        assistant = any(clip.kind == "assistant" for clip in bank.select(voice=voice.name))
        engine = _ENGINE_ORDER.index(voice.engine) if voice.engine in _ENGINE_ORDER else len(_ENGINE_ORDER)
        return not assistant, voice.split != "heldout", engine

    chosen: list[Voice] = []
    left = max_bytes - _README_BYTES
    files = {name: {clip.file for clip in bank.select(voice=name)} for name in bank.voices}
    for voice in sorted(bank.voices.values(), key=rank):
        size = sum((path / file).stat().st_size for file in files[voice.name]) + _README_BYTES_PER_VOICE
        size += _INDEX_BYTES_PER_CLIP * len(bank.select(voice=voice.name))
        if size <= left:
            chosen.append(voice)
            left -= size
    out.mkdir(parents=True, exist_ok=True)
    for file in set().union(*(files[voice.name] for voice in chosen)):
        shutil.copyfile(path / file, out / file)
    write_index(out, {voice.name: entries[voice.name] for voice in chosen})
    (out / "README.md").write_text(_readme(SpeechBank.load(out)))
    return chosen


def _readme(bank: SpeechBank) -> str:
    lines = [
        "# Speech bank",
        "",
        "Speech, 16 kHz mono Ogg Opus, a file per voice, one for its talk, which isn't meant for the model, and one",
        "for what it asks for rarely; `bank.json` says what is said where and when. Only `recorded` and `fsdd` voices",
        "are people;",
        "their recordings were cut to the sound, levelled and encoded.",
        "Read it with `tml_jax.data.speech_bank.SpeechBank`; make a larger one with `python -m launch.prepare_data`.",
        "Held-out voices are for evaluation: never train on them. Clips of kind `assistant` are the model's own voice.",
        "",
        "| voice | split | clips | seconds | talk | seconds | licence of the sound |",
        "|---|---|---|---|---|---|---|",
    ]
    for voice in bank.voices.values():
        talk = bank.select(voice=voice.name, kind="talk")
        own = [clip for clip in bank.select(voice=voice.name) if clip.kind != "talk"]
        counts = (f"{len(clips)} | {sum(clip.duration_s for clip in clips):.0f}" for clips in (own, talk))
        lines.append(f"| {voice.name} | {voice.split} | {' | '.join(counts)} | {voice.licence} |")
    return "\n".join(lines) + "\n"
