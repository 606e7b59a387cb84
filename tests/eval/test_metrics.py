"""Metrics on hand-made sessions: each can be failed, and each can be passed."""

import math

import pytest

from tml_jax.eval.metrics import judge, summarise
from tml_jax.wire.behaviour import Behaviour


def spoken(start, end, *words):
    """A journal of a model that is heard from `start` to `end`, in pieces of a micro-turn."""
    pieces = [max(start, end - 0.2 * k) for k in range(1, math.ceil((end - start) / 0.2 - 1e-6) + 1)]
    events = []
    for onset, t in zip(pieces, (end - 0.2 * k for k in range(1, len(pieces) + 1)), strict=True):
        at = {"t": t, "turn": round(1000 * t)}
        events += [at | {"type": "speak"}, at | {"type": "voice", "onset_ms": 1000 * (onset - t)}]
    return events + [{"type": "word", "t": start + 0.3 * i, "text": f" {w}"} for i, w in enumerate(words)]


def only(expectation, events, until=30.0):
    (verdict,) = judge([expectation], Behaviour.from_events(events), until)
    return verdict


ANSWER = {"kind": "answer", "after": 2.0, "words": ["five", "two"]}


@pytest.mark.parametrize(
    ("events", "good", "words"),
    [
        (spoken(2.3, 3.0, "five", "two"), True, True),
        (spoken(2.3, 3.0, "five", "six"), True, False),
        (spoken(2.7, 3.4, "five", "two"), False, True),
        (spoken(1.8, 3.4, "five", "two"), False, False),  # it spoke before the user was done
        ([], False, False),
    ],
)
def test_answers(events, good, words):
    verdict = only(ANSWER, events)
    assert (verdict.good, verdict.words_right) == (good, words)


def test_latency_is_from_the_end_of_the_user():
    assert only(ANSWER, spoken(2.3, 3.0, "five")).latency_s == pytest.approx(0.3)


def test_hesitation():
    expected = {"kind": "silent", "reason": "hesitation", "from": 2.0, "to": 3.0}
    assert only(expected, []).good and only(expected, spoken(3.1, 3.5)).good
    assert not only(expected, spoken(2.4, 2.6)).good


def test_stop_counts_only_where_there_was_something_to_stop():
    expected = {"kind": "stop", "after": 5.0, "until": 9.0}
    assert only(expected, spoken(3.0, 5.4)).good
    assert not only(expected, spoken(3.0, 5.8)).good
    assert not judge([expected], Behaviour.from_events(spoken(1.0, 2.0)), 30.0)


def test_stop_ends_with_the_next_request():
    both = [{"kind": "stop", "after": 5.0, "until": 12.0}, {"kind": "answer", "after": 7.0, "words": ["one"]}]

    def stopped(events):
        return next(v.good for v in judge(both, Behaviour.from_events(events), 30.0) if v.kind == "stop")

    answer = spoken(7.2, 7.6, "one")
    assert stopped(spoken(3.0, 5.4) + answer)
    assert not stopped(spoken(3.0, 5.8) + answer) and not stopped(spoken(3.0, 5.4) + spoken(6.5, 6.9) + answer)


def test_count_is_exact_only_with_the_right_last_word():
    expected = {"kind": "count", "total": 2, "times": [3.0, 5.0], "until": 7.0}
    one, two, three = spoken(3.2, 3.6, "one"), spoken(5.2, 5.6, "two"), spoken(6.0, 6.4, "three")
    assert only(expected, one + two).good
    assert not only(expected, one).good and not only(expected, one + two + three).good
    assert not only(expected, []).good


def test_timer_within_its_tolerance():
    expected = {"kind": "timer", "at": 10.0, "words": ["now"]}
    assert only(expected, spoken(10.2, 10.6, "now")).good
    assert not only(expected, spoken(10.6, 11.0, "now")).good
    assert not only(expected, spoken(10.2, 10.6, "okay")).good


def test_a_cue_is_answered_after_it_and_soon():
    cue = {"kind": "cue", "at": 5.0, "words": ["beep"]}
    assert only(cue, spoken(5.4, 5.8, "beep")).good
    assert not only(cue, spoken(4.9, 5.3, "beep")).good, "it cannot have seen it yet"
    assert not only(cue, spoken(5.7, 6.0, "beep")).good and not only(cue, spoken(5.4, 5.8, "now")).good


def test_what_was_not_recorded_is_not_judged():
    assert judge([ANSWER], Behaviour.from_events([]), until_s=2.5) == []


def test_summary_names_its_figures():
    verdicts = judge([ANSWER, ANSWER | {"after": 9.0}], Behaviour.from_events(spoken(2.3, 3.0, "five", "two")), 30.0)
    figures = summarise(verdicts)
    assert figures["answer_in_time"] == 0.5 and figures["answer_cases"] == 2
    assert figures["answer_latency_median_s"] == pytest.approx(0.3)
