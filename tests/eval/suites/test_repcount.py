"""Counting: the published file's layout, and the authors' two figures on counts worked by hand."""

import pytest

from tests.eval.suites.said import said
from tml_jax.eval.bootstrap import Estimate, Hidden
from tml_jax.eval.suites import repcount
from tml_jax.eval.suites.repcount import Case, Score

# Of the published test.csv: its header begins with two nameless columns, frames are floats from the third on.
FILE = """,Unnamed: 0,type,name,count,L1,L2,L3,L4,L5,L6
5,5,bench_pressing,stu9_2.mp4,3,433,482,1020.0,1100.0,1101.0,1181.0
75,77,situp,train3319.mp4,1,0,164,,,,
76,78,situp,lost.mp4,,0,164,,,,
"""


def test_loads_the_published_file(tmp_path):
    (tmp_path / "test.csv").write_text(FILE)
    assert repcount.load(tmp_path / "test.csv") == [
        Case("stu9_2.mp4", "bench_pressing", 3, ((433, 482), (1020, 1100), (1101, 1181))),
        Case("train3319.mp4", "situp", 1, ((0, 164),)),
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [("name,count\na,1\n", "no column “type”"), ("type,name,count,L1\na,b,3,x\n", "line 2: could not convert")],
)
def test_says_what_is_wrong_with_a_file(tmp_path, text, told):
    (tmp_path / "test.csv").write_text(text)
    with pytest.raises(ValueError, match=told):
        repcount.load(tmp_path / "test.csv")


@pytest.mark.parametrize(
    ("phrases", "number"),
    [
        ([(1.0, "one"), (3.0, "two"), (5.0, "three")], 3),
        ([(1.0, "nineteen twenty twenty one")], 21),
        ([(1.0, "Twenty-one, right?")], 21),
        ([(1.0, "twenty"), (3.0, "one")], 1),  # too far apart to be one number
        ([(1.0, "that makes 12 pushups")], 12),
        ([(1.0, "i see nothing")], 0),
        ([(1.0, "eleven twelve"), (5.0, "That one was good!")], 12),
        ([(1.0, "three"), (5.0, "nice one, one more, the last one of them")], 3),
        ([(1.0, "that makes one")], 1),
        ([(1.0, "the twenty one"), (5.0, "that 1")], 1),  # a digit is always a number
        ([(1.0, "that one hundred")], 100),
        ([], 0),
    ],
)
def test_takes_the_last_number(phrases, number):
    assert repcount.last_number(said(*phrases)) == number


def test_a_case_is_scored():
    case = Case("a.mp4", "situp", 4)
    assert repcount.score(case, said((1.0, "one two three"))) == Score(3, 4)
    assert Score(3, 4).error == pytest.approx(1 / 4.1) and Score(3, 4).off_by_one
    assert Score(2, 4).error == pytest.approx(2 / 4.1) and not Score(2, 4).off_by_one


def test_the_figures_of_the_authors():
    """By hand: 10 videos of 5 repetitions; four right, three one off, three at 10."""
    scores = [Score(5, 5)] * 4 + [Score(6, 5), Score(4, 5), Score(4, 5)] + [Score(10, 5)] * 3
    figures = repcount.summarise(scores)
    mae, off = figures["repcount_mae"], figures["repcount_off_by_one"]
    assert isinstance(mae, Estimate) and mae.value == pytest.approx((3 * 1 + 3 * 5) / 5.1 / 10)
    assert isinstance(off, Estimate) and off.value == pytest.approx(0.7)
    assert set(repcount.summarise(scores[:9]).values()) == {Hidden(9)}
