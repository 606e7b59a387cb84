"""Makes a speech bank: says every voice's plan, aligns its words, trims, levels and stores it.

Each finished clip is staged losslessly under `OUT/staging/VOICE`, so that an interrupted run goes on where it
stopped; a voice's Opus file and the index are written again after each round of its clips, so the bank can be
read at any time. The assistant's voice and the held-out ones come first.
"""

import dataclasses
import json
import math
import pathlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import soundfile
import soxr

from tml_jax.data import phrases, recordings, speech_bank, speech_engines, talk
from tml_jax.data.alignment import FRAME, load_aligner, sounding_span
from tml_jax.data.speech_bank import SAMPLE_RATE, NewClip, Voice, Word
from tml_jax.data.speech_engines import Engine, VoiceSpec, Waveform
from tml_jax.streams.sound import read_sound

LEVEL_DBFS = -23.0
_PEAK = 0.9
_LEAD_S, _TAIL_S = 0.01, 0.05
_ROUND_CLIPS = 12
# A longer recording fills half of a conversation.
_LONGEST_TALK_S = 12.0
_FSDD_LICENCE = "CC BY-SA 4.0 (Free Spoken Digit Dataset)"


def to_bank_rate(samples: Waveform, rate: int) -> Waveform:
    """Resamples to 16 kHz."""
    return samples if rate == SAMPLE_RATE else soxr.resample(samples, rate, SAMPLE_RATE).astype(np.float32)


