"""What a small interaction model is to show, as one table: a row a figure, with its bar, over all suites of a run.

Rows are of what was recorded in `smoke`, `overheard` and `load`. A row of which nothing was recorded says
why, and one of fewer than `bootstrap.FEWEST` events is hidden. The bars are goals.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tml_jax.eval import bootstrap, panel, report
from tml_jax.eval.bootstrap import Figure, Hidden
from tml_jax.eval.hearing import Ear, Misheard
from tml_jax.eval.metrics import Verdict, met
from tml_jax.eval.overheard import starts
from tml_jax.eval.recorded import Chunk, Recorded
from tml_jax.eval.simulated import LOADS
from tml_jax.streams import number_words
from tml_jax.wire.behaviour import Behaviour

MOST_HEARD = 300  # utterances that the outside recogniser is given
_YIELD_S = 0.4
_COUNT_S = 0.4
_CUE_LASTS_S = 1.6  # speech that begins so long after a cue is no false alarm
_PEOPLE = ("recorded", "fsdd")
_NEURAL = ("kokoro", "piper")
_SMOKE = "smoke/"
_INTERRUPTIONS = ("smoke/barge_in", "smoke/undeterred")


@dataclasses.dataclass(frozen=True)
class Seen:
    """What the table needs of a case.

    Attributes:
      place: its suite and category, ``smoke/timer``. engine: the user's.
      results: what a server's background model answered, by when; empty where answers are simulated.
    """

    place: str
    engine: str
    minutes: float
    judged: panel.Judged
    done: Behaviour
    chunks: Sequence[Chunk]
    steps_ms: Sequence[float]
    results: Mapping[float, str]
    misheard: Sequence[Misheard]


Cases = Sequence[Seen]
Expected = dict[str, Any]


class Shown:
    """Cases as they go by, of which the table is made.

    Args:
      ear: of the outside recogniser; None: what is said is not listened to.
    """

    def __init__(self, ear: Ear | None) -> None:
        self._ear, self._seen, self._heard = ear, list[Seen](), 0

    def watch(self, cases: Iterable[Recorded]) -> Iterator[Recorded]:
        """The same cases."""
        for case in cases:
            self._seen.append(self.see(case))
            yield case

    def see(self, case: Recorded) -> Seen:
        """What the table needs of a case."""
        place, misheard = f"{case.suite}/{case.category}", []
        if self._ear is not None and place == "smoke/command" and self._heard < MOST_HEARD:
            misheard = list(self._ear.misheard(case))
            self._heard += len(misheard)
        events = case.events or ()
        return Seen(
            place,
            case.annotations.get("user", {}).get("engine", ""),
            case.duration_s / 60,
            panel.judged(case) if case.expectations else [],
            case.behaviour(),
            case.chunks or (),
            [event["ms"] for event in events if event["type"] == "step"],
            {e["t"]: e["text"] for e in events if e["type"] == "background" and e["state"] == "finished"},
            misheard,
        )

    def table(self) -> list[report.Row]:
        """The rows, those too that nothing was recorded of."""
        return [row.of(self._seen) for row in ROWS]


def steps(cases: Iterable[Recorded]) -> dict[str, Figure]:
    """How long a server's steps took, milliseconds, by how many sessions there were."""
    seen = list(map(Shown(None).see, cases))
    quantiles = (("median", 0.5), ("p99", 0.99))
    return {f"step_{n}_sessions_{name}_ms": _steps(n, at)(seen) for n in LOADS for name, at in quantiles}


class Row(NamedTuple):
    """A row: how it is measured, and why it would not be."""

    name: str
    measure: Callable[[Cases], Figure]
    unmeasured: str
    at_least: float | None = None
    at_most: float | None = None
    unit: str = "%"
    note: str | Callable[[Cases], str] = ""

    def of(self, cases: Cases) -> report.Row:
        """The row of these cases."""
        figure = self.measure(cases)
        note = self.note if isinstance(self.note, str) else self.note(cases)
        if isinstance(figure, Hidden) and not figure.events:
            note = self.unmeasured
        return report.Row(self.name, figure, self.unit, self.at_least, self.at_most, note)


