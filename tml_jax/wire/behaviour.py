"""What a model did, as metrics see it: the journal's events, read back as times of sound, words and decisions.

Metrics know nothing of the model. They read lists of JSON-like events, whoever wrote them: the server's journal or a
rollout. The events they use: ``{"type": "speak", "t": s, "end": s}`` (the model is heard from t to end),
``{"type": "word", "t": s, "text": w}`` (it began to say w), ``{"type": "delegate", "t": s}``. A journal says of each
micro-turn that the model decided to speak, and by ``{"type": "voice", "turn": k, "onset_ms": m}`` from when on that can
be heard; and its ``background`` lines say what was delegated and when the answer came.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

LONGEST_ANSWER_S = 6.0
"""How long after a request the background model's answer may come to be the answer to it."""


@dataclasses.dataclass(frozen=True)
class Behaviour:
    """A session's behaviour, seconds of session time.

    Attributes:
      sound: stretches in which the model is heard, sorted, (start, end).
      words: (time, word) in order.
      delegations: times.
      queries: (time, what the background model was asked); empty where the events don't say.
    """

    sound: tuple[tuple[float, float], ...]
    words: tuple[tuple[float, str], ...]
    delegations: tuple[float, ...]
    queries: tuple[tuple[float, str], ...] = ()

    @classmethod
    def from_events(cls, events: Iterable[dict[str, Any]]) -> "Behaviour":
        """Reads a session's events; stretches of sound that touch become one."""
        ordered = sorted(events, key=lambda e: e["t"])
        period_s = next((event["micro_turn_s"] for event in ordered if event["type"] == "session"), 0.2)
        onsets = {event["turn"]: event.get("onset_ms") for event in ordered if event["type"] == "voice"}
        sound: list[tuple[float, float]] = []
        words, delegations, queries = [], [], []
        for event in ordered:
            if event["type"] == "speak":
                start, end = event["t"], event.get("end")
                if end is None:  # a journal's decision
                    if (onset_ms := onsets.get(event["turn"])) is None:
                        continue  # nothing can be heard of it
                    start, end = event["t"] + onset_ms / 1000, event["t"] + period_s
                if sound and start <= sound[-1][1] + 1e-6:
                    sound[-1] = (sound[-1][0], max(sound[-1][1], end))
                else:
                    sound.append((start, end))
            elif event["type"] == "word":
                words += [(event["t"], word) for word in event["text"].split()]
            elif event["type"] == "delegate":
                delegations.append(event["t"])
            elif event["type"] == "background" and event["state"] == "started":
                queries.append((event["t"], event["text"]))
        return cls(tuple(sound), tuple(words), tuple(delegations), tuple(queries))

    def onset_after(self, time_s: float) -> float | None:
        """When the model is first heard after `time_s`; None: never. Sound that goes on across `time_s` is no onset."""
        return next((start for start, _ in self.sound if start > time_s), None)

    def heard_in(self, start_s: float, end_s: float) -> bool:
        """Whether the model is heard at any time in [start_s, end_s)."""
        return any(start < end_s and end > start_s for start, end in self.sound)

    def words_in(self, start_s: float, end_s: float) -> list[str]:
        """What the model began to say in [start_s, end_s)."""
        return [word for time, word in self.words if start_s <= time < end_s]


def date_results(expectations: Iterable[dict[str, Any]], events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The expectations of a live session, whose background model answers when it can and not when simulated.

    A result is expected from the moment on at which the first answer to the request came, where one came within
    `LONGEST_ANSWER_S`.
    """
    came = sorted(e["t"] for e in events if e["type"] == "background" and e["state"] != "started")
    dated, asked = [], 0.0
    for expected in expectations:
        if expected["kind"] == "delegate":
            asked = expected["after"]
        if expected["kind"] == "result":
            at = next((t for t in came if asked < t <= asked + LONGEST_ANSWER_S), expected["at"])
            expected = expected | {"at": at}
        dated.append(expected)
    return dated