def trim_and_level(samples: Waveform) -> Waveform:
    """Cuts silence from both ends (10 ms stay before, 50 ms after) and sets the level.

    The level is the root mean square of frames within 30 dB of the loudest, `LEVEL_DBFS`, less where the peak
    would pass 0.9. Returns an empty array for silence.
    """
    start, end = sounding_span(samples)
    if end == 0:
        return samples[:0]
    start = max(0, start - round(_LEAD_S * SAMPLE_RATE))
    cut = samples[start : end + round(_TAIL_S * SAMPLE_RATE)]
    cut = cut - cut.mean()
    power = np.mean(cut[: len(cut) // FRAME * FRAME].reshape(-1, FRAME) ** 2, axis=1)
    active = np.sqrt(power[power > power.max() * 1e-3].mean())
    gain = min(10 ** (LEVEL_DBFS / 20) / active, _PEAK / np.abs(cut).max())
    fade = np.ones_like(cut)
    ramp = np.linspace(0, 1, FRAME // 2, dtype=np.float32)
    fade[: len(ramp)], fade[-len(ramp) :] = ramp, ramp[::-1]
    return (cut * gain * fade).astype(np.float32)


class Staging:
    """Finished clips on disk, one FLAC and one JSON file each; a JSON file alone records a clip that failed."""

    def __init__(self, out: pathlib.Path, voice: str) -> None:
        self.folder = out / "staging" / voice.replace("/", "-")
        self.folder.mkdir(parents=True, exist_ok=True)

    def _paths(self, clip_id: str) -> tuple[pathlib.Path, pathlib.Path]:
        return self.folder / f"{clip_id}.json", self.folder / f"{clip_id}.flac"

    def holds(self, clip_id: str, utterance: phrases.Utterance) -> bool:
        """Whether this very utterance was already tried."""
        record, _ = self._paths(clip_id)
        return record.exists() and json.loads(record.read_text())["utterance"] == dataclasses.asdict(utterance)

    def put(self, clip_id: str, utterance: phrases.Utterance, audio: Waveform, words: list[Word] | None) -> None:
        """Stores the clip, or with `words` None its failure; the JSON file comes last and makes it count."""
        record, sound = self._paths(clip_id)
        if words is not None:
            soundfile.write(sound, audio, SAMPLE_RATE)
        timings = None if words is None else [dataclasses.astuple(word) for word in words]
        record.write_text(json.dumps({"utterance": dataclasses.asdict(utterance), "words": timings}))

    def clips(self) -> tuple[list[NewClip], int]:
        """All finished clips in the order of their ids, and how many failed."""
        clips, failed = [], 0
        for record in sorted(self.folder.glob("*.json")):
            content = json.loads(record.read_text())
            if content["words"] is None:
                failed += 1
                continue
            audio, _ = soundfile.read(record.with_suffix(".flac"), dtype="float32")
            words = tuple(Word(*word) for word in content["words"])
            clips.append(NewClip(record.stem, content["utterance"]["text"], content["utterance"]["kind"], words, audio))
        return clips, failed

    def seconds(self) -> float:
        """Seconds of finished sound."""
        return sum(soundfile.info(path).duration for path in self.folder.glob("*.flac"))


class BankBuilder:
    """Fills a bank voice by voice; see the module's docstring.

    Args:
      out: the bank's folder.
      seed: of every voice's plan.
      minutes_per_voice: a voice stops after the round in which it reaches this much sound.
      report: takes one line of progress at a time.
    """

    def __init__(
        self, out: pathlib.Path, *, seed: int, minutes_per_voice: float, report: Callable[[str], None] = print
    ) -> None:
        self.out, self.seed, self.minutes_per_voice, self.report = out, seed, minutes_per_voice, report
        self._align = load_aligner()

    def _entries(self) -> dict[str, dict[str, Any]]:
        """The index as it stands: read each time, because another run may be adding other voices."""
        index = self.out / speech_bank.INDEX_NAME
        return json.loads(index.read_text())["voices"] if index.exists() else {}

    def plan(self, spec: VoiceSpec) -> dict[str, phrases.Utterance]:
        """What the voice is to say, by clip id: its commands, its talk (t) and its rare requests (r)."""
        seed = self.seed + zlib.crc32(spec.name.encode())
        if spec.name == speech_engines.ASSISTANT_VOICE:
            told = {"": phrases.assistant_phrases()}
        elif spec.name == speech_engines.ASSISTANT_VOICE + speech_engines.SPANISH:
            told = {"": phrases.spanish_phrases()}
        else:
            told = {
                "": phrases.user_phrases(seed, spec.num_clips),
                "t": talk.talk_phrases(seed, spec.num_talk, spec.split),
                "r": phrases.request_phrases(seed),
            }
        return {f"{part}{i:03d}": one for part, utterances in told.items() for i, one in enumerate(utterances)}

    def rounds(self, specs: Sequence[VoiceSpec]) -> Iterator[tuple[VoiceSpec, dict[str, phrases.Utterance]]]:
        """The order of work: whole plans of the quick engines and the assistant, then the rest in turns.

        In each turn the held-out voices come first, and each voice says a part of its talk.
        """
        whole = [s for s in specs if s.engine != "kokoro" or s.name.startswith(speech_engines.ASSISTANT_VOICE)]
        for spec in whole:
            yield spec, self.plan(spec)
        rest = sorted((s for s in specs if s not in whole), key=lambda s: s.split != "heldout")
        turns = max((math.ceil(spec.num_clips / _ROUND_CLIPS) for spec in rest), default=0)
        for turn in range(turns):
            for spec in rest:
                commands = range(turn * _ROUND_CLIPS, min((turn + 1) * _ROUND_CLIPS, spec.num_clips))
                others = range(turn * spec.num_talk // turns, (turn + 1) * spec.num_talk // turns)
                plan = self.plan(spec)
                requests = [clip_id for clip_id in plan if clip_id.startswith("r")][turn::turns]
                ids = [*(f"{i:03d}" for i in commands), *(f"t{i:03d}" for i in others), *requests]
                yield spec, {clip_id: plan[clip_id] for clip_id in ids}

    def say(self, spec: VoiceSpec, engine: Engine, utterances: Mapping[str, phrases.Utterance]) -> None:
        """Synthesises those utterances, by clip id, that aren't there yet, then packs the voice."""
        staging, new = Staging(self.out, spec.name), 0
        if staging.seconds() >= 60 * self.minutes_per_voice:
            return
        for clip_id, utterance in utterances.items():
            if staging.holds(clip_id, utterance):
                continue
            self._stage(staging, clip_id, utterance, to_bank_rate(*engine(spec.name.split("/")[1], utterance)))
            new += 1
        if new or spec.name not in self._entries():
            self._pack(Voice(spec.name, spec.engine, spec.split, spec.licence, _file_name(spec.name)), staging)

    def _stage(self, staging: Staging, clip_id: str, utterance: phrases.Utterance, samples: Waveform) -> None:
        """Trims, levels and aligns a clip; talk may do without its words' times, because nobody answers it."""
        audio = trim_and_level(samples)
        words = self._align(audio, utterance.text.split()) if len(audio) else None
        if words is None and utterance.kind == "talk" and len(audio):
            words = []
        staging.put(clip_id, utterance, audio, words)

    def add_recordings(self, folder: pathlib.Path) -> None:
        """Adds the talk of a recorded person (see `recordings`) as a training voice, less what is for tests only.

        Raises:
          FileNotFoundError: the folder holds no recordings with transcripts.
          ValueError: a recording can't be decoded.
        """
        licence, found = recordings.read_folder(folder)
        name = f"recorded/{folder.name}"
        staging = Staging(self.out, name)
        for recording in found:
            clip_id = recording.name.replace("/", "-")
            utterance = phrases.Utterance(recording.text, recording.transcript, "talk")
            if recording.test_only or not recordings.is_talk(recording.text) or staging.holds(clip_id, utterance):
                continue
            samples = read_sound(recording.path, SAMPLE_RATE)
            if len(samples) <= _LONGEST_TALK_S * SAMPLE_RATE:
                self._stage(staging, clip_id, utterance, samples)
        self._pack(Voice(name, "recorded", "train", licence, _file_name(name)), staging)

    def add_digit_recordings(self, folder: pathlib.Path) -> None:
        """Adds recorded digits, `folder/SPEAKER/DIGIT_TAKE.flac` (the Free Spoken Digit Dataset), as training voices.

        Raises:
          FileNotFoundError: the folder holds no such recordings.
        """
        recordings = sorted(folder.glob("*/[0-9]_*.flac")) + sorted(folder.glob("*/[0-9]_*.wav"))
        if not recordings:
            raise FileNotFoundError(f"{folder} holds no recordings named SPEAKER/DIGIT_TAKE.flac; check --fsdd.")
        for speaker in sorted({path.parent.name for path in recordings}):
            name = f"fsdd/{speaker}"
            staging = Staging(self.out, name)
            for path in (p for p in recordings if p.parent.name == speaker):
                digit = phrases.UNITS[int(path.stem[0])]
                utterance = phrases.Utterance(digit, digit, "word")
                if staging.holds(path.stem, utterance):
                    continue
                samples, rate = soundfile.read(path, dtype="float32")
                self._stage(staging, path.stem, utterance, to_bank_rate(samples, rate))
            self._pack(Voice(name, "fsdd", "train", _FSDD_LICENCE, _file_name(name)), staging)

    def _pack(self, voice: Voice, staging: Staging) -> None:
        clips, failed = staging.clips()
        entry = speech_bank.write_voice(self.out, voice, clips)
        speech_bank.write_index(self.out, {**self._entries(), voice.name: entry})
        seconds = sum(len(clip.audio) for clip in clips) / SAMPLE_RATE
        self.report(f"{voice.name}: {len(clips)} clips, {seconds:.0f} s, {failed} not aligned")


def _file_name(voice: str) -> str:
    return f"{voice.replace('/', '-').replace('+', '_')}.opus"
