"""Recordings find their cases by their folders' names, or it is said why not."""

import pytest

from tests.eval.test_recorded import noise
from tml_jax.eval.bootstrap import Hidden
from tml_jax.eval.recorded import Chunk, Recorded
from tml_jax.eval.suites import charades, recordings

MOMENTS = [charades.Case("V", 1.0, 3.0, "a", "V/1"), charades.Case("V", 2.0, 3.0, "b", "V/2")]
SAID = (Chunk("start", 1.0, 1.2), Chunk("stop", 3.0, 3.2))


def recorded(name, chunks=SAID):
    return Recorded(name, noise(), noise(), 6.0, chunks=chunks)


def figures(*cases, moments=MOMENTS):
    annotated = recordings.Annotated(lambda: moments, charades.score)
    return annotated.figures(cases, lambda scores: {str([s.iou for s in scores]): Hidden(0)})


def test_a_case_is_scored_by_the_recording_of_its_name():
    assert figures(recorded("run/V/2"), recorded("run/W/1")) == {
        "[0.5]": Hidden(0),
        "recorded_cases": 1,
        "missing_cases": 1,
    }
    for cases in ((recorded("V/1"), recorded("V/2")), (recorded("V/2"), recorded("V/1"))):
        assert "[1.0, 0.5]" in figures(*cases), "in the annotations' order"


def test_a_recording_is_judged_once():
    asked = []

    def score(case, done):
        asked.append(case.name)
        return charades.score(case, done)

    annotated = recordings.Annotated(lambda: MOMENTS, score)
    one = recorded("V/2")
    assert annotated.scored(recorded("elsewhere")) is None and asked == []
    assert annotated.scored(one) is annotated.scored(one) and asked == ["V/2"]


@pytest.mark.parametrize(
    ("cases", "moments", "told"),
    [
        ([recorded("W/1")], MOMENTS, "No recording's folder"),
        ([recorded("V/1"), recorded("again/V/1")], MOMENTS, "Two recordings belong to the case V/1; again/V/1"),
        ([recorded("V/1")], MOMENTS[:1] * 2, "Two cases are called V/1"),
        ([recorded("V/1", None)], MOMENTS, "neither session.jsonl nor output.json"),
    ],
)
def test_what_cannot_be_scored_is_one_sentence(cases, moments, told):
    with pytest.raises(ValueError, match=told):
        figures(*cases, moments=moments)
