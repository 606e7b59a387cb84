"""Moments: Charades-STA's lines, and overlaps worked by hand."""

import pytest

from tests.eval.suites.said import said
from tml_jax.eval.bootstrap import Estimate
from tml_jax.eval.suites import charades
from tml_jax.eval.suites.charades import Case, Score


def test_loads_the_published_file(tmp_path):
    (tmp_path / "sta.txt").write_text("3MSZA 24.3 30.4##person turn a light on.\n\n0A8CF 0.0 6##a person: eats##it.\n")
    assert charades.load(tmp_path / "sta.txt") == [
        Case("3MSZA", 24.3, 30.4, "person turn a light on."),
        Case("0A8CF", 0.0, 6.0, "a person: eats##it."),
    ]


@pytest.mark.parametrize("line", ["3MSZA 24.3 30.4 person", "3MSZA 24.3##person", "3MSZA a b##person"])
def test_says_which_line_is_wrong(tmp_path, line):
    (tmp_path / "sta.txt").write_text(f"A 0 1##b\n{line}\n")
    with pytest.raises(ValueError, match="line 2 is not of the form “VIDEO start end##sentence”"):
        charades.load(tmp_path / "sta.txt")


@pytest.mark.parametrize(
    ("one", "other", "value"),
    [
        ((0, 10), (0, 10), 1.0),
        ((0, 10), (5, 15), 5 / 15),
        ((2, 4), (0, 10), 0.2),
        ((0, 5), (5, 10), 0.0),
        ((0, 1), (8, 9), 0.0),
        ((3, 3), (3, 3), 0.0),
    ],
)
def test_overlap(one, other, value):
    assert charades.iou(one, other) == charades.iou(other, one) == pytest.approx(value)


@pytest.mark.parametrize(
    ("phrases", "moment", "iou"),
    [
        ([(4.0, "Start!"), (8.0, "stop.")], (4.0, 8.0), 4 / 6),
        ([(1.0, "stop"), (4.0, "start"), (5.0, "start"), (10.0, "okay stop"), (12.0, "stop")], (4.0, 10.3), 6 / 6.3),
        ([(4.0, "start")], None, 0.0),
        ([(4.0, "stop")], None, 0.0),
        ([(4.0, "started"), (8.0, "stop")], None, 0.0),
        ([], None, 0.0),
    ],
)
def test_what_is_said_is_the_moment(phrases, moment, iou):
    found = charades.score(Case("A", 4.0, 10.0, "person eats."), said(*phrases))
    assert found.said == (None if moment is None else pytest.approx(moment)) and found.iou == pytest.approx(iou)


def test_figures():
    figures = charades.summarise([Score(None, iou) for iou in (0, 0, 0.1, 0.3, 0.3, 0.5, 0.5, 0.7, 0.9, 1.0)])
    values = [f.value for f in figures.values() if isinstance(f, Estimate)]
    assert list(figures) == ["charades_miou", "charades_recall_0.3", "charades_recall_0.5", "charades_recall_0.7"]
    assert values == pytest.approx([0.43, 0.7, 0.5, 0.3])
