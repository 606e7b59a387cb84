"""PAUC: areas worked by hand, and the published file's layout."""

import json

import pytest

from tests.eval.suites.said import said
from tml_jax.eval.bootstrap import Estimate
from tml_jax.eval.suites import proactive
from tml_jax.eval.suites.judge import WordJudge
from tml_jax.eval.suites.proactive import Case, Score, Turn

# The form of TV/anno.json: later entries of "conversation" are subtitles.
ENTRY = {
    "video": "house.mp4",
    "question_id": "house.mp4%Q1",
    "conversation": [
        {"role": "user", "content": "Where does she stand?", "time": 0},
        {"role": "user", "content": "Subtitle: No.", "time": 22.3},
    ],
    "answer": [
        {"role": "assistant", "content": "Close to his face", "related_timespan": [0, 6.5], "reply_timespan": [0, 7.5]}
    ],
    "duration": 27.67,
}
TURN = Turn("a red bus arrives", (10.0, 18.0), (10.0, 20.0))


def test_loads_the_published_file(tmp_path):
    path = tmp_path / "anno.json"
    path.write_text(json.dumps([ENTRY]))
    turn = Turn("Close to his face", (0.0, 6.5), (0.0, 7.5))
    assert proactive.load(path) == [Case("house.mp4%Q1", "house.mp4", "Where does she stand?", (turn,))]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[", "is not JSON"),
        ("{}", "is not a list"),
        (json.dumps([ENTRY, {k: v for k, v in ENTRY.items() if k != "answer"}]), "entry 1 has no “answer”"),
        ('["a"]', "entry 0 holds 'a' where an object should be"),
        (json.dumps([ENTRY | {"conversation": []}]), "entry 0 asks nothing"),
        (
            json.dumps([ENTRY | {"answer": [{"content": "x", "related_timespan": [0, 1], "reply_timespan": [3, 1]}]}]),
            r"“reply_timespan” of .*entry 0 is \[3, 1\], not seconds \[from, to\]",
        ),
    ],
)
def test_says_what_is_wrong_with_a_file(tmp_path, text, told):
    (tmp_path / "anno.json").write_text(text)
    with pytest.raises(ValueError, match=told):
        proactive.load(tmp_path / "anno.json")


@pytest.mark.parametrize(
    ("points", "omega", "area"),
    [
        ([], 0.5, 0.25),  # 0.5 of 2 points all along
        ([(10.0, 2)], 0.5, 1.0),
        ([(10.0, 0)], 0.5, 0.0),
        ([(14.0, 2)], 0.0, (4 * 0.5 + 6 * 2) / 20),
        ([(14.0, 2)], 0.5, (2 * 0.5 + 8 * 2) / 20),
        ([(14.0, 2)], 1.0, 1.0),
        ([(12.0, 1), (16.0, 2)], 0.0, (2 * 0.5 + 4 * 1 + 4 * 2) / 20),
        ([(12.0, 2), (19.0, 1)], 0.0, (2 * 0.5 + 8 * 2) / 20),  # worse, after it could be seen: does not count
        ([(12.0, 2), (16.0, 0)], 0.0, (2 * 0.5 + 4 * 2 + 4 * 0) / 20),  # worse, while it could: does
        ([(19.0, 1)], 0.0, (9 * 0.5 + 1 * 1) / 20),
    ],
)
def test_the_area_under_the_points(points, omega, area):
    assert proactive.pauc(points, TURN, omega) == pytest.approx(area)


def test_replies_are_judged_together_in_the_order_in_which_they_were_said():
    """“a red” ends at 12.3 s and has half of the words, the bus at 16.3 s the rest; what is outside counts for none."""
    case = Case("a", "a.mp4", "what do you see", (TURN, Turn("a dog barks", (30.0, 35.0), (30.0, 36.0))))
    done = said((2.0, "a red bus arrives"), (12.0, "a red"), (16.0, "bus arrives"), (22.0, "a dog barks"))
    found = proactive.score(case, done, WordJudge(), omega=0.0)
    assert found.pauc == pytest.approx([(2.3 * 0.5 + 4 * 1 + 3.7 * 2) / 20, 0.25])


def test_a_silent_model_has_a_quarter():
    """That silence has 25 of 100 is the one published value that follows from the formula alone."""
    case = Case("a", "a.mp4", "what", (TURN, TURN))
    found = proactive.summarise([proactive.score(case, said(), WordJudge())] * 6)["proactive_pauc"]
    assert found == Estimate(0.25, 0.25, 0.25, 12)


def test_the_mean_is_over_turns():
    found = proactive.summarise([Score((1.0,) * 9), Score((0.0,)), Score(())])["proactive_pauc"]
    assert isinstance(found, Estimate) and (found.value, found.events) == (0.9, 10)
