"""The director of a simulated conversation: it places what happens on the timeline and keeps the rules of time.

Scenarios (see `scenarios`) say who says what; the director says when the model can know of it and when its answer
can be heard, changes the user's voice, and writes down what a good model does (`expectations`).
"""

import math
from typing import Any

import numpy as np

from tml_jax.data import augment
from tml_jax.data.config import DataConfig
from tml_jax.data.scenes import Repetitions
from tml_jax.data.speech_bank import Clip
from tml_jax.data.splice import FADE, Spliced, splice
from tml_jax.data.timeline import (
    AssistantSpeech,
    BackgroundResult,
    Delegate,
    Event,
    Frames,
    SpokenWord,
    UserSpeech,
    reaction_turn,
)
from tml_jax.data.voices import Cast, Speaker
from tml_jax.streams import number_words
from tml_jax.streams.micro_turn import StreamSpec

HOLDING = "okay"
"""What the model says until the background model's answer is there."""
IDLE_S = 0.4
"""How long nobody speaks before a server gives the model a result: two micro-turns."""


class Director:
    """One conversation in the making.

    Attributes:
      rng: every draw. now: the time at which the next thing may begin, seconds. limit: when it must be over.
      motions: what the camera sees, where it runs.
      instruction: which of `arrangements.INSTRUCTIONS` the operator gave; empty: none.
    """

    def __init__(
        self, rng: np.random.Generator, config: DataConfig, spec: StreamSpec, cast: Cast, speaker: Speaker
    ) -> None:
        self.rng, self.config, self.spec, self.cast, self.speaker = rng, config, spec, cast, speaker
        self.voice = self._draw_voice()
        self.events: list[Event] = []
        self.expectations: list[dict[str, Any]] = []
        self.motions: list[Repetitions] = []
        self.instruction = ""
        self.now = float(rng.uniform(0.3, 1.5))
        self.limit = float(rng.uniform(*config.behaviour.duration))

    def _draw_voice(self) -> augment.Voice:
        return augment.draw_voice(self.rng, self.config.acoustics, self.cast.rooms, self.cast.microphones)

    def expect(self, kind: str, **what: Any) -> None:
        """Writes down what a good model does, for evaluation; times in seconds."""
        self.expectations.append({"kind": kind} | what)

    def pause(self) -> None:
        """Lets the usual gap between two exchanges pass."""
        self.now += float(self.rng.uniform(*self.config.behaviour.gap))

    def heard_at(self, end_s: float, reaction_s: float | None = None) -> float:
        """When the model's reaction to what ended at `end_s` can first be heard: the end of its reaction micro-turn."""
        reaction = self.config.behaviour.reaction if reaction_s is None else reaction_s
        return (reaction_turn(end_s, reaction, self.spec) + 1) * self.spec.micro_turn_s

    # ---- the user

    def pick(self, *families: str) -> Clip | Spliced:
        """One of the user's requests of the families that this user has, in training often with other numbers."""
        able = tuple(family for family in families if self.speaker.family(family))
        clips = self.speaker.family(able[int(self.rng.integers(len(able)))] if len(able) > 1 else able[0])
        clip = clips[int(self.rng.integers(len(clips)))]
        if self.cast.split == "train" and self.rng.random() < self.config.behaviour.splice_share:
            return splice(self.cast.bank, clip, self.speaker.clips, self.rng)
        return clip

    def ask(self, clip: Clip | Spliced) -> float:
        """The user asks for it now, hesitating now and then; the end of the request."""
        hesitate = self.rng.random() < self.config.behaviour.hesitation_share
        return self.user(clip, self.now, hesitate=hesitate)

    def user(self, clip: Clip | Spliced, start_s: float, *, hesitate: bool = False) -> float:
        """The user says a clip from `start_s` on, perhaps hesitating inside it; the end of the last word."""
        audio, words = self._clip(clip, self.voice)
        words = words or (SpokenWord(clip.text, 0.0, len(audio) / self.spec.sample_rate),)
        if hesitate and len(words) > 1:
            audio, words, breaks = self._break(audio, words)
            for begin, end in breaks:
                self.expect("silent", reason="hesitation", **{"from": start_s + begin, "to": start_s + end})
        self.events.append(UserSpeech(start_s, augment.place(audio, self.voice), words))
        return start_s + words[-1].end_s

    def talk(self) -> None:
        """Somebody says a sentence that isn't meant for the model: the user, or somebody else in another place."""
        own, share = self.speaker.family("talk"), self.config.behaviour.own_talk_share
        talker, voice = (self.speaker, self.voice)
        if not own or self.rng.random() > share:
            talker, voice = self.cast.talker(self.rng), self._draw_voice()
        clips = talker.family("talk")
        audio, words = self._clip(clips[int(self.rng.integers(len(clips)))], voice)
        self.events.append(UserSpeech(self.now, augment.place(audio, voice), words or None))
        self.now += len(audio) / self.spec.sample_rate

    def _clip(self, clip: Clip | Spliced, voice: augment.Voice) -> tuple[np.ndarray, tuple[SpokenWord, ...]]:
        audio = clip.audio if isinstance(clip, Spliced) else self.cast.bank.audio(clip)
        words = tuple(SpokenWord(w.text, w.start_s, w.end_s) for w in clip.words)
        return augment.change_voice(audio, words, voice, self.rng)

    def _break(
        self, audio: np.ndarray, words: tuple[SpokenWord, ...]
    ) -> tuple[np.ndarray, tuple[SpokenWord, ...], list[tuple[float, float]]]:
        """Puts a pause, perhaps filled, before one of the words: there the request is still incomplete."""
        behaviour, rate = self.config.behaviour, self.spec.sample_rate
        at = int(self.rng.integers(1, len(words)))
        cut_s = (words[at - 1].end_s + words[at].start_s) / 2
        length = float(self.rng.uniform(*behaviour.hesitation))
        silence = np.zeros(round(length * rate), np.float32)
        fillers = self.speaker.family("filler")
        if fillers and self.rng.random() < behaviour.filler_share:
            filler, _ = self._clip(fillers[int(self.rng.integers(len(fillers)))], self.voice)
            filler = filler[: len(silence)]
            place = int(self.rng.integers(0, len(silence) - len(filler) + 1))
            silence[place : place + len(filler)] = filler
        cut, fade = round(cut_s * rate), np.linspace(1, 0, FADE, dtype=np.float32)
        head, tail = audio[:cut].copy(), audio[cut:].copy()
        head[-FADE:] *= fade[: len(head[-FADE:])]
        tail[:FADE] *= fade[::-1][: len(tail[:FADE])]
        later = tuple(SpokenWord(w.text, w.start_s + length, w.end_s + length) for w in words[at:])
        gap = (words[at - 1].end_s, words[at].start_s + length)
        return np.concatenate([head, silence, tail]), words[:at] + later, [gap]

    # ---- the model

    def seconds(self, clip: Clip | Spliced) -> int:
        """The number in "tell me when five seconds have passed" or "say beep every three seconds"."""
        return number_words.from_words(clip.text.split()[3])

    def wanted(self, clip: Clip | Spliced) -> list[str]:
        """What the model says to "repeat five two please" or "count to seven"."""
        words = clip.text.split()
        if words[0] != "count":
            return words[1:-1]
        number = number_words.from_words(words[-1])
        order = range(number, 0, -1) if words[1] == "down" else range(1, number + 1)
        return [number_words.to_words(n) for n in order]

    def say(self, text: str, start_s: float) -> float:
        """The model says `text` from `start_s` on, word by word in its own voice; when it is over."""
        rate, audio, words, length = self.spec.sample_rate, [], [], 0
        for word in self.cast.split_words(text):
            clip = self.cast.assistant(word, self.rng)
            words.append(SpokenWord(word, length / rate, (length + len(clip)) / rate))
            gap = np.zeros(int(self.rng.uniform(0.0, 0.08) * rate), np.float32)
            audio += [clip, gap]
            length += len(clip) + len(gap)
        self.events.append(AssistantSpeech(start_s, tuple(words), np.concatenate(audio)))
        return start_s + length / rate

    def answer(self, text: str, after_s: float) -> float:
        """The model answers what ended at `after_s` as soon as it can; when it is over."""
        self.expect("answer", after=after_s, words=text.split())
        return self.say(text, self.heard_at(after_s))

    def say_over(self, text: str, start_s: float) -> None:
        """The model says this at its time, and gives up what it is still saying."""
        if start_s < self.now:
            self.interrupt(start_s)
        self.now = self.say(text, start_s)

    def interrupt(self, time_s: float) -> None:
        """The model's last utterance is cut at `time_s`; all of the rest is never said."""
        index = max(i for i, event in enumerate(self.events) if isinstance(event, AssistantSpeech))
        speech = self.events[index]
        assert isinstance(speech, AssistantSpeech)
        self.events[index] = speech.cut(time_s, self.spec.sample_rate)

    def delegate(self, query: str, after_s: float, result: str) -> float:
        """The model delegates, says so, and speaks the result when it comes; when that is over.

        As a server does, it is given the result no sooner than when nobody has spoken for `IDLE_S`.
        """
        micro_turn_s = self.spec.micro_turn_s
        turn = reaction_turn(after_s, self.config.behaviour.reaction, self.spec)
        time_s = (turn + 0.5) * micro_turn_s
        self.events.append(Delegate(time_s, query))
        self.expect("delegate", after=after_s, query=query)
        quiet_s = self.say(HOLDING, (turn + 2) * micro_turn_s) + IDLE_S
        back_s = max(quiet_s, time_s + float(self.rng.uniform(*self.config.behaviour.background_latency)))
        self.events.append(BackgroundResult(back_s, result))
        start = (math.floor(back_s / micro_turn_s) + 1) * micro_turn_s
        self.expect("result", at=back_s, words=result.split())
        return self.say(result, start)

    def film(self, frames: np.ndarray) -> None:
        """The user's camera runs from the beginning."""
        self.events.append(Frames(0.0, self.config.behaviour.video_fps, frames))
