"""A session's sound and frames, cut into micro-turns: from samples and pictures to `Block`s in the inbox."""

import math
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
_CELL_S = 0.01  # of sound that is a pause as a whole or not at all
_PAUSE, _OVER_NOISE = (1e-3, 0.03), 3.0  # root mean squares: the least and the most of a pause; of its noise
_NOISE_RISES = 1.0015  # a cell, where it is louder than the least so far


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
        self._dmel, self._video, self._cell = DmelStream(spec), FrameStream(spec), round(_CELL_S * spec.sample_rate)
        self._levels: list[np.ndarray] = []
        self._sound: list[np.ndarray] = []
        self._frames: list[np.ndarray] = []
        self._filled = self._received = self._shortened = 0
        self._power, self._lost_ms, self._noise = 0.0, 0, 1.0
        self.frames = self._new_frames = 0

    def go_on(self, last: Block) -> None:
        """Goes on after a micro-turn that was completed by another one."""
        self._received, self.frames = last.heard, last.received.frames
        if last.held is not None:
            self._dmel.held = last.held

    def push(self, samples: np.ndarray) -> None:
        """Sound, float32 at the stream's rate.

        Where silence was put in for it, and time is ahead by that, its pauses are left out until it is not.
        """
        count = round(len(samples) / self._cell)
        if not count:  # too short to tell a pause from a wave
            return self._take(samples)
        if count <= 2 and not self._pacer.owes:  # as nearly always: fifty times a second
            level = math.sqrt(float(np.dot(samples, samples)) / len(samples))
            self._noise = min(level, self._noise * _NOISE_RISES**count)
            return self._take(samples)
        edges = np.linspace(0, len(samples), count + 1).astype(int)
        sizes = np.diff(edges)
        levels = np.sqrt(np.add.reduceat(samples * samples, edges[:-1]) / sizes)
        self._noise = min([self._noise * _NOISE_RISES**count, *levels])
        rate, heard = self._spec.sample_rate, 0
        for cell in np.flatnonzero(levels <= np.clip(_OVER_NOISE * self._noise, *_PAUSE)):
            after_s = (self._filled + len(samples) - heard) / rate  # of the micro-turn, with all that is here
            if self._pacer.surplus(self._clock(), after_s) * rate < sizes[cell]:
                break
            self._take(samples[heard : edges[cell]])
            self._leave_out(int(sizes[cell]))
            heard = edges[cell + 1]
        return self._take(samples[heard:])

    def _leave_out(self, count: int) -> None:
        self._pacer.make_up(count / self._spec.sample_rate)
        self._received += count
        self._shortened += count

    def _take(self, samples: np.ndarray) -> None:
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
        self._new_frames += 1
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
        now = self._clock()
        self._seal(max(now, self._pacer.skip(now, silence_ms / 1000)), silence_ms, closes)

    def _listen(self, samples: np.ndarray) -> None:
        self._levels.append(self._dmel.push(samples))
        self._sound.append(samples)
        self._filled += len(samples)
        self._power += float(np.dot(samples, samples))

    def _seal(self, not_before: float, silence_ms: int, closes: int | None = None) -> None:
        levels = sound = None
        if self._has_audio:
            levels, sound = np.concatenate(self._levels), np.concatenate(self._sound)
            assert len(levels) == self._spec.dmel_frames, f"{len(levels)} dMel frames in a micro-turn"
        frames, self._frames = self._frames, []
        seen = min(len(frames), self._video.max_frames)
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
                frames=self._new_frames,
                frames_dropped=self._new_frames - seen,
                lost_ms=self._lost_ms,
                shortened_ms=self._shortened * 1000 // self._spec.sample_rate,
                received=Position(self._sent(self._received), self.frames, closed=closes is not None),
                heard=self._received,
                held=self._dmel.held if self._has_audio else None,
                closes=closes,
                sound=sound,
            )
        )
        self._levels, self._sound, self._power = [], [], 0.0
        self._filled = self._lost_ms = self._new_frames = self._shortened = 0
