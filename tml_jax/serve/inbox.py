"""A session's input, between the session's side (which fills it) and the engine's thread (which empties it)."""

import collections
import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tml_jax.serve.standing import Standing, View
from tml_jax.streams.micro_turn import MicroTurnInput, StreamSpec
from tml_jax.wire.events import Position


@dataclasses.dataclass(frozen=True)
class Note:
    """What text came with a micro-turn, in words.

    Attributes:
      who: "user_text" (typed), "instructions", "background" (a result, for the model), "remembered" (a result, for the
        context alone); or "task", what became of one.
      text: it.
      task, state: its number, or None of the client's own; "started", "progress", "finished" or "failed".
      answers: what the model has handed over, counted from 0, that the task is about.
    """

    who: str
    text: str
    task: int | None = None
    state: str = ""
    answers: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """Everything that arrived in one micro-turn.

    All that a session tells is a function of its blocks, in order, and its config: they are what is kept of its input.

    Attributes:
      levels: int32 [dmel_frames, dmel_bins], or None where the session has no sound.
      patches: float16 [n <= max_patches, patch_frames, patch_size, patch_size, 3], or None.
      not_before: monotonic time before which it should not be stepped; never before it was complete.
      silence_ms: silence put in for sound that did not arrive.
      level: root mean square of the sound.
      frames: video frames that came in it. frames_dropped: those of them that were too many for it.
      lost_ms: sound that the client had numbered and did not send.
      shortened_ms: pauses left out of the sound, to make up for silence put in.
      tokens: of texts that came while it was filled; what does not fit is read in later ones.
      notes: these texts.
      received: what there is of the client's input with it; sound from here on is wanted of one who goes on after it.
      heard: samples at the stream's rate, without silences put in, up to its end.
      held: the last of them that the next micro-turn's dMel looks at.
      closes: the client closed its input with it, and so many milliseconds may follow; or None.
      standing: of `tokens`, each message that is instructions.
      sound: float32 [samples] of which `levels` are, silence put in included; None where another process heard it.
      cut: the session's state after it is to be kept. waiting: then, the text that waits to be read after it, and
        what is known of its instructions.
    """

    levels: np.ndarray | None
    patches: np.ndarray | None = None
    not_before: float = 0.0
    silence_ms: int = 0
    level: float = 0.0
    frames: int = 0
    frames_dropped: int = 0
    lost_ms: int = 0
    shortened_ms: int = 0
    tokens: tuple[int, ...] = ()
    notes: tuple[Note, ...] = ()
    received: Position = Position()
    heard: int = 0
    held: np.ndarray | None = None
    closes: int | None = None
    standing: tuple[tuple[int, ...], ...] = ()
    sound: np.ndarray | None = None
    cut: bool = False
    waiting: Any = None


class Inbox:
    """Complete micro-turns in order, and the text that goes with them. Thread-safe; never blocks for long.

    Text belongs to the micro-turn that was being filled when it came, or to a later one if that has no room: what a
    session's model reads does not depend on how far the engine had got.
    """

    def __init__(
        self,
        spec: StreamSpec,
        tick_token: int,
        notify: Callable[[], None],
        keep: Callable[[int, Block], bool] = lambda turn, block: False,
        view: View | None = None,
    ) -> None:
        """Makes an empty one.

        Args:
          spec: of the micro-turns.
          tick_token: stands in an empty one.
          notify: called after every `put`.
          keep: called with each micro-turn's index and all of it before anybody can see it; says whether the session's
            state after it is to be kept.
          view: how much the model sees, by which it is told its instructions again.
        """
        self._spec, self._tick, self._notify, self._keep = spec, tick_token, notify, keep
        self._lock = threading.Lock()
        self._blocks: collections.deque[tuple[Block, list[int]]] = collections.deque()
        self._text: collections.deque[int] = collections.deque()
        self._standing, self._instructions = Standing(view), list[tuple[int, ...]]()
        self._new: list[int] = []
        self._notes: list[Note] = []
        self._put = self._taken = self._texts = 0

    def go_on(self, turn: int, waiting: Any, texts: int) -> None:
        """Goes on as the inbox of a session that is `turn` micro-turns old, with what waits to be read."""
        self._put = self._taken = turn
        text, standing = waiting
        self._text, self._texts = collections.deque(text), texts
        self._standing.go_on(standing)

    def put(self, block: Block) -> None:
        """Appends a complete micro-turn, and the text that came with it."""
        with self._lock:
            received = dataclasses.replace(block.received, texts=self._texts)
            told = {"tokens": tuple(self._new), "notes": tuple(self._notes), "standing": tuple(self._instructions)}
            block = dataclasses.replace(block, received=received, **told)
            self._put_whole(dataclasses.replace(block, cut=self._keep(self._put, block)))
            self._new, self._notes, self._instructions = [], [], []
        self._notify()

    def put_again(self, block: Block) -> None:
        """Appends one that was kept."""
        with self._lock:
            self._put_whole(block)
            self._texts = block.received.texts

    def _put_whole(self, block: Block) -> None:
        self._text.extend(block.tokens)
        text = [self._text.popleft() for _ in range(min(len(self._text), self._spec.max_text))]
        for message in block.standing:
            self._standing.add(message)
        self._text.extend(self._standing.read(self._trunk_tokens(block, len(text))))
        waiting = (tuple(self._text), self._standing.state()) if block.cut else None
        self._blocks.append((dataclasses.replace(block, waiting=waiting), text))
        self._put += 1

    def _trunk_tokens(self, block: Block, text: int) -> int:
        """At most, with what the model writes."""
        sound = 0 if block.levels is None else self._spec.audio_tokens
        seen = 0 if block.patches is None else len(block.patches)
        return max(1, sound + seen + text) + self._spec.max_output

    def put_text(self, tokens: Sequence[int], *notes: Note, counted: bool = False, standing: bool = False) -> None:
        """Text for the micro-turn that is being filled now; `counted` among the client's; `standing` instructions."""
        with self._lock:
            self._new.extend(tokens)
            self._instructions += [tuple(tokens)] if standing else []
            self._notes.extend(notes)
            self._texts += counted

    @property
    def queued(self) -> int:
        """Complete micro-turns that wait."""
        return len(self._blocks)

    @property
    def waiting_text(self) -> int:
        """Tokens of text that no complete micro-turn has."""
        return len(self._text) + len(self._new)

    @property
    def texts(self) -> int:
        """Texts of the client's."""
        return self._texts

    @property
    def completed(self) -> int:
        """Micro-turns put in so far; also the index of the one that is being filled."""
        return self._put

    def ready(self, now: float | None) -> bool:
        """Whether a micro-turn can be stepped at `now`; None asks whether one is complete at all."""
        with self._lock:
            return bool(self._blocks) and (now is None or self._blocks[0][0].not_before <= now)

    def take(self, inputs: MicroTurnInput, row: int) -> Block:
        """Moves the oldest micro-turn into row `row` of the engine's (zeroed) arrays."""
        with self._lock:
            (block, text), turn = self._blocks.popleft(), self._taken
            self._taken += 1
        inputs.turn[row] = turn
        if block.levels is not None:
            inputs.audio[row], inputs.has_audio[row] = block.levels, True
        if block.patches is not None:
            inputs.patches[row, : len(block.patches)] = block.patches
            inputs.num_patches[row] = len(block.patches)
        if not (text or inputs.has_audio[row] or inputs.num_patches[row]):
            text = [self._tick]
        inputs.text[row, : len(text)] = text
        inputs.num_text[row] = len(text)
        inputs.active[row] = True
        return block
