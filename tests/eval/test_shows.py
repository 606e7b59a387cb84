"""The table of what a model is to show, on cases worked by hand: rows are met, missed or hidden, or say why not."""

import itertools

import numpy as np
import pytest

from tests.eval.test_metrics import spoken
from tml_jax.eval import report, shows
from tml_jax.eval.bootstrap import Estimate, Hidden
from tml_jax.eval.hearing import Misheard
from tml_jax.eval.recorded import Chunk, Recorded

SILENCE = np.zeros(16_000, np.float32)
ANSWER = {"kind": "answer", "after": 2.0, "words": ["five"]}


def case(place, *expectations, events=(), engine="kokoro", chunks=(), seconds=30.0):
    suite, category = place.split("/")
    notes = {"user": {"voice": f"{engine}/a", "engine": engine}}
    return Recorded("a", SILENCE, None, seconds, suite, category, expectations, events, chunks, notes)


def table(*cases, ear=None):
    shown = shows.Shown(ear)
    assert list(shown.watch(cases)) == list(cases)
    return {row.name: row for row in shown.table()}


def value(rows, name):
    figure = rows[name].figure
    assert isinstance(figure, Estimate), f"{name}: {figure}"
    return figure.value


def test_nothing_measured_says_why():
    rows = table()
    assert all(row.figure == Hidden(0) and row.met is None and row.note for row in rows.values())
    assert "no held-out recordings of people" in rows["command answered word for word: recorded people"].note


def test_users_are_told_apart_by_their_engine():
    right, wrong = spoken(2.2, 2.8, "five"), spoken(2.2, 2.8, "nine")
    said = {
        "kokoro": [right] * 9 + [wrong],
        "fsdd": [right] * 8 + [wrong] * 2,
        "flite": [wrong] * 10,
        "pico": [right] * 9,
    }
    cases = [case("smoke/command", ANSWER, events=one, engine=e) for e, of in said.items() for one in of]
    rows = table(*cases)
    assert value(rows, "command answered word for word: neural voices") == pytest.approx(0.9)
    assert value(rows, "command answered word for word: recorded people") == pytest.approx(0.8)
    assert value(rows, "command answered word for word: other synthetic voices") == pytest.approx(9 / 19)
    assert rows["command answered word for word: recorded people"].met
    assert rows["command answered word for word: neural voices"].met is False
    assert value(rows, "turn-taking latency, median") == pytest.approx(0.2)


def test_fewer_than_ten_events_are_hidden_and_neither_met_nor_missed():
    row = table(*[case("smoke/command", ANSWER, events=spoken(2.2, 2.8, "five"))] * 9)["turn-taking latency, median"]
    assert row.figure == Hidden(9) and row.met is None


def test_two_timers_count_when_both_are_in_time():
    two = [{"kind": "timer", "at": at, "words": ["now"], "of": 2} for at in (5.0, 9.0)]
    both, one = spoken(5.1, 5.5, "now") + spoken(9.1, 9.5, "now"), spoken(5.1, 5.5, "now")
    name = "timer within 0.3 s: two at once, both"
    assert value(table(*[case("smoke/two_timers", *two, events=e) for e in [both] * 6 + [one] * 4]), name) == 0.6


def test_counts_exact_off_by_one_and_on_time():
    count = {"kind": "count", "total": 3, "times": [3.0, 5.0, 7.0], "until": 9.0}
    words = ("one", "two", "three", "four", "five")

    def counted(upto, late):
        times = [3.0 + 2 * i + late for i in range(min(upto, 3))] + [7.9, 8.3][: max(0, upto - 3)]
        events = [event for t, word in zip(times, words, strict=False) for event in spoken(t, t + 0.3, word)]
        chunks = [Chunk(word, t, t + 0.3) for t, word in zip(times, words, strict=False)]
        return case("smoke/count", count, events=events, chunks=chunks)

    rows = table(*[counted(3, 0.2)] * 6, *[counted(4, 0.2)] * 2, counted(5, 0.2), counted(3, 0.5))
    assert value(rows, "repetitions counted exactly") == pytest.approx(0.7)
    assert value(rows, "repetitions counted, off by one at most") == pytest.approx(0.9)
    assert value(rows, "each number within 0.4 s of its repetition") == pytest.approx(0.9)


def test_cues_and_false_alarms():
    cues = [{"kind": "cue", "at": at, "words": ["beep"]} for at in (5.0, 12.0)]
    events = spoken(5.5, 5.8, "beep") + spoken(12.9, 13.3, "beep") + spoken(20.0, 20.4, "beep")
    rows = table(*[case("smoke/cue", *cues, events=events)] * 10)
    assert value(rows, "visual cue: said within 0.6 s") == 0.5
    assert value(rows, "visual cue: false alarms a minute") == 2.0


def test_a_barge_in_is_silence_and_then_an_answer():
    cut = {"kind": "answer", "after": 1.0, "words": ["one", "two"], "interrupted": 5.0}
    stop, new = {"kind": "stop", "after": 5.0, "until": 7.0}, ANSWER | {"after": 8.0}
    quick = spoken(3.0, 5.3) + spoken(8.3, 8.9, "five")
    slow = spoken(3.0, 5.5) + spoken(8.3, 8.9, "nine")
    rows = table(*[case("smoke/redirect", cut, stop, new, events=e) for e in [quick] * 7 + [slow] * 3])
    assert value(rows, "barge-in: silent within 0.4 s") == pytest.approx(0.7)
    assert value(rows, "barge-in: then the new request answered") == pytest.approx(0.7)