def _found(cases: Cases, kind: str, *places: str) -> Iterator[tuple[Seen, Expected, Verdict]]:
    """What was expected of this kind in cases whose place begins with one of these, and came."""
    for case in cases:
        if case.place.startswith(places):
            yield from ((case, e, v) for e, v in case.judged if e["kind"] == kind and v is not None)


def _share(good: Callable[[Expected, Verdict], bool], kind: str, *places: str) -> Callable[[Cases], Figure]:
    return lambda cases: bootstrap.rate([good(e, v) for _, e, v in _found(cases, kind, *places)])


def _good(expected: Expected, verdict: Verdict) -> bool:
    del expected
    return verdict.good


def _within(most_s: float) -> Callable[[Expected, Verdict], bool]:
    return lambda expected, verdict: verdict.latency_s is not None and verdict.latency_s <= most_s


def _latency(at: float) -> Callable[[Cases], Figure]:
    def measure(cases: Cases) -> Figure:
        found = _found(cases, "answer", _SMOKE)
        return bootstrap.quantile([v.latency_s for _, _, v in found if v.latency_s is not None], at)

    return measure


def _pauses(cases: Cases) -> Figure:
    found = _found(cases, "silent", _SMOKE)
    return bootstrap.rate([not v.good for _, e, v in found if e["reason"] == "hesitation"])


def _commands(wanted: Callable[[str], bool]) -> Callable[[Cases], Figure]:
    """Answers word for word, of users whose engine is wanted."""

    def measure(cases: Cases) -> Figure:
        found = _found(cases, "answer", "smoke/command", "smoke/greeting")
        return bootstrap.rate([v.words_right is True for case, _, v in found if case.engine and wanted(case.engine)])

    return measure


def _pairs(cases: Cases) -> Figure:
    """Of two timers that run at once, whether both were in time."""
    both: list[bool] = []
    for case in cases:
        timers = [v for e, v in case.judged if e["kind"] == "timer" and e.get("of") == 2]
        pairs = zip(timers[::2], timers[1::2], strict=False)
        both += [one.good and other.good for one, other in pairs if one is not None and other is not None]
    return bootstrap.rate(both)


def _off_by_one(expected: Expected, verdict: Verdict) -> bool:
    last = verdict.said[-1] if verdict.said else ""
    return last in number_words.UNITS and abs(number_words.UNITS.index(last) - expected["total"]) <= 1


def _new_requests(cases: Cases) -> Figure:
    """Of requests right after "stop", whether they were answered in time and word for word."""
    found = _found(cases, "answer", "smoke/redirect")
    return bootstrap.rate([met(e, v) for _, e, v in found if "interrupted" not in e])


def _counted_on_time(cases: Cases) -> Figure:
    on_time: list[bool] = []
    for case, expected, _ in _found(cases, "count", _SMOKE):
        for i, end in enumerate(expected["times"], 1):
            said = (chunk.start_s for chunk in case.chunks if chunk.text == number_words.to_words(i))
            on_time.append(min((abs(time - end) for time in said), default=_COUNT_S + 1) <= _COUNT_S)
    return bootstrap.rate(on_time)


def _false_alarms(cases: Cases) -> Figure:
    watched = [case for case in cases if case.place == "smoke/cue"]
    alarms = []
    for case in watched:
        cues = [e["at"] for e, _ in case.judged if e["kind"] == "cue"]
        alarms.append(sum(not any(0 <= t - cue <= _CUE_LASTS_S for cue in cues) for t in starts(case.done.sound)))
    return bootstrap.ratio(alarms, [case.minutes for case in watched])


