"""When a session's micro-turns are due: the arithmetic of live sound, with no clock of its own.

Four rules. A client that sends faster than real time is stepped in real time, `AHEAD_S` ahead and by `DRIFT` faster.
A burst after a stall is caught up with, for the sound in it was due long ago. Sound that stays away is replaced by
silence once it is `late_s` late, so that the model's time goes on; sound that comes after that starts on time again.
Where it was late and not left out, time would be ahead for good by that silence: what is too much is to go (`surplus`).
"""

import dataclasses
import math

# A micro-turn may be stepped this long before its sound can have ended, reckoned from when the first of it came: that
# may have come late, and what a session's first sound has lost on its way it would else wait for to its end.
AHEAD_S = 0.5
# The same of silence, which nobody sends.
EARLY_S = 0.1
# A client's sample clock may run this much slower than ours before silence is put in, or faster before sound waits.
DRIFT = 0.01
# For so long after silence was put in, what comes may be the sound whose place it took.
_FORGET_S = 30.0


@dataclasses.dataclass
class Pacer:
    """Dates the micro-turns of one session.

    Attributes:
      micro_turn_s: length of a micro-turn.
      late_s: how late sound may be before silence takes its place.
    """

    micro_turn_s: float
    late_s: float
    _start: float | None = None
    _due: float = 0.0
    _starved: bool = False
    _longest_s: float = 0.0  # of the pieces that sound comes in
    _began: float = 0.0  # when session time was 0
    _turns: int = 0
    _lead_s: float = 0.0  # by which session time has been ahead of the clock, but for silence put in
    _owed_s: float = 0.0  # silence put in that nothing has made up for
    _skipped_at: float = -math.inf

    def begin(self, now: float, duration_s: float = 0.0) -> None:
        """Sound, `duration_s` long, has arrived: its first sample is that old. Time begins with the first of it."""
        self._longest_s = max(self._longest_s, duration_s)
        if self._start is None:
            self._start = self._began = now - duration_s
            self._due = self._start + self.micro_turn_s

    def go_on(self, now: float, received_s: float | None = None, stood_s: float = 0.0) -> None:
        """Time goes on after the client was away: its sound is late from now on only, and what it has kept is due.

        Args:
          now: the time.
          received_s: of a session that another pacer has dated, seconds of its sound.
          stood_s: of such a session, for how long its time stood still.
        """
        if received_s is not None:
            self._start = now - received_s - stood_s
        if self._start is not None:
            self._due = max(self._due, now + self.micro_turn_s)
        self._began, self._lead_s, self._owed_s = now - self._turns * self.micro_turn_s, 0.0, 0.0

    @property
    def begun(self) -> bool:
        """Whether anything has arrived."""
        return self._start is not None

    def complete(self, now: float, received_s: float) -> float:
        """A micro-turn is complete; `received_s` seconds of sound (silence not counted) came up to its end.

        Returns:
          The time before which it should not be stepped.
        """
        assert self._start is not None
        due = (
            max(self._due, now)
            if self._starved
            else self._due + min(max(0.0, now - self._due), DRIFT * self.micro_turn_s)
        )
        self._starved = False
        self._due = min(due, now) + self.micro_turn_s
        self._turns += 1
        ahead_s = self._turns * self.micro_turn_s - (now - self._began) - self._lead_s
        self._lead_s += min(max(0.0, ahead_s), DRIFT * self.micro_turn_s if self._owed_s else math.inf)
        early_s = self._start + received_s - now
        self._start -= min(max(0.0, early_s), DRIFT * self.micro_turn_s)
        return self._start + received_s - AHEAD_S

    def late(self, now: float) -> bool:
        """Whether the micro-turn that is being filled has waited long enough for its sound."""
        return self.begun and now > self._due + self.late_s + max(0.0, self._longest_s - self.micro_turn_s)

    @property
    def owes(self) -> bool:
        """Whether silence was put in for which nothing was left out yet."""
        return self._owed_s > 0

    def surplus(self, now: float, filled_s: float) -> float:
        """Seconds by which silence put in has brought session time ahead; of sound that is late, so much may go.

        `filled_s`: of the micro-turn that is being filled.
        """
        if now - self._skipped_at > _FORGET_S:
            self._owed_s = 0.0
        ahead_s = self._turns * self.micro_turn_s + filled_s - (now - self._began) - self._lead_s
        return min(max(0.0, ahead_s), self._owed_s)

    def make_up(self, left_out_s: float) -> None:
        """So much late sound was left out, and what follows it is due by that later."""
        self._owed_s = max(0.0, self._owed_s - left_out_s)
        self._due += left_out_s

    def skip(self, now: float = 0.0, silence_s: float = 0.0) -> float:
        """The micro-turn is completed with silence, of which `silence_s` stands for sound that is late.

        Returns:
          The time before which it should not be stepped.
        """
        self._turns += 1
        if silence_s:
            self._owed_s, self._skipped_at = self._owed_s + silence_s, now
        self._starved = True
        due, self._due = self._due, self._due + self.micro_turn_s
        return due - EARLY_S
