"""A conversation as a timeline of events, and its rendering to micro-turns.

All times are seconds of session time, as one would hear the conversation: an `AssistantSpeech` that starts at
3.4 s sounds from 3.4 s on. What plays during micro-turn k was written by the output block of micro-turn k - 1,
so its first patch is the target of micro-turn 16 (of 200 ms). Word times inside a clip are relative to its start.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from tml_jax.streams import dmel, frames, packed, speech
from tml_jax.streams.micro_turn import UNHEARD, MicroTurnInput, MicroTurnOutput, StreamSpec
from tml_jax.streams.text import Tokenizer

FILLERS = frozenset({"um", "uh", "er", "hmm", "mm", "mhm", "ah", "erm"})
"""Sounds of hesitation: they are not words, and the model neither hears nor answers them."""

_MOST_PIECES = 2
"""A word of more tokens is none that the tokenizer knows; spelled out it would last longer than it is said."""

_NAMED_AFTER_S = 0.15
"""What has to follow a word before the model names it: without, neither its end nor the word itself is certain."""

_EPS = 1e-6  # times are sums of floats; an event at 1.2 s must not fall into the micro-turn that ends at 1.2 s


class SpokenWord(NamedTuple):
    """A word and where it sounds, in seconds from the start of its clip."""

    text: str
    start_s: float
    end_s: float


@dataclasses.dataclass(frozen=True, eq=False)
class UserSpeech:
    """The user speaks: `audio` is float32 at the spec's sample rate, from `start_s` on.

    `words` is None where nobody wrote them down.
    """

    start_s: float
    audio: np.ndarray
    words: tuple[SpokenWord, ...] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Noise:
    """Any other sound at the user's microphone: hum, babble, hiss."""

    start_s: float
    audio: np.ndarray


@dataclasses.dataclass(frozen=True)
class UserText:
    """The user types `text`."""

    time_s: float
    text: str


@dataclasses.dataclass(frozen=True)
class Instructions:
    """The operator tells the model how to behave."""

    time_s: float
    text: str


@dataclasses.dataclass(frozen=True, eq=False)
class Frames:
    """The user's camera: uint8 [n, H, W, 3]; frame i is taken at ``start_s + i / fps``."""

    start_s: float
    fps: float
    frames: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class AssistantSpeech:
    """The model speaks: what is heard from `start_s` on."""

    start_s: float
    words: tuple[SpokenWord, ...]
    audio: np.ndarray

    def cut(self, time_s: float, sample_rate: int) -> "AssistantSpeech":
        """The same speech, silenced at `time_s`: later sound and words that begin later are never said."""
        length = max(0.0, time_s - self.start_s)
        words = tuple(
            SpokenWord(w.text, w.start_s, min(w.end_s, length)) for w in self.words if w.start_s < length - _EPS
        )
        return AssistantSpeech(self.start_s, words, self.audio[: round(length * sample_rate)])


@dataclasses.dataclass(frozen=True)
class Delegate:
    """The model hands `query` to the background model, in the output block of the micro-turn that holds `time_s`."""

    time_s: float
    query: str


@dataclasses.dataclass(frozen=True)
class BackgroundResult:
    """The background model's answer arrives as text."""

    time_s: float
    text: str


Event = UserSpeech | Noise | UserText | Instructions | Frames | AssistantSpeech | Delegate | BackgroundResult


@dataclasses.dataclass(frozen=True, eq=False)
class Conversation:
    """A whole conversation.

    Attributes:
      duration_s: length in seconds; rendering rounds up to whole micro-turns.
      events: in any order.
      has_audio: whether the session has sound on the way in.
      scenario: what was simulated; empty for recordings.
      expectations: what a good model does here, for evaluation: plain dicts, times in seconds (see `simulator`).
      voice: of the bank, whose the user is; empty for recordings.
    """

    duration_s: float
    events: tuple[Event, ...]
    has_audio: bool = True
    scenario: str = ""
    expectations: tuple[dict[str, Any], ...] = ()
    voice: str = ""

    def of(self, kind: type) -> Iterator[Any]:
        """The events of one kind, by time."""
        found = [event for event in self.events if isinstance(event, kind)]
        return iter(sorted(found, key=lambda event: getattr(event, "start_s", getattr(event, "time_s", 0.0))))

    def num_turns(self, spec: StreamSpec) -> int:
        """Micro-turns that the conversation takes."""
        return math.ceil(self.duration_s / spec.micro_turn_s - _EPS)