def _starts(*places: str) -> Callable[[Cases], Figure]:
    def measure(cases: Cases) -> Figure:
        there = [case for case in cases if case.place in places]
        return bootstrap.ratio([len(starts(case.done.sound)) for case in there], [case.minutes for case in there])

    return measure


def _told(place: str, *, of: Callable[[list[str]], bool]) -> Callable[[Cases], Figure]:
    """Answers in time and word for word, of those whose words are wanted."""

    def measure(cases: Cases) -> Figure:
        return bootstrap.rate([met(e, v) for _, e, v in _found(cases, "answer", place) if of(e["words"])])

    return measure


def _obeyed_silence(cases: Cases) -> Figure:
    found = _found(cases, "silent", "smoke/instructed")
    return bootstrap.rate([v.good for _, e, v in found if e["reason"] == "told to be silent"])


def _minutes(*places: str) -> Callable[[Cases], str]:
    return lambda cases: f"{sum(case.minutes for case in cases if case.place in places):.1f} minutes"


class _Delegated(NamedTuple):
    """Whether something was said until the result came, the question was right, the result said once; None: untold."""

    held: bool
    asked: bool | None
    told: bool


def _delegations(cases: Cases) -> Iterator[_Delegated]:
    for case in cases:
        for (asked, first), (told, second) in itertools.pairwise(case.judged):
            if (asked["kind"], told["kind"]) == ("delegate", "result") and first is not None and second is not None:
                held = bool(case.done.words_in(asked["after"], told["at"]))
                untold = case.done.delegations and not case.done.queries  # who simulates answers sees no question
                came = case.results.get(told["at"], " ".join(told["words"])).lower().split()
                right = None if untold else first.words_right is True
                yield _Delegated(held, right, list(second.said) == came)


def _delegated(good: Callable[[_Delegated], bool | None]) -> Callable[[Cases], Figure]:
    return lambda cases: bootstrap.rate([told for one in _delegations(cases) if (told := good(one)) is not None])


def _all_three(one: _Delegated) -> bool | None:
    return None if one.asked is None else all(one)


def _misheard(errors: Callable[[Misheard], int]) -> Callable[[Cases], Figure]:
    def measure(cases: Cases) -> Figure:
        found = [one for case in cases for one in case.misheard]
        return bootstrap.ratio([errors(one) for one in found], [one.words for one in found])

    return measure


def _steps(sessions: int, at: float) -> Callable[[Cases], Figure]:
    """Of the steps of one session: those that are played together are nearly always in the same ones."""

    def measure(cases: Cases) -> Figure:
        of = (case.steps_ms for case in cases if case.place == f"load/{sessions}")
        return bootstrap.quantile(next(of, ()), at)

    return measure


