"""Recorded conversations with word times -> shards of the conversation store, each a pure function of its files.

A corpus is a folder of files NAME.wav, .flac, .opus, .ogg, .mp3, .mp4, .mkv or .webm, in any folders below it, each
with NAME.json or NAME.vtt beside it. In a stereo file the first channel is the user and the second the assistant, as
telephone systems record calls; in a mono file everybody is the user, and the assistant listens. The transcripts:

    {"words": [{"speaker": "user", "word": "hello", "start": 0.52, "end": 0.81}, ...]}

    WEBVTT                                      (the speaker by voice tag; a word lasts up to the next time)

    00:00:00.520 --> 00:00:01.400
    <v user>hello <00:00:00.900>there

What the assistant says needs its words: they are what the model writes. The user's are learnt where they are given.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Sequence
from typing import Literal

import numpy as np

from tml_jax.data import recordings
from tml_jax.data.store import ConversationStore
from tml_jax.data.timeline import AssistantSpeech, Conversation, Frames, SpokenWord, UserSpeech, render
from tml_jax.streams import sound, video
from tml_jax.streams.micro_turn import StreamSpec
from tml_jax.streams.text import Tokenizer

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")

_SOUND, _VIDEO = (".wav", ".flac", ".opus", ".ogg", ".mp3"), (".mp4", ".mkv", ".webm")
_TRANSCRIPTS = (".json", ".vtt")
_SPEAKERS = ("user", "assistant")
_VERSION = 1
_MADE_OF = "made_of.json"
_TAIL_S = 0.1  # of the assistant's sound after a word's end: transcripts end words early
_CUE = re.compile(r"([\d:.]+)\s+-->\s+([\d:.]+)")
_STAMP = re.compile(r"<([\d:.]+)>")


@dataclasses.dataclass(frozen=True)
class Source:
    """A recorded conversation: its name in the corpus, its sound or video, and its transcript, if there is one."""

    name: str
    media: pathlib.Path
    transcript: pathlib.Path | None


def find(folder: str | os.PathLike[str]) -> list[Source]:
    """The conversations of a corpus, by name.

    Raises:
      ValueError: there are none, or two files would have one name.
    """
    folder = pathlib.Path(folder)
    paths = sorted(path for path in folder.rglob("*") if path.suffix in _SOUND + _VIDEO)
    if not paths:
        raise ValueError(f"{folder} holds no sound and no video ({', '.join(_SOUND + _VIDEO)}).")
    found: dict[str, Source] = {}
    for path in paths:
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise ValueError(f"{path} and {found[name].media.name} are two recordings of one name.")
        beside = [path.with_suffix(suffix) for suffix in _TRANSCRIPTS if path.with_suffix(suffix).is_file()]
        found[name] = Source(name, path, beside[0] if beside else None)
    return list(found.values())


def shards(sources: Sequence[Source], heldout: float, count: int) -> list[tuple[Split, int, list[Source]]]:
    """The work, for any worker and in any order: (split, number, recordings).

    Split and number of a recording follow from its name: what else the corpus holds changes neither.
    """
    work: dict[tuple[Split, int], list[Source]] = {}
    for source in sources:
        drawn = np.random.default_rng(list(hashlib.sha1(source.name.encode()).digest()))
        split: Split = "heldout" if drawn.random() < heldout else "train"
        work.setdefault((split, int(drawn.integers(count))), []).append(source)
    return [(split, number, mine) for (split, number), mine in sorted(work.items())]


def read_words(path: pathlib.Path) -> dict[str, list[SpokenWord]]:
    """The words of "user" and "assistant", by time, as the simulator writes them: lower case, no punctuation.

    Raises:
      ValueError: the transcript cannot be read, or its times are none.
    """
    try:
        lines = _from_json(path) if path.suffix == ".json" else _from_vtt(path)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"The transcript {path} cannot be read ({type(error).__name__}: {error}).") from error
    words: dict[str, list[SpokenWord]] = {speaker: [] for speaker in _SPEAKERS}
    for speaker, text, start, end in lines:
        if speaker not in words:
            raise ValueError(f"{path} has words of {speaker!r}; speakers are {' and '.join(_SPEAKERS)}.")
        if not 0 <= start <= end < math.inf:
            raise ValueError(f"{path} has a word from {start} to {end} s.")
        pieces = [] if text.startswith(recordings.NOT_SPEECH) else recordings.spoken_text(text).split()
        step = (end - start) / max(1, len(pieces))
        words[speaker] += [SpokenWord(p, start + i * step, start + (i + 1) * step) for i, p in enumerate(pieces)]
    return {speaker: sorted(spoken, key=lambda word: word.start_s) for speaker, spoken in words.items()}


_Line = tuple[str, str, float, float]


def _from_json(path: pathlib.Path) -> list[_Line]:
    words = json.loads(path.read_text())["words"]
    return [(w["speaker"], w["word"].strip(), float(w["start"]), float(w["end"])) for w in words]


def _from_vtt(path: pathlib.Path) -> list[_Line]:
    text = path.read_text().lstrip("\ufeff")
    if not text.startswith("WEBVTT"):
        raise ValueError("it does not begin with WEBVTT")
    lines: list[_Line] = []
    for block in re.split(r"\n\s*\n", text)[1:]:
        before, arrow, body = block.partition("\n") if "-->" in block.split("\n")[0] else _after_identifier(block)
        times = _CUE.match(before.strip())
        if not arrow or times is None:
            continue  # a note, a style
        voice = re.match(r"\s*<v(?:\.\S*)?\s+([^>]*)>", body)
        speaker = voice[1].strip().lower() if voice else _SPEAKERS[0]
        parts = _STAMP.split(re.sub(r"</?[a-z][^>]*>", "", body))
        starts = [_seconds(times[1]), *(_seconds(stamp) for stamp in parts[1::2])]
        for piece, start, end in zip(parts[::2], starts, [*starts[1:], _seconds(times[2])], strict=True):
            if piece.strip():
                lines.append((speaker, piece.strip(), start, end))
    return lines


def _after_identifier(block: str) -> tuple[str, str, str]:
    """A cue may begin with a line that names it."""
    return block.partition("\n")[2].partition("\n")


def _seconds(stamp: str) -> float:
    return sum(float(part) * 60**i for i, part in enumerate(reversed(stamp.split(":"))))


def read(source: Source, spec: StreamSpec, fps: float) -> Conversation:
    """The timeline of a recording.

    Args:
      source: its files.
      spec: the stream, whose rate the sound gets.
      fps: frames a second that are taken of a video.

    Raises:
      ValueError: a file cannot be read, or an assistant is heard whose words nobody wrote down.
    """
    words = read_words(source.transcript) if source.transcript else {speaker: [] for speaker in _SPEAKERS}
    channels, filmed = sound.num_channels(source.media), source.media.suffix in _VIDEO
    if not channels and not filmed:
        raise ValueError(f"{source.media} cannot be read as sound: {sound.DAMAGED}")
    user, assistant = np.zeros(0, np.float32), np.zeros(0, np.float32)
    if channels == 2:
        user, assistant = (sound.read_sound(source.media, spec.sample_rate, channel) for channel in range(2))
    elif channels:
        user = sound.read_sound(source.media, spec.sample_rate)
    if words["assistant"] and channels != 2:
        raise ValueError(f"{source.media} has words of the assistant, whose sound is the second of two channels.")
    if np.any(assistant) and not words["assistant"]:
        raise ValueError(f"{source.media} has an assistant on its second channel, and no words of its.")
    # The first sound that a model can make is heard one micro-turn after the session began.
    first = min((word.start_s for word in words["assistant"]), default=math.inf)
    late = spec.micro_turn_s if first < spec.micro_turn_s else 0.0
    events: list[UserSpeech | AssistantSpeech | Frames] = []
    if channels:
        events.append(UserSpeech(late, user, tuple(words["user"]) or None))
    events += _utterances(words["assistant"], assistant, spec, late)
    length = max(len(user), len(assistant)) / spec.sample_rate
    if filmed:
        frames = _frames(source.media, spec, fps)
        events.append(Frames(late, fps, frames))
        length = max(length, len(frames) / fps)
    return Conversation(late + length, tuple(events), has_audio=channels > 0)


def _utterances(
    words: Sequence[SpokenWord], samples: np.ndarray, spec: StreamSpec, late: float
) -> list[AssistantSpeech]:
    """What the assistant says without a pause of a micro-turn is one utterance."""
    runs: list[list[SpokenWord]] = []
    for word in words:
        if runs and word.start_s - runs[-1][-1].end_s < spec.micro_turn_s + 2 * _TAIL_S:
            runs[-1].append(word)
        else:
            runs.append([word])
    spoken = []
    for run in runs:
        start = run[0].start_s
        clip = samples[round(start * spec.sample_rate) : round((run[-1].end_s + _TAIL_S) * spec.sample_rate)]
        own = tuple(SpokenWord(word.text, word.start_s - start, word.end_s - start) for word in run)
        spoken.append(AssistantSpeech(start + late, own, clip))
    return spoken


def _frames(path: pathlib.Path, spec: StreamSpec, fps: float) -> np.ndarray:
    """Frames at even times: each is the newest that the file shows by then."""
    film = video.open_video(path, fps)
    shown = list(film.pictures(spec.frame_width, spec.frame_height))
    times = [time_s for time_s, _ in shown]
    count = math.floor(film.end_s * fps + 1e-6) + 1
    newest = np.searchsorted(times, np.arange(count) / fps + 1e-6, side="right") - 1
    return np.stack([shown[max(0, int(i))][1] for i in newest])


@dataclasses.dataclass(frozen=True)
class ShardReport:
    """What became of a shard: conversations and micro-turns in it, and why recordings are not: (name, reason)."""

    conversations: int
    micro_turns: int
    refused: tuple[tuple[str, str], ...]


def place_of(out: str | os.PathLike[str], split: Split, number: int) -> pathlib.Path:
    """The folder of a shard."""
    return pathlib.Path(out) / split / f"{number:05d}"


def write_shard(
    out: str | os.PathLike[str],
    split: Split,
    number: int,
    sources: Sequence[Source],
    spec: StreamSpec,
    tokenizer_path: str,
    fps: float,
) -> ShardReport:
    """Writes one store, at `place_of`, whole or not at all; one that was made of the same files stays.

    The same files give the same bytes, whoever writes them and however often. A recording that cannot be used is left
    out, and reported.
    """
    place = place_of(out, split, number)
    made_of = _fingerprint(sources, spec, tokenizer_path, fps)
    record = place / _MADE_OF
    if not (record.is_file() and json.loads(record.read_text())["fingerprint"] == made_of):
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=place.parent) as folder:
            report = _write(pathlib.Path(folder) / "new", sources, spec, Tokenizer(tokenizer_path), fps)
            made = {"fingerprint": made_of} | dataclasses.asdict(report)
            (pathlib.Path(folder) / "new" / record.name).write_text(json.dumps(made, indent=1) + "\n")
            shutil.rmtree(place, ignore_errors=True)
            (pathlib.Path(folder) / "new").rename(place)
    return read_report(place)


def read_report(place: pathlib.Path) -> ShardReport:
    """What became of the shard in a folder."""
    made = json.loads((place / _MADE_OF).read_text())
    refused = tuple((name, reason) for name, reason in made["refused"])
    return ShardReport(made["conversations"], made["micro_turns"], refused)


def _write(
    place: pathlib.Path, sources: Sequence[Source], spec: StreamSpec, tokenizer: Tokenizer, fps: float
) -> ShardReport:
    store, refused, turns = ConversationStore.create(place, spec), [], 0
    for source in sources:
        try:
            conversation = render(read(source, spec, fps), spec, tokenizer)
        except ValueError as error:
            refused.append((source.name, str(error)))
            continue
        turns += store.num_turns(store.append(conversation, {"source": source.name}))
    return ShardReport(len(store), turns, tuple(refused))


def _fingerprint(sources: Sequence[Source], spec: StreamSpec, tokenizer_path: str, fps: float) -> str:
    digest = hashlib.sha256(json.dumps([_VERSION, vars(spec), fps]).encode())
    for path in itertools.chain([tokenizer_path], *((s.media, s.transcript) for s in sources)):
        if path is not None:
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    digest.update(json.dumps([source.name for source in sources]).encode())
    return digest.hexdigest()
