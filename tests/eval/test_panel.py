"""The panel on cases worked by hand."""

import numpy as np
import pytest

from tests.eval.test_metrics import spoken
from tml_jax.eval import panel
from tml_jax.eval.recorded import Recorded

SILENCE = np.zeros(16_000, np.float32)
STOP = {"kind": "stop", "after": 5.0, "until": 9.0}
NEXT = {"kind": "answer", "after": 9.5, "words": ["one"]}
PAUSE = {"kind": "silent", "reason": "hesitation", "from": 12.0, "to": 13.0}
YEAH = {"kind": "goes on", "from": 3.0, "to": 4.0}
TALK = {"kind": "silent", "reason": "talk", "from": 15.0, "to": 17.0}


def judged(*expectations, events):
    return panel.judged(Recorded("a", SILENCE, None, 30.0, expectations=expectations, events=events))


def values(*cases):
    return {figure.name: figure.values for figure in panel.figures(cases)}


def test_every_figure():
    good = judged(STOP, NEXT, PAUSE, YEAH, TALK, events=spoken(2.0, 5.4) + spoken(9.7, 10.1, "one"))
    bad = judged(STOP, NEXT, PAUSE, YEAH, TALK, events=spoken(3.0, 3.4) + spoken(4.5, 7.0) + spoken(12.2, 16.0))
    assert values(good, bad) == {
        "turn_taking_latency_median_s": (pytest.approx(0.2),),
        "turn_taking_latency_p90_s": (pytest.approx(0.2),),
        "pause_take_over": (0.0, 1.0),
        "interrupt_recovery": (1.0, 0.0),
        "silence_misclassification": (0.0, 0.0, 1.0, 1.0),
        "yield_latency_median_s": (pytest.approx(0.4), pytest.approx(2.0)),
        "yield_latency_p90_s": (pytest.approx(0.4), pytest.approx(2.0)),
        "selectivity": (1.0, 1.0, 0.0, 0.0),
    }


@pytest.mark.parametrize(
    ("events", "recovered"),
    [
        (spoken(3.0, 5.4) + spoken(9.7, 10.1, "one"), (1.0,)),
        (spoken(3.0, 5.4), (0.0,)),  # silent, and then deaf
        (spoken(3.0, 7.0) + spoken(9.7, 10.1, "one"), (0.0,)),  # talks on, and then answers
        (spoken(9.7, 10.1, "one"), ()),  # there was nothing to interrupt
    ],
)
def test_recovery_is_silence_and_then_an_answer(events, recovered):
    assert values(judged(STOP, NEXT, events=events))["interrupt_recovery"] == recovered


def test_a_barge_in_without_a_request_after_it_is_no_event():
    assert values(judged(STOP, PAUSE, events=spoken(3.0, 5.4)))["interrupt_recovery"] == ()


def test_fewer_than_ten_events_are_hidden():
    one = judged(PAUSE, events=spoken(12.2, 12.6))
    other = judged(PAUSE, events=[])
    assert panel.shown(panel.figures([one] * 9)) == {}
    shown = panel.shown(panel.figures([one] * 9 + [other]))
    for name in ("panel_pause_take_over", "panel_silence_misclassification"):
        assert (shown.pop(name), shown.pop(f"{name}_events")) == (pytest.approx(0.9), 10)
        assert 0.5 < shown.pop(f"{name}_low") < 0.9 < shown.pop(f"{name}_high") <= 1.0
    assert not shown


def test_intervals_repeat():
    figures = panel.figures([judged(NEXT, events=spoken(9.5 + 0.01 * i, 10.5, "one")) for i in range(1, 30)])
    assert panel.shown(figures, seed=1) == panel.shown(figures, seed=1) != panel.shown(figures, seed=2)


def test_quantiles():
    answers = [judged(NEXT, events=spoken(9.5 + late, 10.5, "one")) for late in np.arange(0.1, 0.6, 0.05)]
    shown = panel.shown(panel.figures(answers))
    assert shown["panel_turn_taking_latency_median_s"] == pytest.approx(0.325)
    assert shown["panel_turn_taking_latency_p90_s"] == pytest.approx(0.505)
