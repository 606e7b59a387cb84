"""Interaction metrics: did the model do the right thing, at the right moment?

`judge` compares one session's behaviour with what was expected of it (the simulator's `expectations`) and returns
one verdict an expectation; `summarise` turns verdicts into rates. A latency runs from the end of the user's last
word to the model's first sound.
"""

import dataclasses
import statistics
from collections.abc import Callable, Iterable
from typing import Any

from tml_jax.eval.timeline import Behaviour
from tml_jax.streams.number_words import to_words

IN_TIME_S = 0.6
"""How soon an answer must be heard, and a silence fall, to count."""
TIMER_TOLERANCE_S = 0.3
_REACTION_S = 0.15  # sound decided before a hesitation began may still play this long


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One expectation, judged.

    Attributes:
      kind: of the expectation, e.g. "answer" or "hesitation".
      good: whether it was met.
      latency_s: of what was expected to begin or to end; None where it never did.
      words_right: whether exactly the expected words were said; None where none were expected.
    """

    kind: str
    good: bool
    latency_s: float | None = None
    words_right: bool | None = None


def _answer(expected: dict[str, Any], done: Behaviour, next_s: float) -> Verdict | None:
    after = expected["after"]
    onset = done.onset_after(after)
    latency = None if onset is None or onset >= next_s else onset - after
    words = None if "interrupted" in expected else done.words_in(after, next_s) == expected["words"]
    return Verdict("answer", latency is not None and latency <= IN_TIME_S, latency, words)


def _silent(expected: dict[str, Any], done: Behaviour, next_s: float) -> Verdict | None:
    del next_s
    kind = expected["reason"].replace(" ", "_")
    return Verdict(kind, not done.heard_in(expected["from"] + _REACTION_S, expected["to"]))


def _timer(expected: dict[str, Any], done: Behaviour, next_s: float) -> Verdict | None:
    del next_s
    at, word = expected["at"], expected["words"][0]
    off = min((abs(time - at) for time, said in done.words if said == word), default=None)
    return Verdict("timer", off is not None and off <= TIMER_TOLERANCE_S, off)


def _stop(expected: dict[str, Any], done: Behaviour, next_s: float) -> Verdict | None:
    after, until = expected["after"], min(expected["until"], next_s)  # what it says to the next request is no failure
    if until <= after + IN_TIME_S or not done.heard_in(after - 0.4, after):
        return None  # too short a while to tell, or the model was not speaking: there was nothing to stop
    last = max((end for start, end in done.sound if start < until and end > after), default=after)
    return Verdict("stop", not done.heard_in(after + IN_TIME_S, until), last - after)


def _count(expected: dict[str, Any], done: Behaviour, next_s: float) -> Verdict | None:
    del next_s
    said = done.words_in(expected["times"][0] - 0.2, expected["until"])
    wanted = [to_words(n + 1) for n in range(expected["total"])]
    return Verdict("count", bool(said) and said[-1] == wanted[-1], words_right=said == wanted)


def _delegate(expected: dict[str, Any], done: Behaviour, next_s: float) -> Verdict | None:
    del next_s
    late = [time - expected["after"] for time in done.delegations if time - expected["after"] >= -0.2]
    return Verdict("delegate", bool(late) and late[0] <= IN_TIME_S, late[0] if late else None)


def _goes_on(expected: dict[str, Any], done: Behaviour, next_s: float) -> Verdict | None:
    del next_s
    return Verdict("goes_on", done.heard_in(expected["to"] - 0.4, expected["to"]))


def _result(expected: dict[str, Any], done: Behaviour, next_s: float) -> Verdict | None:
    answer = _answer(expected | {"after": expected["at"]}, done, next_s)
    return answer and dataclasses.replace(answer, kind="result")


_JUDGES: dict[str, Callable[[dict[str, Any], Behaviour, float], Verdict | None]] = {
    "answer": _answer,
    "result": _result,
    "silent": _silent,
    "timer": _timer,
    "stop": _stop,
    "count": _count,
    "delegate": _delegate,
    "goes on": _goes_on,
}


def _time(expected: dict[str, Any]) -> float:
    """When it becomes possible to meet an expectation."""
    return (
        expected["times"][0]
        if "times" in expected
        else next(expected[k] for k in ("after", "at", "from") if k in expected)
    )


def judge(expectations: Iterable[dict[str, Any]], done: Behaviour, until_s: float) -> list[Verdict]:
    """One verdict an expectation that could be tested.

    Args:
      expectations: of the session, in any order.
      done: what the model did.
      until_s: end of what was recorded; expectations that reach beyond it are left out.
    """
    ordered = sorted(expectations, key=_time)
    verdicts = []
    for i, expected in enumerate(ordered):
        after = [_time(later) for later in ordered[i + 1 :] if _time(later) > _time(expected) + 1e-6]
        next_s = min(after, default=until_s)
        ends = max([_time(expected) + 1.0, expected.get("to", 0.0), expected.get("until", 0.0)])
        if ends > until_s:
            continue
        verdict = _JUDGES[expected["kind"]](expected, done, next_s)
        if verdict is not None:
            verdicts.append(verdict)
    return verdicts


def summarise(verdicts: Iterable[Verdict]) -> dict[str, float]:
    """Rates by kind, flat: ``answer_in_time``, ``answer_latency_median_s``, ``hesitation_false_speech`` and so on."""
    by_kind: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        by_kind.setdefault(verdict.kind, []).append(verdict)
    figures: dict[str, float] = {}
    for kind, found in sorted(by_kind.items()):
        rate = sum(v.good for v in found) / len(found)
        silent = kind in ("hesitation", "quiet", "not_asked", "stopped", "timer_called_off")
        figures[f"{kind}_cases"] = len(found)
        figures[f"{kind}_false_speech" if silent else f"{kind}_{_NAMES.get(kind, 'in_time')}"] = (
            1 - rate if silent else rate
        )
        latencies = [v.latency_s for v in found if v.latency_s is not None]
        if latencies:
            figures[f"{kind}_latency_median_s"] = statistics.median(latencies)
        words = [v.words_right for v in found if v.words_right is not None]
        if words:
            figures[f"{kind}_words_right"] = sum(words) / len(words)
    return figures


_NAMES = {"count": "exact", "goes_on": "rate", "stop": "silent_in_time"}
