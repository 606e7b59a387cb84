"""Ratings: the published files, means by hand, and a judge behind the OpenAI client."""

import json

import pytest

from tests.eval.suites.chat_judge import model
from tml_jax.eval.bootstrap import Estimate
from tml_jax.eval.suites import full_duplex_v2 as v2
from tml_jax.eval.suites.full_duplex_v2 import Rated
from tml_jax.eval.suites.judge import ChatJudge

EVENTS, TASK = "Turn-taking event and score", "Task-specific score"
# The one that the public repository shows: eval_results/Daily/Daily.ordering.001.json.
SHOWN = {
    EVENTS: [
        *([[8.08, 29.68], 1, 1], [[30.0, 40.96], 4, 3], [[58.56, 62.88], 4, 2], [[70.64, 73.04], 4, 5]),
        *([[81.2, 83.12], 4, 5], [[90.48, 93.2], 4, 5], [[102.08, 105.28], 4, 5], [[113.68, 116.72], 4, 5]),
    ],
    TASK: 2,
}


def keep(path, what):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(what))


def test_the_published_example(tmp_path):
    """Its means are 29 / 8 and 31 / 8. From 0 to 15 s lie 6.92 s of the first event; from 15 to 30 s the rest of it."""
    keep(tmp_path / "Daily" / "Daily.ordering.001_processed.json", SHOWN)
    keep(tmp_path / "Daily" / "Daily.ordering.001.json", SHOWN | {TASK: 5})  # what was parsed of it goes first
    (one,) = v2.load(tmp_path)
    assert (one.split, one.name, one.task, len(one.events)) == ("Daily", "Daily.ordering.001", 2.0, 8)
    figures = v2.summarise([one] * 10)
    assert figures["daily_cases"] == 10
    ratings = {name: f.value if isinstance(f, Estimate) else f for name, f in figures.items()}
    assert ratings["daily_turn_taking_rating"] == pytest.approx(29 / 8)
    assert ratings["daily_instruction_following_rating"] == pytest.approx(31 / 8)
    assert ratings["daily_task_rating"] == 2.0
    assert ratings["daily_turn_taking_0_to_15_s_rating"] == ratings["daily_turn_taking_15_to_30_s_rating"] == 1.0
    assert ratings["daily_turn_taking_30_to_45_s_rating"] == 4.0
    following = (2 * 1.44 + 5 * 0) / 1.44
    assert ratings["daily_instruction_following_45_to_60_s_rating"] == pytest.approx(following)


def test_stretches_are_weighed_by_time():
    rated = [Rated("Safety", "a", ((10.0, 16.0, 2.0, 1.0), (14.0, 15.0, 5.0, 5.0)))]
    figures = v2.summarise(rated)
    assert figures["safety_turn_taking_0_to_15_s_rating"] == pytest.approx((5 * 2 + 1 * 5) / 6)
    assert figures["safety_turn_taking_15_to_30_s_rating"] == 2.0
    assert "safety_turn_taking_30_to_45_s_rating" not in figures, "nothing is said there"


def test_events_without_a_rating_count_for_nothing_and_files_say_what_is_wrong(tmp_path):
    keep(tmp_path / "Safety" / "x.json", {EVENTS: [[[1, 2], 3, None], [[2, 4], 3, 4]]})
    assert v2.load(tmp_path) == [Rated("Safety", "x", ((2.0, 4.0, 3.0, 4.0),))]
    keep(tmp_path / "Safety" / "y.json", {EVENTS: [[[1], 3, 4], "a"]})
    with pytest.raises(ValueError, match="not as Full-Duplex-Bench v2 has them"):
        v2.load(tmp_path)
    with pytest.raises(ValueError, match="holds no ratings"):
        v2.load(tmp_path / "Daily")


def test_transcripts_are_rated_by_a_judge_with_the_published_goals(tmp_path):
    folder = tmp_path / "run" / "Correction" / "Correction.order.007"
    keep(folder / "A.json", {"text": "two teas, no, three", "chunks": []})
    keep(folder / "B.json", {"text": "three teas", "chunks": [{"text": "three teas", "timestamp": [4.0, 5.0]}]})
    task = {"id": "Correction.order.007", "staged_reveal": {"T1": "Orders two.", "T2": "Corrects that to three."}}
    keep(tmp_path / "prompts.json", {"splits": {"Correction": {"tasks": [task]}}})

    def answer(messages):
        system, user = (message["content"] for message in messages)
        assert "corrections are noticed" in system and user.split("\n") == [
            "Goal T1: Orders two.",
            "Goal T2: Corrects that to three.",
            "Examiner: two teas, no, three",
            "[4.0, 5.0]: three teas",
        ]
        return json.dumps({"events": [[[4.0, 5.0], 5, 4]], "task": 5})

    with model(answer) as url:
        judge = ChatJudge(url, "referee")
        rated = Rated("Correction", "Correction.order.007", ((4.0, 5.0, 5.0, 4.0),), 5.0)
        assert v2.load(tmp_path / "run", tmp_path / "prompts.json", judge) == [rated]
        with pytest.raises(ValueError, match=r"prompts_staged_200\.json as --data"):
            v2.load(tmp_path / "run", None, judge)
    with pytest.raises(ValueError, match="need a --judge"):
        v2.load(tmp_path / "run", tmp_path / "prompts.json")
