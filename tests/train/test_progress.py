"""How far a run by minutes has come: its clock, its learning rate, and what an interruption does not change."""

import dataclasses

import pytest

from tml_jax.train import progress as progress_lib
from tml_jax.train.config import TrainConfig
from tml_jax.train.optimizer import schedule
from tml_jax.train.progress import Progress

CONFIG = TrainConfig(minutes=10.0, warmup_steps=10, cooldown=0.3, eval_every_s=100.0, checkpoint_every_s=250.0)


@pytest.fixture
def clock(monkeypatch):
    """The seconds since the machine began; a test sets them."""
    now = [1000.0]
    monkeypatch.setattr(progress_lib.time, "monotonic", lambda: now[0])
    return now


def test_by_minutes_it_warms_up_by_steps_holds_and_cools_down_by_the_clock(clock):
    run = Progress(CONFIG, began=1000.0)

    def scale(step, seconds):
        clock[0] = 1000.0 + seconds
        return schedule(CONFIG, step, run.share(step))

    assert scale(0, 60) < scale(4, 60) < scale(20, 60) == 1.0
    assert scale(20, 400) == scale(5000, 400) == 1.0
    assert scale(20, 510) == pytest.approx(0.5)
    assert scale(20, 600) == pytest.approx(0.0) and scale(20, 700) == pytest.approx(0.0)


def test_a_resumed_run_counts_the_minutes_before(clock):
    run = Progress(CONFIG, began=1000.0, elapsed_s=480.0)
    assert run.share(0) == pytest.approx(0.8) and not run.over(10**6)
    clock[0] += 30.0
    assert run.elapsed_s() == 510.0 and schedule(CONFIG, 100, run.share(100)) == pytest.approx(0.5)
    clock[0] += 90.0
    assert run.over(0) and run.share(0) == 1.0


def test_the_last_evaluation_and_saving_fit_into_the_minutes(clock):
    run = Progress(CONFIG, began=1000.0)
    clock[0] = 1000.0 + 545.0
    assert not run.over(0)
    run.took("evaluate", 40.0)
    run.took("save", 8.0)
    assert run.over(0)  # 600 - 40 - 2 * 8 s
    run.took("evaluate", 10_000.0)
    clock[0] = 1000.0 + 299.0
    assert not run.over(0)  # half of the run is trained, whatever an evaluation takes


def test_by_minutes_evaluations_and_checkpoints_are_due_by_the_clock(clock):
    run = Progress(CONFIG, began=1000.0)
    clock[0] += 120.0
    assert run.due("evaluate", 1) and not run.due("save", 250)
    run.took("evaluate", 5.0)
    assert not run.due("evaluate", 500)
    clock[0] += 130.0
    assert run.due("evaluate", 1) and run.due("save", 1)


def test_by_steps_the_clock_says_nothing(clock):
    run = Progress(dataclasses.replace(CONFIG, minutes=None, steps=1000), began=1000.0, elapsed_s=1e9)
    assert run.share(850) == 0.85 and not run.over(999) and run.over(1000)
    assert run.due("save", 250) and not run.due("save", 251) and run.due("evaluate", 500)