_NO_PEOPLE = "the bank has no held-out recordings of people who ask for something"
_NO_EAR = "needs pocketsphinx (extra `speech`) and the sound"
_NO_SERVER = "needs `smoke`, of a server with a background model"
_NO_STEPS = "needs `load`, of a server with as many slots, at --pace=real"
_TYPED = "the request is typed"
ROWS = (
    Row("turn-taking latency, median", _latency(0.5), "needs `smoke`", at_most=0.3, unit="s"),
    Row("turn-taking latency, 90th percentile", _latency(0.9), "needs `smoke`", at_most=0.5, unit="s"),
    Row("pause take-over", _pauses, "needs `smoke`", at_most=0.05),
    Row("command answered word for word: neural voices", _commands(lambda e: e in _NEURAL), "no such voice", 0.95),
    Row("command answered word for word: recorded people", _commands(lambda e: e in _PEOPLE), _NO_PEOPLE, 0.75),
    Row(
        "command answered word for word: other synthetic voices",
        _commands(lambda e: e not in (*_NEURAL, *_PEOPLE)),
        "no such voice",
    ),
    Row("timer within 0.3 s: once", _share(_good, "timer", "smoke/timer"), "needs `smoke`", 0.95),
    Row("timer within 0.3 s: repeated", _share(_good, "timer", "smoke/beeper"), "needs `smoke`", 0.9),
    Row("timer within 0.3 s: two at once, both", _pairs, "needs `smoke`", 0.8),
    Row("repetitions counted exactly", _share(_good, "count", _SMOKE), "needs `smoke`", 0.95),
    Row("repetitions counted, off by one at most", _share(_off_by_one, "count", _SMOKE), "needs `smoke`", 0.99),
    Row("each number within 0.4 s of its repetition", _counted_on_time, "needs `smoke`"),
    Row(
        "visual cue: said within 0.6 s",
        _share(_good, "cue", "smoke/cue"),
        "needs `smoke`",
        0.9,
        note=_TYPED,
    ),
    Row("visual cue: false alarms a minute", _false_alarms, "needs `smoke`", at_most=0.2, unit="", note=_TYPED),
    Row("barge-in: silent within 0.4 s", _share(_within(_YIELD_S), "stop", _SMOKE), "needs `smoke`", 0.97),
    Row("barge-in: then the new request answered", _new_requests, "needs `smoke`", 0.9),
    Row("keeps the floor: backchannel", _share(_good, "goes on", *_INTERRUPTIONS), "needs `smoke`", 0.9),
    Row("keeps the floor: side talk", _share(_good, "goes on", "smoke/side_talk"), "needs `smoke`", 0.9),
    Row(
        "shadowing: digits right while the user speaks",
        _share(_good, "cue", "smoke/shadow"),
        "needs `smoke`",
        0.85,
        note=_TYPED,
    ),
    Row(
        "translation: digits in Spanish while the user speaks",
        _share(_good, "cue", "smoke/translate"),
        "needs `smoke`",
        note=_TYPED,
    ),
    Row(
        "asked how long a timer has run: the second, in time",
        _told("smoke/elapsed", of=lambda words: words != ["okay"]),
        "needs `smoke`",
    ),
    Row("begun anew: what was said whole is answered", _told("smoke/repair", of=bool), "needs `smoke`"),
    Row(
        "told to say numbers in Spanish: does",
        _told("smoke/instructed", of=lambda words: words[0] in number_words.SPANISH),
        "needs `smoke`",
    ),
    Row(
        'told to say "yes" for "okay": does',
        _told("smoke/instructed", of=lambda words: words == ["yes"]),
        "needs `smoke`",
    ),
    Row("told to be silent: is, where an answer would come", _obeyed_silence, "needs `smoke`"),
    Row("delegation: all three", _delegated(_all_three), _NO_SERVER, 0.9),
    Row("delegation: holding phrase", _delegated(lambda one: one.held), "needs `smoke`"),
    Row("delegation: question word for word", _delegated(lambda one: one.asked), _NO_SERVER),
    Row("delegation: result said exactly once", _delegated(lambda one: one.told), "needs `smoke`"),
    *(
        Row(f"false speech a minute: {what}", _starts(place), needs, None, bar, "", _minutes(place))
        for what, place, needs, bar in (
            ("silence and noise", "smoke/quiet", "needs `smoke`", 0.2),
            ("talk of recorded people", "overheard/talk", "needs --recordings", 0.2),
            ("talk of synthetic voices", "smoke/talk", "needs `smoke`", None),
        )
    ),
    Row(
        "word error over that of its voice's recordings",
        _misheard(lambda one: one.system - one.recordings),
        _NO_EAR,
        at_most=0.05,
        note="numbers, by pocketsphinx",
    ),
    Row("word error of its voice's recordings", _misheard(lambda one: one.recordings), _NO_EAR),
    *(
        Row(f"step at {n} session{'s' * (n > 1)}, {name}", _steps(n, at), _NO_STEPS, None, bar, "ms")
        for n in LOADS
        for name, at, bar in (("median", 0.5, None), ("99th percentile", 0.99, 200.0 if n == LOADS[-1] else None))
    ),
)
