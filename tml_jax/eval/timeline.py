"""What a model did, as metrics see it: the journal's events, read back as times of sound, words and decisions.

Metrics know nothing of the model. They read lists of JSON-like events, whoever wrote them: the server's journal or a
rollout. The events they use: ``{"type": "speak", "t": s, "end": s}`` (the model is heard from t to end),
``{"type": "word", "t": s, "text": w}`` (it began to say w), ``{"type": "delegate", "t": s}``.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Behaviour:
    """A session's behaviour, seconds of session time.

    Attributes:
      sound: stretches in which the model is heard, sorted, (start, end).
      words: (time, word) in order.
      delegations: times.
    """

    sound: tuple[tuple[float, float], ...]
    words: tuple[tuple[float, str], ...]
    delegations: tuple[float, ...]

    @classmethod
    def from_events(cls, events: Iterable[dict[str, Any]]) -> "Behaviour":
        """Reads a session's events; stretches of sound that touch become one."""
        sound: list[tuple[float, float]] = []
        words, delegations = [], []
        for event in sorted(events, key=lambda e: e["t"]):
            if event["type"] == "speak":
                if sound and event["t"] <= sound[-1][1] + 1e-6:
                    sound[-1] = (sound[-1][0], max(sound[-1][1], event["end"]))
                else:
                    sound.append((event["t"], event["end"]))
            elif event["type"] == "word":
                words.append((event["t"], event["text"].strip()))
            elif event["type"] == "delegate":
                delegations.append(event["t"])
        return cls(tuple(sound), tuple(words), tuple(delegations))

    def onset_after(self, time_s: float) -> float | None:
        """When the model is first heard after `time_s`; None: never. Sound that goes on across `time_s` is no onset."""
        return next((start for start, _ in self.sound if start > time_s), None)

    def heard_in(self, start_s: float, end_s: float) -> bool:
        """Whether the model is heard at any time in [start_s, end_s)."""
        return any(start < end_s and end > start_s for start, end in self.sound)

    def words_in(self, start_s: float, end_s: float) -> list[str]:
        """What the model began to say in [start_s, end_s)."""
        return [word for time, word in self.words if start_s <= time < end_s]