def user_sound(conversation: Conversation, spec: StreamSpec) -> np.ndarray:
    """What the user's microphone hears: float32 of whole micro-turns, clipped to [-1, 1]."""
    sound = np.zeros(conversation.num_turns(spec) * spec.samples, np.float32)
    for event in conversation.events:
        if isinstance(event, UserSpeech | Noise):
            _add(sound, event.audio, round(event.start_s * spec.sample_rate))
    return np.clip(sound, -1.0, 1.0, out=sound)


def _add(sound: np.ndarray, clip: np.ndarray, start: int) -> None:
    skip = max(0, -start)
    start = max(0, start)
    length = min(len(clip) - skip, len(sound) - start)
    if length > 0:
        sound[start : start + length] += clip[skip : skip + length]


def render(
    conversation: Conversation, spec: StreamSpec, tokenizer: Tokenizer, start_turn: int = 0
) -> packed.Conversation:
    """What the model reads and should write, one row a micro-turn.

    Args:
      conversation: the timeline.
      spec: the stream's shape.
      tokenizer: gives the token ids.
      start_turn: index of the first micro-turn in its session (what the clock shows).

    Returns:
      Inputs and target outputs, packed, [N, ...] with N = ``conversation.num_turns(spec)``.
    """
    num_turns = conversation.num_turns(spec)
    inputs, outputs = packed.empty(spec, (num_turns,), (), 0, 0)
    inputs.active[:] = True
    inputs.turn[:] = start_turn + np.arange(num_turns)
    if conversation.has_audio:
        levels = dmel.dmel(user_sound(conversation, spec), spec)
        inputs.audio[:] = levels.reshape(num_turns, spec.dmel_frames, spec.dmel_bins)
        inputs.has_audio[:] = True
    patches = _write_frames(conversation, spec, inputs, num_turns)
    _write_text(conversation, spec, tokenizer, inputs, num_turns)
    mel = _write_outputs(conversation, spec, tokenizer, outputs, num_turns)
    _write_heard(conversation, spec, tokenizer, outputs, num_turns)
    return dataclasses.replace(inputs, patches=patches), dataclasses.replace(outputs, mel=mel)


def _turn_of(time_s: float, spec: StreamSpec) -> int:
    return math.floor(time_s / spec.micro_turn_s + _EPS)


def _write_frames(conversation: Conversation, spec: StreamSpec, inputs: MicroTurnInput, num_turns: int) -> np.ndarray:
    """The patches, packed."""
    found: dict[int, np.ndarray] = {}
    for event in conversation.of(Frames):
        stream = frames.FrameStream(spec)
        arrived: dict[int, list[np.ndarray]] = {}
        for i, frame in enumerate(event.frames):
            arrived.setdefault(_turn_of(event.start_s + i / event.fps, spec), []).append(frame)
        found |= {turn: stream.push(seen) for turn, seen in arrived.items() if 0 <= turn < num_turns}
    for turn, patches in found.items():
        inputs.num_patches[turn] = len(patches)
    return np.concatenate([inputs.patches, *(found[turn].astype(packed.DTYPE) for turn in sorted(found))])


def _write_text(
    conversation: Conversation, spec: StreamSpec, tokenizer: Tokenizer, inputs: MicroTurnInput, num_turns: int
) -> None:
    control = tokenizer.control
    heads = {UserText: control.user, Instructions: control.instructions, BackgroundResult: control.background}
    texts = [event for event in conversation.events if type(event) in heads]
    for event in sorted(texts, key=lambda event: event.time_s):
        turn = _turn_of(event.time_s, spec)
        for token in [heads[type(event)], *tokenizer.encode(" " + event.text.strip())]:
            while turn < num_turns and inputs.num_text[turn] == spec.max_text:  # what does not fit goes on in the next
                turn += 1
            if turn >= num_turns:
                break
            inputs.text[turn, inputs.num_text[turn]] = token
            inputs.num_text[turn] += 1
    head = slice(num_turns)
    nothing = ~inputs.has_audio[head] & (inputs.num_patches[head] == 0) & (inputs.num_text[head] == 0)
    inputs.text[head, 0][nothing] = control.tick
    inputs.num_text[head][nothing] = 1


