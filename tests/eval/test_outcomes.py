"""Expectations in words, on hand-made journals: each is met by the right session and missed by a wrong one."""

from typing import Any

import pytest

from tests.data.simulated import CONFIG, SPEC
from tml_jax.data import pipeline, scenarios
from tml_jax.data.simulator import Simulator
from tml_jax.eval.outcomes import Outcome, outcomes, told

Event = dict[str, Any]
UNTIL_S = 20.0


def journal(*turns: tuple[int, str], **more: Event) -> list[Event]:
    """A server's journal: in micro-turn k the model says a word (or only sound: ""), 30 ms into it."""
    events: list[Event] = [{"t": 0.0, "turn": 0, "type": "session", "micro_turn_s": 0.2}]
    for turn, word in turns:
        at = {"t": round(0.2 * (turn + 1), 4), "turn": turn}
        events += [at | {"type": "speak"}, at | {"type": "voice", "level": 0.2, "onset_ms": 30}]
        events += [at | {"type": "word", "text": f" {word}"}] if word else []
    return events + [event | {"type": kind} for kind, event in more.items()]


def background(text: str) -> dict[str, Event]:
    return {
        "delegate": {"t": 2.4, "turn": 11},
        "background": {"t": 2.4, "turn": 11, "task": 0, "state": "started", "text": text},
    }


ANSWER = {"kind": "answer", "after": 2.0, "words": ["five", "two"]}
CUT = {"kind": "answer", "after": 2.0, "words": ["one", "two", "three", "four"], "interrupted": 2.6}
TIMER = {"kind": "timer", "at": 4.0, "words": ["now"]}
COUNT = {"kind": "count", "total": 2, "times": [3.0, 4.0], "until": 5.5}
STOP = {"kind": "stop", "after": 5.0, "until": 7.0}
GOES_ON = {"kind": "goes on", "from": 3.0, "to": 4.0}
DELEGATE = {"kind": "delegate", "after": 2.0, "query": "what is two times three"}
RIGHT, WRONG = background("what is two times three"), background("what is two times four")
LONG = [(k, "") for k in range(14, 35)]  # heard from 3.03 s to 7.2 s, anew in each micro-turn


def silent(reason: str) -> Event:
    return {"kind": "silent", "reason": reason, "from": 2.0, "to": 4.0}


@pytest.mark.parametrize(
    ("expected", "events", "met", "happened"),
    [
        (ANSWER, journal((11, "five"), (12, "two")), True, "“five two” after 0.43 s"),
        (ANSWER, journal((11, "five"), (12, "six")), False, "“five six” after 0.43 s"),
        (ANSWER, journal((14, "five"), (15, "two")), False, "“five two” after 1.03 s"),
        (ANSWER, journal(), False, "silent"),
        (CUT, journal((11, "one"), (12, "two")), True, "“one two” after 0.43 s"),
        (CUT, journal((11, "one"), (12, "six")), False, "“one six” after 0.43 s"),
        (TIMER, journal((19, "now")), True, "0.00 s off"),
        (TIMER, journal((23, "now")), False, "0.80 s off"),
        (TIMER, journal((19, "beep")), False, "never, but “beep”"),
        (COUNT, journal((15, "one"), (20, "two")), True, "counted “one two”"),
        (COUNT, journal((15, "one")), False, "counted “one”"),
        (STOP, journal(*[(k, "") for k in range(14, 26)]), True, "silent after 0.40 s"),
        (STOP, journal(*LONG), False, "still heard after 2.00 s"),
        (STOP, journal(), None, "it was not speaking"),
        (GOES_ON, journal(*LONG), True, "went on"),
        (GOES_ON, journal((14, "one")), False, "fell silent"),
        (DELEGATE, journal(**RIGHT), True, "asked “what is two times three” after 0.40 s"),
        (DELEGATE, journal(**WRONG), False, "asked “what is two times four” after 0.40 s"),
        (DELEGATE, journal(), False, "did not ask"),
        (silent("talk"), journal(), True, "silent"),
        (silent("talk"), journal((14, "hello")), False, "was heard “hello”"),
        (silent("hesitation"), journal((14, "")), False, "was heard"),
    ],
)
def test_each_kind_is_judged(expected: Event, events: list[Event], met: bool | None, happened: str) -> None:
    (outcome,) = outcomes("Scene", [expected], events, UNTIL_S)
    assert (outcome.met, outcome.happened) == (met, happened)


def test_a_result_is_due_when_the_background_model_answers() -> None:
    came = {"t": 5.0, "turn": 24, "type": "background", "task": 0, "state": "finished", "text": "six"}
    expected = [DELEGATE, {"kind": "result", "at": 2.5, "words": ["six"]}]
    events = [*journal((26, "six"), **RIGHT), came]
    asked, said = outcomes("Scene", expected, events, UNTIL_S)
    assert asked.met and said.met
    assert said.happened == "“six” after 0.43 s"
    without = outcomes("Scene", expected, journal((26, "six"), **RIGHT), UNTIL_S)
    assert not without[1].met, "2.9 s after it was due in the simulation"


def test_times_are_those_of_the_whole_and_in_order() -> None:
    told = outcomes("Talk", [TIMER, silent("quiet")], journal(), UNTIL_S, offset_s=30.0)
    assert told == [
        Outcome("Talk", 32.0, 34.0, "silent when nothing is asked", "silent", True),
        Outcome("Talk", 34.0, 34.0, "says “now” on time", "never", False),
    ]


def test_every_expectation_of_every_scenario_can_be_told():
    simulator = Simulator(CONFIG, SPEC, pipeline.open_bank(CONFIG.bank), "heldout")
    for name in scenarios.SCENARIOS:
        for index in range(6):
            expectations = simulator.conversation(index, name).expectations
            found = told(name, [(one, None) for one in expectations])
            assert len(found) == len(expectations) and all(one.expected for one in found)
