"""What comes out of the user's loudspeaker: the model's sound, put where it could really be heard."""

import collections
from typing import NamedTuple

import numpy as np

SAFETY_S = 0.05
JUDGED = 50  # the last micro-turns, by whose arrival it is judged how late those to come may be
LONGEST_S = 0.4  # speech does not begin later than that for the sake of what may come late
FADE_S = 0.01  # in which sound that is cut goes to nothing


class _Piece(NamedTuple):
    start: int  # where it is heard, samples
    time_s: float  # where the session says that it plays
    epoch: int
    samples: np.ndarray


class Playback:
    """A player without a loudspeaker. Session time 0 is the first sample that the client sends.

    Sound begins as late as micro-turns have arrived of late, all but one of them and silent ones too, plus a little
    safety, and runs on as long as the next piece is there in time; a piece that comes too late leaves a gap, as it
    would for a listener. So the sound may be behind the session: by the safety, by what the network held up. What the
    user cuts short is not played to its end.

    Attributes:
      underruns: pieces that came too late to go on without a gap.
    """

    def __init__(self, sample_rate: int, *, real_time: bool) -> None:
        """Makes an empty recording; without real time, sound is put where the session says that it plays."""
        self._rate, self._real_time = sample_rate, real_time
        self._pieces: list[_Piece] = []
        self._stale = 0  # epoch
        self._end = 0  # samples
        self._late_s: collections.deque[float] = collections.deque(maxlen=JUDGED)
        self._last_turn = -2
        self.underruns = 0

    def arrived(self, time_s: float, arrival_s: float) -> None:
        """Something of a micro-turn whose sound would play from `time_s` on has arrived, both in session time."""
        self._late_s.append(arrival_s - time_s)

    def _begins_s(self, time_s: float, arrival_s: float) -> float:
        late_s = float(np.percentile(self._late_s, 98, method="lower")) if self._late_s else 0.0
        return max(arrival_s, time_s + min(late_s, LONGEST_S)) + SAFETY_S

    def add(self, samples: np.ndarray, turn: int, time_s: float, arrival_s: float, epoch: int = 0) -> None:
        """One piece of sound.

        Args:
          samples: float mono.
          turn: the micro-turn that wrote it.
          time_s: session time from which it should play.
          arrival_s: session time at which it arrived.
          epoch: the stretch of speech that it is of, from 1; 0 where that is not known.
        """
        if 0 < epoch <= self._stale:
            return
        start = round(time_s * self._rate)
        if self._real_time:
            follows = turn == self._last_turn + 1
            arrived = round(arrival_s * self._rate)
            if follows and arrived <= self._end:
                start = self._end
            else:
                self.underruns += follows
                start = max(self._end, round(self._begins_s(time_s, arrival_s) * self._rate))
        self._pieces.append(_Piece(start, time_s, epoch, samples))
        self._end, self._last_turn = start + len(samples), turn

    def cut(self, epoch: int, now_s: float) -> float | None:
        """The user has cut short what was said up to this epoch: from `now_s` on nothing of it is heard.

        Without real time nothing is ever behind, and nothing is cut.

        Returns:
          Session time up to which it was played, or None where all that came of it was.
        """
        if not self._real_time:
            return None
        self._stale, now, fade = epoch, round(now_s * self._rate), round(FADE_S * self._rate)
        kept: list[_Piece] = []
        until_s = None
        for piece in self._pieces:
            played = now - piece.start
            if played >= len(piece.samples) or piece.epoch > epoch:
                kept.append(piece)
                continue
            until_s = piece.time_s + max(0, played) / self._rate if until_s is None else until_s
            if played > 0:
                left = piece.samples[: played + fade].copy()
                left[played:] *= np.linspace(1, 0, fade, dtype=np.float32)[: len(left) - played]
                kept.append(piece._replace(samples=left))
        self._pieces = kept
        self._end = max((piece.start + len(piece.samples) for piece in kept), default=0)
        return until_s

    def sound(self, duration_s: float) -> np.ndarray:
        """Everything that was heard, float32 from session time 0, at least `duration_s` long."""
        out = np.zeros(max(self._end, round(duration_s * self._rate)), np.float32)
        for piece in self._pieces:
            out[piece.start : piece.start + len(piece.samples)] = piece.samples
        return out
