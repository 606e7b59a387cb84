"""Interaction metrics: did the model do the right thing, at the right moment?

`judge` compares one session's behaviour with what was expected of it (the simulator's `expectations`) and returns
one verdict an expectation; `summarise` turns verdicts into rates; `met` is the strictest reading, of one expectation in
one conversation. A latency runs from the end of the user's last
word to the model's first sound.
"""

import dataclasses
import statistics
from collections.abc import Callable, Iterable
from typing import Any

from tml_jax.streams.number_words import to_words
from tml_jax.wire.behaviour import Behaviour

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
      words_right: whether exactly the expected words were said, or asked; None where none were expected.
      said: the words that were heard, or asked, where this expectation was to be met.
    """

    kind: str
    good: bool
    latency_s: float | None = None
    words_right: bool | None = None
    said: tuple[str, ...] = ()


def _answer(expected: dict[str, Any], done: Behaviour, next_s: float) -> Verdict | None:
    after = expected["after"]
    onset = done.onset_after(after)
    latency = None if onset is None or onset >= next_s else onset - after
    cut = "interrupted" in expected
    said = done.words_in(after, expected["interrupted"] + IN_TIME_S if cut else next_s)
    words = None if cut else said == expected["words"]
    return Verdict("answer", latency is not None and latency <= IN_TIME_S, latency, words, tuple(said))


def _silent(expected: dict[str, Any], done: Behaviour, next_s: float) -> Verdict | None:
    del next_s
    kind = expected["reason"].replace(" ", "_")
    start, end = expected["from"] + _REACTION_S, expected["to"]
    return Verdict(kind, not done.heard_in(start, end), said=tuple(done.words_in(start, end)))


def _timer(expected: dict[str, Any], done: Behaviour, next_s: float) -> Verdict | None:
    del next_s
    at, word = expected["at"], expected["words"][0]
    off = min((abs(time - at) for time, said in done.words if said == word), default=None)
    around = tuple(done.words_in(at - 1.0, at + 1.0))
    return Verdict("timer", off is not None and off <= TIMER_TOLERANCE_S, off, said=around)


def _cue(expected: dict[str, Any], done: Behaviour, next_s: float) -> Verdict | None:
    del next_s
    at, word = expected["at"], expected["words"][0]
    off = min((time - at for time, said in done.words if said == word and time >= at), default=None)
    said = tuple(done.words_in(at, at + 1.0))
    return Verdict("cue", off is not None and off <= IN_TIME_S, off, said=said)


def _stop(expected: dict[str, Any], done: Behaviour, next_s: float) -> Verdict | None:
    after, until = expected["after"], min(expected["until"], next_s)  # what it says to the next request is no failure
    if until <= after + IN_TIME_S or not done.heard_in(after - 0.4, after):
        return None  # too short a while to tell, or the model was not speaking: there was nothing to stop
    last = max((end for start, end in done.sound if start < until and end > after), default=after)
    said = tuple(done.words_in(after + IN_TIME_S, until))
    return Verdict("stop", not done.heard_in(after + IN_TIME_S, until), last - after, said=said)


def _count(expected: dict[str, Any], done: Behaviour, next_s: float) -> Verdict | None:
    del next_s
    said = done.words_in(expected["times"][0] - 0.2, expected["until"])
    wanted = [to_words(n + 1) for n in range(expected["total"])]
    return Verdict("count", bool(said) and said[-1] == wanted[-1], words_right=said == wanted, said=tuple(said))


def _delegate(expected: dict[str, Any], done: Behaviour, next_s: float) -> Verdict | None:
    del next_s
    late = [time - expected["after"] for time in done.delegations if time - expected["after"] >= -0.2]
    asked = next(
        (text.split() for time, text in done.queries if late and time >= late[0] + expected["after"] - 1e-6), None
    )
    wanted = expected["query"].split()
    right = None if asked is None else asked[-len(wanted) :] == wanted  # older words in front of it do no harm
    return Verdict(
        "delegate", bool(late) and late[0] <= IN_TIME_S, late[0] if late else None, right, tuple(asked or ())
    )


def _goes_on(expected: dict[str, Any], done: Behaviour, next_s: float) -> Verdict | None:
    del next_s
    said = tuple(done.words_in(expected["from"], expected["to"]))
    return Verdict("goes_on", done.heard_in(expected["to"] - 0.4, expected["to"]), said=said)


def _result(expected: dict[str, Any], done: Behaviour, next_s: float) -> Verdict | None:
    answer = _answer(expected | {"after": expected["at"]}, done, next_s)
    return answer and dataclasses.replace(answer, kind="result")


_JUDGES: dict[str, Callable[[dict[str, Any], Behaviour, float], Verdict | None]] = {
    "answer": _answer,
    "result": _result,
    "silent": _silent,
    "timer": _timer,
    "cue": _cue,
    "stop": _stop,
    "count": _count,
    "delegate": _delegate,
    "goes on": _goes_on,
}


def begins(expected: dict[str, Any]) -> float:
    """When it becomes possible to meet an expectation, seconds."""
    return (
        expected["times"][0]
        if "times" in expected
        else next(expected[k] for k in ("after", "at", "from") if k in expected)
    )


def judge_each(
    expectations: Iterable[dict[str, Any]], done: Behaviour, until_s: float
) -> list[tuple[dict[str, Any], Verdict | None]]:
    """Every expectation, by time, with its verdict; None where it could not be tested.

    Args:
      expectations: of the session, in any order.
      done: what the model did.
      until_s: end of what was recorded; what reaches beyond it cannot be tested.
    """
    ordered = sorted(expectations, key=begins)
    judged: list[tuple[dict[str, Any], Verdict | None]] = []
    for i, expected in enumerate(ordered):
        after = [begins(later) for later in ordered[i + 1 :] if begins(later) > begins(expected) + 1e-6]
        next_s = min(after, default=until_s)
        ends = max([begins(expected) + 1.0, expected.get("to", 0.0), expected.get("until", 0.0)])
        judged.append((expected, None if ends > until_s else _JUDGES[expected["kind"]](expected, done, next_s)))
    return judged


def judge(expectations: Iterable[dict[str, Any]], done: Behaviour, until_s: float) -> list[Verdict]:
    """The verdicts on those expectations that could be tested; arguments as for `judge_each`."""
    return [verdict for _, verdict in judge_each(expectations, done, until_s) if verdict is not None]


def met(expected: dict[str, Any], verdict: Verdict) -> bool:
    """Whether an expectation was met in full: in time, and word for word as far as the model was let speak."""
    if "interrupted" in expected and list(verdict.said) != expected["words"][: len(verdict.said)]:
        return False
    return verdict.good and verdict.words_right is not False


def summarise(verdicts: Iterable[Verdict]) -> dict[str, float]:
    """Rates by kind, flat: ``answer_in_time``, ``answer_latency_median_s``, ``hesitation_false_speech`` and so on."""
    by_kind: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        by_kind.setdefault(verdict.kind, []).append(verdict)
    figures: dict[str, float] = {}
    for kind, found in sorted(by_kind.items()):
        rate = sum(v.good for v in found) / len(found)
        silent = kind.replace("_", " ") not in _JUDGES  # named by the reason for silence
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
