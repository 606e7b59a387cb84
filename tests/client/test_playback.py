"""The client's loudspeaker: when sound begins, and whether it goes on."""

import numpy as np
import pytest

from tml_jax.client.playback import LONGEST_S, SAFETY_S, Playback

RATE, TURN_S = 16_000, 0.2


def played(late_s: list[float], speaks_from: int) -> tuple[Playback, float]:
    """A playback whose micro-turns arrive so late, of which those from one on are speech; and when that is heard."""
    playback = Playback(RATE, real_time=True)
    for turn, late in enumerate(late_s):
        due = (turn + 1) * TURN_S
        playback.arrived(due, due + late)
        if turn >= speaks_from:
            playback.add(np.ones(3200, np.float32), turn, due, due + late, 1)
    heard = playback.sound(0.0)
    return playback, float(np.flatnonzero(heard)[0]) / RATE - (speaks_from + 1) * TURN_S


def test_where_all_comes_in_time_speech_begins_as_it_arrives() -> None:
    playback, begins = played([0.03] * 60, 40)
    assert playback.underruns == 0
    assert begins == pytest.approx(0.03 + SAFETY_S)


def test_where_some_comes_late_speech_waits_for_it_and_has_no_gap() -> None:
    late = np.random.default_rng(0).choice([0.03, 0.08, 0.23], 120, p=[0.6, 0.3, 0.1])
    playback, begins = played(list(late), 60)
    assert playback.underruns == 0
    assert begins == pytest.approx(0.23 + SAFETY_S)
    assert np.all(playback.sound(0.0)[-60 * 3200 :] == 1)


def test_what_came_late_once_or_much_too_late_delays_nobody_for_ever() -> None:
    assert played([0.03] * 30 + [0.9] + [0.03] * 29, 40)[1] < 0.15, "once"
    assert played([2.0] * 3 + [0.03] * 80, 60)[1] == pytest.approx(0.03 + SAFETY_S), "long ago"
    assert played([1.0, 0.03] * 30, 41)[1] == pytest.approx(LONGEST_S + SAFETY_S)
