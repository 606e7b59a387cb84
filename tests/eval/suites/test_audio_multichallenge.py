"""Rubrics: the published columns, the two published figures by hand, and a judge behind the OpenAI client."""

import dataclasses
import json

import pytest

from tests.eval.suites.chat_judge import model
from tests.eval.suites.said import said
from tml_jax.eval.bootstrap import Estimate, Hidden
from tml_jax.eval.suites import audio_multichallenge as audiomc
from tml_jax.eval.suites.audio_multichallenge import Case, Score
from tml_jax.eval.suites.judge import ChatJudge, WordJudge, never_says, says

ROW = {
    "id": "3tc3",
    "axis": "VOICE_EDITING",
    "rubric": ["Books for four. ", "Says no time."],
    "user_turn_1_transcript": "Book a table for six",
    "assistant_turn_1_transcript": "Done.",
    "user_turn_2_transcript": "no wait, four",
    "assistant_turn_2_transcript": "A table for four.",
    "user_turn_3_transcript": None,
}
CASE = Case(
    "3tc3",
    "VOICE_EDITING",
    (("User", "Book a table for six"), ("Assistant", "Done."), ("User", "no wait, four")),
    ("Books for four.", "Says no time."),
)


@pytest.mark.parametrize("rubric", [ROW["rubric"], json.dumps(ROW["rubric"])])
def test_loads_the_published_columns(tmp_path, rubric):
    (tmp_path / "audiomc.jsonl").write_text(json.dumps(ROW | {"rubric": rubric}))
    assert audiomc.load(tmp_path / "audiomc.jsonl") == [CASE]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rubric": "Books for four"}, "“rubric” of .*line 1 is not a list"),
        ({"rubric": []}, "“rubric” of .*line 1 is empty"),
        ({"rubric": '{"a": 1}'}, "“rubric” of .*line 1 is not a list"),
        ({"axis": None}, "line 1 has no “axis”"),
        ({"user_turn_1_transcript": " "}, "line 1 has no “user_turn_1_transcript”"),
    ],
)
def test_says_what_is_wrong_with_a_file(tmp_path, change, told):
    (tmp_path / "audiomc.jsonl").write_text(json.dumps(ROW | change))
    with pytest.raises(ValueError, match=told):
        audiomc.load(tmp_path / "audiomc.jsonl")


def test_every_rubric_is_judged_on_the_reply_alone():
    """The judge is shown the conversation as given, with what the model said after the last turn began."""

    def answer(messages: list[dict[str, str]]) -> str:
        shown, criterion = messages[1]["content"].split("\n\nCriterion: ")
        assert shown.split("\n\n") == [
            "User: Book a table for six",
            "Assistant: Done.",
            "User: no wait, four",
            "Assistant: four at noon",
        ]
        met = criterion == "Books for four."
        return f"```json\n{json.dumps({'explanation': 'so', 'criteria_met': met})}\n```"

    with model(answer) as url:
        judge = ChatJudge(url, "referee")
        assert judge.name == "referee"
        assert audiomc.score(
            dataclasses.replace(CASE, last_turn_s=8.0), said((1.0, "six"), (9.0, "four at noon")), judge
        ) == Score("VOICE_EDITING", (True, False))


def test_a_grade_of_one_to_three_is_zero_to_two_points():
    def answer(messages: list[dict[str, str]]) -> str:
        bus = "bus" in messages[1]["content"].rpartition("Answer: ")[2]
        return json.dumps({"score": 3 if bus else 2})

    with model(answer) as url:
        judge = ChatJudge(url, "referee")
        assert [judge.grade("what", "a red bus", text) for text in ("a car", "the bus")] == [1, 2]


@pytest.mark.parametrize(
    ("reply", "told"),
    [("yes!", "did not reply in JSON: 'yes!'"), ('{"criteria_met": "yes"}', "gave 'yes' where true or false")],
)
def test_a_judge_that_makes_no_sense_is_not_believed(reply, told):
    with model(lambda messages: reply) as url, pytest.raises(ValueError, match=told):
        ChatJudge(url, "referee").meets([("User", "hi")], "Greets.")


def test_a_judge_that_is_not_there_is_said_in_one_sentence():
    with pytest.raises(ValueError, match="The judge referee cannot be asked"):
        ChatJudge("http://127.0.0.1:9/v1", "referee").meets([("User", "hi")], "Greets.")


def test_without_a_judge():
    assert audiomc.score(CASE, said(), WordJudge()) == Score("VOICE_EDITING", (False, False))
    with pytest.raises(ValueError, match="judged by a chat model"):
        audiomc.score(CASE, said((1.0, "four")), WordJudge())
    grades = [WordJudge().grade("what is it", "it is a red bus", text) for text in ("a red bus", "a bus", "it is")]
    assert grades == [2, 1, 0]


def test_the_published_figures():
    """By hand: of 10 conversations 4 pass; the others meet 1 of 2, 0 of 1 and 3 of 4 rubrics, twice each."""
    one, other = "VOICE_EDITING", "SELF_COHERENCE"
    some = [Score(other, (True, False)), Score(other, (False,)), Score(other, (True, True, True, False))]
    figures = audiomc.summarise([Score(one, (True, True))] * 4 + some * 2)
    apr, ars = figures["audiomc_apr"], figures["audiomc_ars"]
    assert isinstance(apr, Estimate) and apr.value == pytest.approx(0.4)
    assert isinstance(ars, Estimate) and ars.value == pytest.approx((4 + 2 * (0.5 + 0 + 0.75)) / 10)
    assert figures["audiomc_apr_voice_editing"] == Hidden(4) and figures["audiomc_apr_self_coherence"] == Hidden(6)


def test_words_alone_judge_what_is_about_words():
    case = dataclasses.replace(CASE, rubrics=(says("one two"), never_says("three")))
    for phrases, met in (
        ([(1.0, "three"), (9.0, "okay: one, two!")], (True, True)),  # before the last turn anything may be said
        ([(9.0, "one three two")], (False, False)),
        ([], (False, False)),
    ):
        late = dataclasses.replace(case, last_turn_s=8.0)
        assert audiomc.score(late, said(*phrases), WordJudge()).met == met
    with pytest.raises(ValueError, match="chat model"):
        WordJudge().meets([("Assistant", "one two")], "The reply is polite.")
