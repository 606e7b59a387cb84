"""The background model: numbers in words, the tools, and an actor whose failures stay its own."""

import asyncio
import datetime
import time
from collections.abc import Sequence

import pytest

from tml_jax.serve.background.actor import BackgroundActor, ContextPackage, Said, TaskEvent
from tml_jax.serve.background.tools import Clock, Tool, calculate, split_words
from tml_jax.streams import number_words


def test_every_number_has_words_that_read_back() -> None:
    for number in range(-999, 1000):
        words = number_words.to_words(number).split()
        assert number_words.parse_words(words) == (number, len(words))
    assert number_words.to_words(84) == "eighty four"
    assert number_words.to_words(-3) == "minus three"
    assert number_words.to_words(144) == "one hundred forty four"
    with pytest.raises(ValueError, match="go up to 999"):
        number_words.to_words(1000)


@pytest.mark.parametrize("words", [[], ["hundred"], ["please"], ["minus"]])
def test_what_is_no_number_is_none(words: list[str]) -> None:
    assert number_words.parse_words(words) is None


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("what is twelve times seven", "eighty four"),
        ("What is five minus eight?", "minus three"),
        ("um is twenty plus uh nineteen plus", None),
        ("is twenty plus nineteen", "thirty nine"),
        ("what is two times three what is nine plus one", "ten"),
        ("what is ten minus two minus three", "five"),
        ("nine hundred times nine hundred", "i do not know"),
        ("what is 6 times 7", "forty two"),
        ("repeat five two eight please", None),
        ("", None),
    ],
)
def test_the_calculator(question: str, answer: str | None) -> None:
    assert calculate(question) == answer


@pytest.mark.parametrize(
    ("hour", "minute", "answer"),
    [
        (19, 15, "it is seven fifteen"),
        (10, 0, "it is ten o clock"),
        (0, 5, "it is twelve zero five"),
        (12, 59, "it is twelve fifty nine"),
    ],
)
def test_the_clock(hour: int, minute: int, answer: str) -> None:
    clock = Clock(lambda: datetime.datetime(2026, 1, 1, hour, minute))
    assert clock("what time is it") == answer
    assert clock("what is two times two") is None
    assert split_words("It's 3 O'Clock!") == ["it", "s", "3", "o", "clock"]


def converse(said: Sequence[Said], tools: Sequence[Tool], timeout_s: float = 1.0) -> tuple[list[str], list[TaskEvent]]:
    async def scenario() -> tuple[list[str], list[TaskEvent]]:
        answers: list[str] = []
        reports: list[TaskEvent] = []
        actor = BackgroundActor(answers.append, reports.append, tools, timeout_s)
        actor.delegate(ContextPackage(10.0, tuple(said)))
        while actor.pending:
            await asyncio.sleep(0.005)
        return answers, reports

    return asyncio.run(scenario())


def test_an_answer_comes_from_what_the_user_said_last() -> None:
    said = [
        Said(1.0, "user", "what is nine times nine"),
        Said(2.0, "model", "eighty one"),
        *(Said(8.0, "user", word) for word in [" what", " is", " t", "wo", " plus", " two"]),
    ]
    answers, reports = converse(said, (calculate,))
    assert answers == ["four"]
    assert [(one.state, one.text) for one in reports] == [("started", "what is two plus two"), ("finished", "four")]


def test_a_question_is_what_was_heard_letter_by_letter() -> None:
    said = [
        Said(8.0, "user_text", "naïve"),
        *(Said(8.0, "user", piece) for piece in [" what", " is", " a", " caf", "é", " à la", " carte"]),
        Said(8.4, "user_text", "日本?"),
    ]
    assert ContextPackage(9.0, tuple(said)).question() == "naïve what is a café à la carte 日本?"
    assert split_words("Café, 日本 42_x") == ["café", "日本", "42", "x"]


def test_the_unknown_the_broken_and_the_slow_are_said_in_words() -> None:
    def broken(question: str) -> str:
        raise ZeroDivisionError("tool")

    def slow(question: str) -> str:
        time.sleep(0.3)
        return "late"

    said = [Said(9.0, "user", "sing")]
    assert converse(said, (calculate,))[0] == ["i do not know"]
    answers, reports = converse(said, (broken,))
    assert (answers, reports[-1].state, reports[-1].text) == (["i do not know"], "failed", "ZeroDivisionError: tool")
    answers, reports = converse(said, (slow,), timeout_s=0.05)
    assert (answers, reports[-1].state) == (["i do not know"], "failed")