def word_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokens of a word inside a sentence, that is with its leading space."""
    return tokenizer.encode(" " + text)


def schedule(starts: list[int], num_slots: int) -> list[int]:
    """Slots of tokens whose sound starts in the slots `starts` (ascending), one token a slot, in order.

    Each token takes the last free slot at or before the start of its sound, so that text leads sound; only where
    the utterance begins with more tokens than slots do the first ones push the later ones back. Tokens that
    find no slot before `num_slots` are dropped.
    """
    slots: list[int] = []
    limit = num_slots
    for start in reversed(starts):
        limit = min(start, limit - 1)
        slots.append(limit)
    slots.reverse()
    free = 0
    for i, slot in enumerate(slots):
        slots[i] = max(slot, free)
        free = slots[i] + 1
    return [slot for slot in slots if slot < num_slots]


def _write_outputs(
    conversation: Conversation, spec: StreamSpec, tokenizer: Tokenizer, outputs: MicroTurnOutput, num_turns: int
) -> np.ndarray:
    """Tokens, and the mel patches of what is spoken, packed."""
    mel = [outputs.mel]
    control = tokenizer.control
    outputs.tokens[:num_turns, 0] = control.listen
    outputs.num_tokens[:num_turns] = 1
    for event in conversation.of(AssistantSpeech):
        mel.append(_write_speech(event, spec, tokenizer, outputs, num_turns))
    for event in conversation.of(Delegate):
        turn = _turn_of(event.time_s, spec)
        if turn < num_turns:
            assert not outputs.speaking[turn], "a delegation falls into a micro-turn in which the model speaks"
            outputs.tokens[turn, 0] = control.delegate
    return np.concatenate(mel)


def _write_speech(
    event: AssistantSpeech, spec: StreamSpec, tokenizer: Tokenizer, outputs: MicroTurnOutput, num_turns: int
) -> np.ndarray:
    start = round(event.start_s * spec.sample_rate) - spec.samples  # written one micro-turn before it is heard
    first, offset = divmod(start, spec.samples)
    last = min(num_turns, math.ceil((start + len(event.audio)) / spec.samples))
    if first < 0:
        raise ValueError(
            f"The assistant speaks at {event.start_s:.2f} s, but the first sound that it can make is heard at "
            f"{spec.micro_turn_s} s."
        )
    if last <= first:
        return outputs.mel[:0]
    assert not outputs.speaking[first:last].any(), "two utterances of the assistant overlap"
    sound = np.zeros((last - first) * spec.samples, np.float32)
    _add(sound, event.audio, offset)
    outputs.speaking[first:last] = True
    outputs.num_tokens[first:last] = spec.max_output
    slot_samples = spec.samples // spec.max_output
    tokens, starts = [], []
    for word in event.words:
        for token in word_tokens(tokenizer, word.text):
            tokens.append(token)
            starts.append((offset + round(word.start_s * spec.sample_rate)) // slot_samples)
    flat = np.full((last - first) * spec.max_output, tokenizer.control.speak, np.int32)
    slots = schedule(starts, len(flat))
    flat[slots] = tokens[: len(slots)]
    outputs.tokens[first:last] = flat.reshape(last - first, spec.max_output)
    mel = speech.mel(sound, spec).reshape(-1, spec.mel_frames_per_patch, spec.mel_bins)
    return mel.astype(outputs.mel.dtype)


def _write_heard(
    conversation: Conversation, spec: StreamSpec, tokenizer: Tokenizer, outputs: MicroTurnOutput, num_turns: int
) -> None:
    outputs.heard[:num_turns] = tokenizer.control.nothing
    for event in conversation.of(UserSpeech):
        if event.words is None:
            end = event.start_s + len(event.audio) / spec.sample_rate
            outputs.heard[_turn_of(event.start_s, spec) : min(num_turns, _turn_of(end, spec) + 1)] = UNHEARD
    ended = sorted(
        (event.start_s + word.end_s, word.text)
        for event in conversation.of(UserSpeech)
        for word in event.words or ()
        if word.text not in FILLERS and len(word_tokens(tokenizer, word.text)) <= _MOST_PIECES
    )
    pieces = [(end_s, token) for end_s, text in ended for token in word_tokens(tokenizer, text)]
    slots = [reaction_turn(end_s, _NAMED_AFTER_S, spec) * spec.max_output for end_s, _ in pieces]
    for i in reversed(range(len(slots) - 1)):
        # What is said fast is named sooner, so that the last word is not late, but not before it has ended.
        slots[i] = max(min(slots[i], slots[i + 1] - 1), _turn_of(pieces[i][0] - 2 * _EPS, spec) * spec.max_output)
    flat = outputs.heard[:num_turns].reshape(-1)  # a view: rows are contiguous
    assert np.shares_memory(flat, outputs.heard)
    free = 0
    for slot, (_, token) in zip(slots, pieces, strict=True):
        if (free := max(free, slot)) >= len(flat):
            return
        flat[free] = token
        free += 1


def reaction_turn(end_s: float, reaction_s: float, spec: StreamSpec) -> int:
    """The first micro-turn whose input holds at least `reaction_s` of what comes after `end_s`."""
    return math.ceil((end_s + reaction_s) / spec.micro_turn_s - _EPS) - 1
