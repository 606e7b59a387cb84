"""Speech at its time: right only where both the words and the time are."""

import pytest

from tests.eval.suites.said import said
from tml_jax.eval.bootstrap import Estimate, Hidden
from tml_jax.eval.suites import timed_speech
from tml_jax.eval.suites.judge import WordJudge
from tml_jax.eval.suites.timed_speech import Case, Expected, Score

LINE = (
    '{"id": "7", "category": "repeated", "asked": "remind me to breathe",'
    ' "expect": [{"say": ["breathe in", "in"], "from": 8, "to": 8.6}, {"never": ["breathe"], "from": 30, "to": 60}]}'
)
CASE = Case(
    "7",
    "repeated",
    (Expected(("breathe in", "in"), 8.0, 8.6), Expected(("breathe",), 30.0, 60.0, never=True)),
    "remind me to breathe",
)


def test_loads_a_file(tmp_path):
    (tmp_path / "time.jsonl").write_text(f"\n{LINE}\n")
    assert timed_speech.load(tmp_path / "time.jsonl") == [CASE]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 1 is not JSON"),
        ("[]", "line 1 is not a JSON object"),
        ('{"id": "1", "expect": [{"say": ["a"], "from": 1, "to": 2}]}', "line 1 has no “category”"),
        ('{"id": 1, "category": "a", "expect": [{"say": ["a"], "from": 1, "to": 2}]}', "“id” of .*line 1 is not text"),
        ('{"id": "1", "category": "a", "expect": []}', "line 1 expects nothing"),
        ('{"id": "1", "category": "a", "expect": ["a"]}', "line 1 holds 'a' where an object should be"),
        ('{"id": "1", "category": "a", "expect": [{"say": "a", "from": 1, "to": 2}]}', "“say” of .* is not a list"),
        (
            '{"id": "1", "category": "a", "expect": [{"say": ["a"], "from": "1", "to": 2}]}',
            "“from” of .* is not a number",
        ),
        ('{"id": "1", "category": "a", "expect": [{"say": ["..."], "from": 1, "to": 2}]}', "a wording without words"),
        ('{"id": "1", "category": "a", "expect": [{"say": ["a"], "from": 2, "to": 2}]}', "ends before it begins"),
    ],
)
def test_says_what_is_wrong_with_a_file(tmp_path, line, told):
    (tmp_path / "time.jsonl").write_text(line)
    with pytest.raises(ValueError, match=told):
        timed_speech.load(tmp_path / "time.jsonl")


@pytest.mark.parametrize(
    ("phrases", "met", "content"),
    [
        ([(8.2, "Breathe in.")], (True, True), (True, True)),
        ([(8.0, "now in")], (True, True), (True, True)),
        ([(8.6, "breathe out")], (False, True), (False, True)),
        ([(7.0, "breathe in")], (False, True), (True, True)),  # right, and too early
        ([(8.6, "in")], (False, True), (True, True)),  # the end of the window is outside
        ([(8.2, "breathe in"), (40.0, "breathe")], (True, False), (True, False)),
        ([(8.2, "breathe in"), (60.0, "breathe")], (True, True), (True, True)),
        ([], (False, True), (False, True)),
    ],
)
def test_words_and_time_have_to_be_right(phrases, met, content):
    found = timed_speech.score(CASE, said(*phrases))
    assert found == Score("repeated", met, content)
    assert found.right == all(met)


def test_a_judge_is_shown_an_utterance_at_a_time():
    shown = []

    class Literal(WordJudge):
        def grade(self, question, reference, said):
            shown.append((question, reference, said))
            return 2 * (said == "inhale now" and reference == "in")

    done = said((8.1, "inhale now"), (12.0, "good"))
    assert timed_speech.score(CASE, done, Literal()) == Score("repeated", (True, True), (True, True))
    assert shown[:2] == [("remind me to breathe", "breathe in", text) for text in ("inhale now", "good")]


def test_categories_weigh_the_same():
    """By hand: 8 of 8 and 1 of 4 make (1 + 0.25) / 2, and 9 of 12 over cases."""
    right, early = Score("once", (True,), (True,)), Score("repeated", (True, False), (True, True))
    scores = [right] * 8 + [early] * 3 + [Score("repeated", (True, True), (True, True))]
    figures = timed_speech.summarise(scores)
    values = {name: f.value for name, f in figures.items() if isinstance(f, Estimate)}
    assert values == pytest.approx({"macro_accuracy": 0.625, "accuracy": 0.75, "content": 1.0})
    assert set(timed_speech.summarise(scores[:9]).values()) == {Hidden(9)}


def test_two_benchmarks_of_one_file_are_told_apart():
    scores = [Score("timespeak/once", (True,), (True,))] * 10 + [Score("cuespeak/seen", (False,), (True,))] * 3
    figures = timed_speech.summarise(scores)
    assert {name for name, f in figures.items() if isinstance(f, Hidden)} == {
        "cuespeak_macro_accuracy",
        "cuespeak_accuracy",
        "cuespeak_content",
    }
    assert figures["timespeak_macro_accuracy"] == Estimate(1.0, 1.0, 1.0, 10)
