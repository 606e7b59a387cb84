"""A session's sound and frames, cut into micro-turns: from samples and pictures to `Block`s in the inbox."""

import time
from collections.abc import Callable

import numpy as np

from tml_jax.serve.inbox import Block, Inbox
from tml_jax.serve.pacing import Pacer
from tml_jax.streams import packed
from tml_jax.streams.dmel import DmelStream
from tml_jax.streams.frames import FrameStream
from tml_jax.streams.micro_turn import StreamSpec
from tml_jax.wire.events import Position

MAX_FRAMES = 64  # that wait for the end of their micro-turn


class Assembler:
    """Fills micro-turns with what arrives. Not thread-safe: one call at a time.

    Samples may come in any pieces; a frame belongs to the micro-turn whose sound was arriving when it came.

    Attributes:
      frames: pictures that came so far.
    """

    def __init__(
        self,
        spec: StreamSpec,
        has_audio: bool,
        inbox: Inbox,
        pacer: Pacer,
        clock: Callable[[], float] = time.monotonic,
        sent: Callable[[int], int] = lambda heard: heard,
    ) -> None:
        """Makes an empty one that puts what it completes into `inbox`, dated by `pacer`.

        `sent` says of a count of samples at the stream's rate from which of the client's on those after it are made.
        """
        self._spec, self._has_audio, self._inbox, self._pacer, self._clock = spec, has_audio, inbox, pacer, clock
        self._sent = sent
        self._dmel, self._video = DmelStream(spec), FrameStream(spec)
        self._levels: list[np.ndarray] = []
        self._frames: list[np.ndarray] = []
        self._filled = self._received = 0
        self._power, self._lost_ms = 0.0, 0
        self.frames = 0

    def go_on(self, last: Block) -> None:
        """Goes on after a micro-turn that was completed by another one."""
        self._received, self.frames = last.heard, last.received.frames
        if last.held is not None:
            self._dmel.held = last.held

    def push(self, samples: np.ndarray) -> None:
        """Sound, float32 at the stream's rate."""
        while len(samples):
            piece, samples = np.split(samples, [self._spec.samples - self._filled])
            self._listen(piece)
            self._received += len(piece)
            if self._filled == self._spec.samples:
                now = self._clock()
                self._seal(max(now, self._pacer.complete(now, self._received / self._spec.sample_rate)), 0)

    def push_frame(self, frame: np.ndarray) -> None:
        """A picture, uint8 [H, W, 3], best at the size that the model sees."""
        self._frames.append(frame)
        self.frames += 1
        if len(self._frames) > MAX_FRAMES:  # a client without sense of time: thin out what it sent
            self._frames = self._frames[1::2]

    def lose(self, lost_ms: int) -> None:
        """So much sound before what comes next was never sent."""
        self._lost_ms += lost_ms

    def pad(self, *, expected: bool, closes: int | None = None) -> None:
        """Completes the micro-turn with silence; `expected` where the client had announced to send no more.

        `closes`: it is the one with which the client says so, and for how long the session may go on.
        """
        missing = self._spec.samples - self._filled if self._has_audio else 0
        if missing:
            self._listen(np.zeros(missing, np.float32))
        silence_ms = 0 if expected else missing * 1000 // self._spec.sample_rate
        self._seal(max(self._clock(), self._pacer.skip()), silence_ms, closes)

    def _listen(self, samples: np.ndarray) -> None:
        self._levels.append(self._dmel.push(samples))
        self._filled += len(samples)
        self._power += float(np.dot(samples, samples))

    def _seal(self, not_before: float, silence_ms: int, closes: int | None = None) -> None:
        levels = None
        if self._has_audio:
            levels = np.concatenate(self._levels)
            assert len(levels) == self._spec.dmel_frames, f"{len(levels)} dMel frames in a micro-turn"
        frames, self._frames = self._frames, []
        # As precise as the trainer's, which are kept in that dtype: live, the model reads what it has learnt to read.
        patches = self._video.push(frames).astype(packed.DTYPE) if frames else None
        level = float(np.sqrt(self._power / self._spec.samples))
        self._inbox.put(
            Block(
                levels=levels,
                patches=patches,
                not_before=not_before,
                silence_ms=silence_ms,
                level=level,
                frames=len(frames),
                lost_ms=self._lost_ms,
                received=Position(self._sent(self._received), self.frames, closed=closes is not None),
                heard=self._received,
                held=self._dmel.held if self._has_audio else None,
                closes=closes,
            )
        )
        self._levels, self._filled, self._power, self._lost_ms = [], 0, 0.0, 0