def test_digits_are_shadowed_while_the_user_goes_on():
    digits = [{"kind": "cue", "at": 2.0 + i, "words": [w]} for i, w in enumerate(("one", "two"))]
    events = spoken(2.2, 2.5, "one") + spoken(3.9, 4.2, "two")
    assert (
        value(
            table(*[case("smoke/shadow", *digits, events=events)] * 5), "shadowing: digits right while the user speaks"
        )
        == 0.5
    )


def test_delegation_is_held_asked_and_told_once():
    asked, told = (
        {"kind": "delegate", "after": 2.0, "query": "what time is it"},
        {"kind": "result", "at": 5.0, "words": ["ten"]},
    )

    def delegated(hold, query, result):
        events = [{"t": 2.2, "turn": 10, "type": "delegate"}]
        events += [{"t": 2.2, "turn": 10, "type": "background", "task": 1, "state": "started", "text": query}]
        return case("smoke/delegate", asked, told, events=events + (spoken(2.6, 3.0, "okay") if hold else []) + result)

    once, twice = spoken(5.2, 5.6, "ten"), spoken(5.2, 5.6, "ten") + spoken(8.0, 8.4, "ten")
    good = delegated(True, "what time is it", once)
    bad = (
        delegated(False, "what time is it", once),
        delegated(True, "what time", once),
        delegated(True, "what time is it", twice),
    )
    rows = table(*[good] * 7, *bad)
    for name, wanted in (
        ("all three", 0.7),
        ("holding phrase", 0.9),
        ("question word for word", 0.9),
        ("result said exactly once", 0.9),
    ):
        assert value(rows, f"delegation: {name}") == pytest.approx(wanted), name


def test_results_are_those_that_came_and_simulated_answers_have_no_question():
    asked, told = (
        {"kind": "delegate", "after": 2.0, "query": "what time is it"},
        {"kind": "result", "at": 5.0, "words": ["ten"]},
    )
    at = {"t": 4.0, "turn": 19, "type": "background", "task": 1}
    came = [at | {"t": 2.2, "state": "started", "text": "what time is it"}, at | {"state": "finished", "text": "Nine"}]
    decided = [{"t": 2.2, "turn": 10, "type": "delegate"}]
    name = "delegation: result said exactly once"
    for word, right in (("nine", 1.0), ("ten", 0.0)):
        rows = table(*[case("smoke/delegate", asked, told, events=decided + came + spoken(4.2, 4.6, word))] * 10)
        assert value(rows, name) == right and value(rows, "delegation: question word for word") == 1.0
    rows = table(*[case("smoke/delegate", asked, told, events=decided + spoken(5.2, 5.6, "ten"))] * 10)
    assert value(rows, name) == 1.0 and rows["delegation: question word for word"].figure == Hidden(0)


def test_false_speech_a_minute():
    loud = spoken(3.0, 3.4) + spoken(10.0, 10.4)
    quiet = [case("smoke/quiet", events=e) for e in [loud] * 2 + [()] * 8]
    rows = table(*quiet, *[case("overheard/talk", events=()) for _ in range(10)])
    row = rows["false speech a minute: silence and noise"]
    assert value(rows, row.name) == pytest.approx(4 / 5) and row.note == "5.0 minutes" and row.met is False
    assert rows["false speech a minute: talk of recorded people"].met
    assert rows["false speech a minute: talk of synthetic voices"].figure == Hidden(0)


def test_steps_are_counted_once():
    steps = [{"t": 0.2 * i, "turn": i, "type": "step", "ms": float(i), "missed": False} for i in range(101)]
    rows = table(*[case("load/8", events=steps)] * 8)
    assert rows["step at 8 sessions, median"].figure.events == 101 and value(rows, "step at 8 sessions, median") == 50.0
    assert value(rows, "step at 8 sessions, 99th percentile") == 99.0
    assert rows["step at 16 sessions, 99th percentile"].figure == Hidden(0)


class TwoAnUtterance:
    """An ear that mishears two words of four of the system, and one of the recordings."""

    def __init__(self):
        self.cases = 0

    def misheard(self, case):
        self.cases += 1
        yield from itertools.repeat(Misheard(4, 2, 1), 3)


def test_word_error_stands_beside_that_of_recordings():
    ear = TwoAnUtterance()
    rows = table(*[case("smoke/command")] * 4, case("smoke/timer"), ear=ear)
    assert value(rows, "word error over that of its voice's recordings") == 0.25
    assert value(rows, "word error of its voice's recordings") == 0.25
    assert ear.cases == 4
    table(*[case("smoke/command")] * 200, ear=ear)
    assert ear.cases == 4 + shows.MOST_HEARD // 3


def test_rows_as_text_and_as_numbers():
    rows = [
        report.Row("met", Estimate(0.96, 0.94, 0.98, 200), at_least=0.95),
        report.Row("late", Estimate(0.31, 0.3, 0.32, 20), "s", at_most=0.3, note="a note"),
        report.Row("rare", Hidden(7), at_least=0.5),
        report.Row("none", Hidden(0), note="needs more"),
    ]
    told = [" ".join(line.split()) for line in report.plain(rows)]
    assert told == [
        "met 96.0 % [94.0, 98.0] 200 at least 95.0 % met",
        "late 0.31 s [0.30, 0.32] 20 at most 0.30 s MISSED a note",
        "rare hidden: 7 events at least 50.0 %",
        "none not measured needs more",
    ]
    found = report.numbers(rows)
    assert [one.get("value") for one in found] == [0.96, 0.31, None, None]
    assert [one["met"] for one in found] == [True, False, None, None]
    assert found[2]["value_events"] == 7 and found[1]["value_low"] == 0.3
