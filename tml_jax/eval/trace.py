"""A session's journal as a trace, in Chrome's trace event format, which Perfetto and chrome://tracing open.

Each kind of thing has a track, and each background task one of its own: what is on one track must not overlap. Times
are microseconds of session time: what comes in begins with its micro-turn, what the model writes when it is heard.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from tml_jax.wire.behaviour import Behaviour, whole_words
from tml_jax.wire.journal import Event

_HEARD, _TYPED, _SEEN, _MISSED = "user: words heard", "user: text", "user: pictures", "user: sound that did not come"
_SAID, _SOUND, _STEPS, _SESSION = "model: words", "model: sound", "steps", "session"
_TRACKS = (_HEARD, _TYPED, _SEEN, _MISSED, _SAID, _SOUND, _STEPS, _SESSION)
_INSTANTS = {"text": _TYPED, "instructions": _TYPED, "frame": _SEEN, "frames_dropped": _SEEN}
_INSTANTS |= dict.fromkeys(("silence", "shortened", "lost"), _MISSED)
_INSTANTS |= {"delegate": _SAID, "error": _SESSION, "end": _SESSION}

_Row = tuple[str, str, int, int | None, Event]  # track, name, begin and length in µs (None: an instant), details


def trace(events: Sequence[Event]) -> dict[str, Any]:
    """The trace of a journal's events, to be written as JSON."""
    began = next((event for event in events if event["type"] == "session"), {})
    rows = [*_rows(events, _us(began.get("micro_turn_s", 0.2)))]
    names = dict.fromkeys([*_TRACKS, *(track for track, *_ in rows)])
    numbers = {name: number for number, name in enumerate(names, 1)}
    made = [{"ph": "M", "name": "process_name", "pid": 1, "args": {"name": f"session {began.get('session', '')}"}}]
    for name, number in numbers.items():
        for key, value in ({"thread_name": {"name": name}} | {"thread_sort_index": {"sort_index": number}}).items():
            made.append({"ph": "M", "name": key, "pid": 1, "tid": number, "args": value})
    for track, name, ts, dur, args in rows:
        how = {"ph": "i", "s": "t"} if dur is None else {"ph": "X", "dur": dur}
        made.append({"name": name, "cat": "session", "pid": 1, "tid": numbers[track], "ts": ts, **how, "args": args})
    return {"traceEvents": made, "displayTimeUnit": "ms"}


def _rows(events: Sequence[Event], period: int) -> Iterator[_Row]:
    begun: dict[str, Event] = {}
    for event in whole_words(events):
        kind, ts, task = event["type"], _us(event["t"]), f"background task {event.get('task')}"
        if kind == "heard":
            yield _HEARD, event["text"], ts - period, period, event
        elif kind == "word":
            yield _SAID, event["text"], ts, period, event
        elif kind == "step":  # one that took longer would overlap the next
            yield _STEPS, "late step" if event["missed"] else "step", ts, min(round(event["ms"] * 1000), period), event
        elif kind in _INSTANTS:
            yield _INSTANTS[kind], event.get("text", kind), ts, None, event
        elif kind == "background" and event["state"] == "started":
            begun[task] = event
        elif kind == "background" and event["state"] in ("finished", "failed"):
            yield _span(task, begun.pop(task, event), ts, event)
        elif kind == "background":
            yield task, event["state"], ts, None, event
    for task, event in begun.items():
        yield _span(task, event, _us(events[-1]["t"]), {"state": "not finished"})
    for start, end in Behaviour.from_events(events).sound:
        yield _SOUND, "speech", _us(start), _us(end) - _us(start), {}


def _span(task: str, begun: Event, end: int, ended: Event) -> _Row:
    start = _us(begun["t"])
    return task, begun["text"] or task, start, max(0, end - start), {"asked": begun["text"], **ended}


def _us(seconds: float) -> int:
    return round(seconds * 1e6)
