"""What comes out of the user's loudspeaker: the model's sound, put where it could really be heard."""

import numpy as np

SAFETY_S = 0.04


class Playback:
    """A player without a loudspeaker. Session time 0 is the first sample that the client sends.

    Sound begins when it arrives, plus a little safety against jitter, and runs on as long as the next piece is
    there in time; a piece that comes too late leaves a gap, as it would for a listener.

    Attributes:
      underruns: pieces that came too late to go on without a gap.
    """

    def __init__(self, sample_rate: int, *, real_time: bool) -> None:
        """Makes an empty recording; without real time, sound is put where the session says that it plays."""
        self._rate, self._real_time = sample_rate, real_time
        self._pieces: list[tuple[int, np.ndarray]] = []
        self._end = 0  # samples
        self._last_turn = -2
        self.underruns = 0

    def add(self, samples: np.ndarray, turn: int, time_s: float, arrival_s: float) -> None:
        """One piece of sound.

        Args:
          samples: float mono.
          turn: the micro-turn that wrote it.
          time_s: session time from which it should play.
          arrival_s: session time at which it arrived.
        """
        start = round(time_s * self._rate)
        if self._real_time:
            follows = turn == self._last_turn + 1
            arrived = round(arrival_s * self._rate)
            if follows and arrived <= self._end:
                start = self._end
            else:
                self.underruns += follows
                start = max(self._end, arrived + round(SAFETY_S * self._rate))
        self._pieces.append((start, samples))
        self._end, self._last_turn = start + len(samples), turn

    def sound(self, duration_s: float) -> np.ndarray:
        """Everything that was heard, float32 from session time 0, at least `duration_s` long."""
        out = np.zeros(max(self._end, round(duration_s * self._rate)), np.float32)
        for start, samples in self._pieces:
            out[start : start + len(samples)] = samples
        return out
