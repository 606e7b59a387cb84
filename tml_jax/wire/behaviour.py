"""What a model did, as metrics see it: the journal's events, read back as times of sound, words and decisions.

Metrics know nothing of the model. They read the lines of a journal (`journal`), whoever wrote them: a server, its
client or a rollout. In a micro-turn the model is heard from its `voice` line's ``onset_ms`` on, where it also decided
to speak; `background` lines say what was delegated and when the answer came.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

LONGEST_ANSWER_S = 6.0
"""How long after a request the background model's answer may come to be the answer to it."""


def whole_words(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events, with a `word` or `heard` line for each whole word, dated by its first piece, without its spaces."""
    whole: list[dict[str, Any]] = []
    last: dict[str, dict[str, Any]] = {}
    for event in events:
        kind = event["type"]
        if kind in ("word", "heard"):
            begun = last[kind]["text"] if kind in last else " ended "
            ended = begun.strip() and begun[-1].isspace()
            if not ended and not event["text"][:1].isspace():
                last[kind]["text"] += event["text"]
                continue
            last[kind] = event = dict(event)
        whole.append(event)
    for event in whole:
        if event["type"] in ("word", "heard"):
            event["text"] = event["text"].strip()
    return [event for event in whole if event.get("text") != "" or event["type"] not in last]


def text_of(events: Iterable[dict[str, Any]], kind: str) -> str:
    """Everything that the model said (``"word"``) or heard (``"heard"``)."""
    return " ".join(event["text"] for event in whole_words(events) if event["type"] == kind)


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
        ordered = whole_words(sorted(events, key=lambda e: e["t"]))
        period_s = next((event["micro_turn_s"] for event in ordered if event["type"] == "session"), 0.2)
        onsets = {event["turn"]: event.get("onset_ms") for event in ordered if event["type"] == "voice"}
        sound: list[tuple[float, float]] = []
        words, delegations, queries = [], [], []
        for event in ordered:
            if event["type"] == "speak":
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
    came = sorted(e["t"] for e in events if e["type"] == "background" and e["state"] in ("finished", "failed"))
    dated, asked = [], 0.0
    for expected in expectations:
        if expected["kind"] == "delegate":
            asked = expected["after"]
        if expected["kind"] == "result":
            at = next((t for t in came if asked < t <= asked + LONGEST_ANSWER_S), expected["at"])
            expected = expected | {"at": at}
        dated.append(expected)
    return dated
