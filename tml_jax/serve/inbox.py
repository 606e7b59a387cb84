"""A session's input, between the session's side (which fills it) and the engine's thread (which empties it)."""

import collections
import dataclasses
import threading
from collections.abc import Callable, Sequence

import numpy as np

from tml_jax.streams.micro_turn import MicroTurnInput, StreamSpec


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """Everything that arrived in one micro-turn, except text.

    Attributes:
      levels: int32 [dmel_frames, dmel_bins], or None where the session has no sound.
      patches: float16 [n <= max_patches, patch_frames, patch_size, patch_size, 3], or None.
      not_before: monotonic time before which it should not be stepped; never before it was complete.
      silence_ms: silence put in for sound that did not arrive.
      level: root mean square of the sound.
      frames: video frames in it.
    """

    levels: np.ndarray | None
    patches: np.ndarray | None = None
    not_before: float = 0.0
    silence_ms: int = 0
    level: float = 0.0
    frames: int = 0


class Inbox:
    """Complete micro-turns in order, and the text that goes with them. Thread-safe; never blocks for long.

    Text belongs to the micro-turn that was being filled when it came, or to a later one if that has no room: what a
    session's model reads does not depend on how far the engine had got.
    """

    def __init__(self, spec: StreamSpec, tick_token: int, notify: Callable[[], None]) -> None:
        """Makes an empty one; `notify` is called after every `put`."""
        self._spec, self._tick, self._notify = spec, tick_token, notify
        self._lock = threading.Lock()
        self._blocks: collections.deque[Block] = collections.deque()
        self._text: collections.deque[tuple[int, int]] = collections.deque()
        self._put = self._taken = 0

    def put(self, block: Block) -> None:
        """Appends a complete micro-turn."""
        with self._lock:
            self._blocks.append(block)
            self._put += 1
        self._notify()

    def put_text(self, tokens: Sequence[int]) -> None:
        """Text for the micro-turn that is being filled now."""
        with self._lock:
            self._text.extend((self._put, token) for token in tokens)

    @property
    def queued(self) -> int:
        """Complete micro-turns that wait."""
        return len(self._blocks)

    @property
    def waiting_text(self) -> int:
        """Tokens of text that wait."""
        return len(self._text)

    @property
    def completed(self) -> int:
        """Micro-turns put in so far; also the index of the one that is being filled."""
        return self._put

    def ready(self, now: float | None) -> bool:
        """Whether a micro-turn can be stepped at `now`; None asks whether one is complete at all."""
        with self._lock:
            return bool(self._blocks) and (now is None or self._blocks[0].not_before <= now)

    def take(self, inputs: MicroTurnInput, row: int) -> Block:
        """Moves the oldest micro-turn into row `row` of the engine's (zeroed) arrays."""
        with self._lock:
            block, turn = self._blocks.popleft(), self._taken
            self._taken += 1
            text: list[int] = []
            while self._text and self._text[0][0] <= turn and len(text) < self._spec.max_text:
                text.append(self._text.popleft()[1])
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
