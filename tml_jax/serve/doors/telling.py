"""What a session tells, as some protocol's events: the part that is the same for all. Knows no socket."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from tml_jax.wire import events

Messages = Iterator[dict[str, Any]]


class Telling:
    """One reader's. A micro-turn without sound is silence, told once it is known.

    Attributes:
      turns: micro-turns so far.
    """

    def __init__(self, stream: events.Stream) -> None:
        """Makes the teller of one session."""
        self._stream = stream
        self._zeros = np.zeros(stream.sample_rate * stream.micro_turn_ms // 1000, np.float32)
        self._silent = False  # a micro-turn began whose sound was not told
        self.turns = 0

    @property
    def now_ms(self) -> int:
        """Where the session is."""
        return self.turns * self._stream.micro_turn_ms

    def translate(self, event: events.Event, last: bool) -> Messages:
        """An event as the protocol's. `last`: nothing was told after it, so a micro-turn without sound is silent."""
        match event:
            case events.Turn(turn=turn):
                yield from self.silence() if self._silent else ()
                self.turns, self._silent = turn + 1, True
                yield from self.turn(event)
            case events.HeardWords():
                yield from self.heard(event)
            case events.Words():
                yield from self.said(event)
            case events.Sound(samples=samples):
                self._silent = False
                yield from self.sound(samples)
            case events.Background(task=task, state=state) if task is not None and state != "progress":
                yield from self.background(event)
        if last and self._silent:
            self._silent = False
            yield from self.silence()

    def turn(self, event: events.Turn) -> Messages:
        """A micro-turn began, `now_ms` is its end."""
        yield from ()

    def heard(self, event: events.HeardWords) -> Messages:
        """What the user said."""
        yield from ()

    def said(self, event: events.Words) -> Messages:
        """What the model says."""
        yield from ()

    def sound(self, samples: np.ndarray) -> Messages:
        """A micro-turn's sound, float32 in [-1, 1]."""
        yield from ()

    def silence(self) -> Messages:
        """A micro-turn without any."""
        return self.sound(self._zeros)

    def background(self, event: events.Background) -> Messages:
        """The server's background model has begun, or ended."""
        yield from ()
