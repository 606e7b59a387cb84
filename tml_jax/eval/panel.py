"""The panel: the few figures by which full-duplex systems are compared, of recorded timelines with expectations.

Each figure is of events, has a bootstrap interval (events within a case are taken to be independent), and is hidden
where there are fewer than `bootstrap.FEWEST` of them:

=========================  =============================================================================================
turn-taking latency        seconds from the end of a request to the answer's first sound, of those that were answered
pause take-over            share of the user's hesitations in which the system is heard; always beside the latency,
                           which anybody can have who does not wait
interrupt recovery         share of barge-ins after which the system is silent in time, and answers the next request in
                           time
silence misclassification  share of stretches in which nobody asks for anything, hesitations among them, that the system
                           speaks in
yield latency              seconds from the end of "stop" to the system's last sound
selectivity                share of what is not meant for the system (backchannels over its answer, talk, sounds) that
                           leaves it as it was: going on, or silent
=========================  =============================================================================================

Latencies are told by their median and 90th percentile.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from tml_jax.eval import bootstrap
from tml_jax.eval.metrics import Verdict, judge_each
from tml_jax.eval.recorded import Recorded
from tml_jax.wire.behaviour import date_results

_NEED_WORDS = frozenset({"timer", "cue", "count"})  # expectations that nothing but words can meet
_NOT_MEANT = frozenset({"quiet", "talk", "goes_on"})
_NOBODY_ASKS = frozenset({"hesitation", "quiet", "talk", "not_asked", "stopped", "timer_called_off"})
_REQUESTS = frozenset({"answer", "delegate"})

Judged = list[tuple[dict[str, Any], Verdict | None]]


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
      name: as it is printed; ends with ``_s`` where it is in seconds, and is a share otherwise.
      values: one an event, in seconds, or 1.0 where it happened and 0.0 where not.
      quantile: of the values, 0 to 1; None: their mean.
    """

    name: str
    values: tuple[float, ...]
    quantile: float | None = None

    def estimate(self, seed: int = 0) -> bootstrap.Figure:
        """The figure with its interval; `seed` is of the resampling."""
        if self.quantile is None:
            return bootstrap.mean(self.values, seed)
        return bootstrap.quantile(self.values, self.quantile, seed)


def judged(case: Recorded) -> Judged:
    """A case's expectations, by time, each with its verdict, None where it could not be tested.

    Where nobody wrote down what the system says, what only words can tell is not tested; without a journal, no
    delegation is.
    """
    done = case.behaviour()
    found = judge_each(date_results(case.expectations, case.events or ()), done, case.duration_s)
    if case.events is None:
        found = [(e, None if e["kind"] == "delegate" else verdict) for e, verdict in found]
    if case.chunks is None:
        found = [(e, v and dataclasses.replace(v, words_right=None)) for e, v in found if e["kind"] not in _NEED_WORDS]
    return found


def figures(cases: Iterable[Judged]) -> list[Figure]:
    """The panel of cases that were judged, also the figures that are hidden."""
    cases = list(cases)
    verdicts = [verdict for case in cases for _, verdict in case if verdict is not None]

    def seconds(kind: str) -> tuple[float, ...]:
        return tuple(v.latency_s for v in verdicts if v.kind == kind and v.latency_s is not None)

    def share(kinds: frozenset[str], good: bool) -> tuple[float, ...]:
        return tuple(float(v.good is good) for v in verdicts if v.kind in kinds)

    answers, stops = seconds("answer"), seconds("stop")
    return [
        Figure("turn_taking_latency_median_s", answers, 0.5),
        Figure("turn_taking_latency_p90_s", answers, 0.9),
        Figure("pause_take_over", share(frozenset({"hesitation"}), good=False)),
        Figure("interrupt_recovery", tuple(float(r) for case in cases for r in _recoveries(case))),
        Figure("silence_misclassification", share(_NOBODY_ASKS, good=False)),
        Figure("yield_latency_median_s", stops, 0.5),
        Figure("yield_latency_p90_s", stops, 0.9),
        Figure("selectivity", share(_NOT_MEANT, good=True)),
    ]


def _recoveries(case: Sequence[tuple[dict[str, Any], Verdict | None]]) -> Iterable[bool]:
    """Of each barge-in that a request follows, whether the system recovered."""
    for i, (expected, verdict) in enumerate(case):
        if expected["kind"] != "stop" or verdict is None:
            continue
        later = (v for e, v in case[i + 1 :] if e["kind"] in _REQUESTS)
        answered = next(later, None)
        if answered is not None:
            yield verdict.good and answered.good


def estimates(panel: Iterable[Figure], seed: int = 0) -> dict[str, bootstrap.Figure]:
    """The figures with their intervals, by the names that they have beside others; also those that are hidden."""
    return {f"panel_{figure.name}": figure.estimate(seed) for figure in panel}
