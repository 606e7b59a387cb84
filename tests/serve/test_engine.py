"""When the engine steps whom."""

import time

import numpy as np
import pytest

from tml_jax.serve.engine import JUDGED, SECOND_CHANCES, Engine, TurnResult
from tml_jax.serve.inbox import Block
from tml_jax.streams.micro_turn import MicroTurnInput

TICK_S = 0.2


class Sender:
    """A session whose micro-turns are complete at given times after a tick, one in each period."""

    def __init__(self, engine: Engine, after_s: list[float], *, replayed: bool = False) -> None:
        self.replayed = replayed
        begins = time.monotonic() + engine.next_tick_s()
        self.complete = [begins + k * TICK_S + after for k, after in enumerate(after_s)]
        self.left, self.taken, self.came = list(self.complete), list[float](), list[float]()

    def ready(self, now: float | None) -> bool:
        assert now is not None
        return bool(self.left) and self.left[0] <= now

    def take(self, inputs: MicroTurnInput, row: int) -> Block:
        inputs.turn[row], inputs.active[row] = len(self.complete) - len(self.left), True
        complete = self.left.pop(0)
        self.taken.append(time.monotonic())
        return Block(None, not_before=0.0 if self.replayed else complete)

    def deliver(self, result: TurnResult) -> None:
        self.came.append(time.monotonic())

    def fail(self, error: Exception) -> None:
        raise error

    def waited_s(self) -> np.ndarray:
        """From when a micro-turn was complete to its step, however long that takes on this machine."""
        while len(self.came) < len(self.complete):
            time.sleep(0.01)
        return np.subtract(self.taken, self.complete)


@pytest.fixture
def engine(bundle):
    engine = Engine(bundle, 2)
    engine.start()
    yield engine
    engine.stop()


def test_who_comes_too_late_for_a_tick_is_stepped_soon_after_it(engine) -> None:
    """A quarter of a micro-turn is the most that is waited, not a whole one, up to the last chance."""
    engine._took_s.extend([0.001] * JUDGED)  # one slow step of a busy machine is no slow engine
    late = Sender(engine, [0.0] * 3 + [0.02, 0.07] * 6)
    engine.admit(late, seed=0)
    waited = late.waited_s()[3:]
    assert np.median(waited) < SECOND_CHANCES[0] * TICK_S, waited


def test_who_comes_late_is_stepped_with_those_who_are_behind_or_after_them(engine, monkeypatch) -> None:
    """The step in which one catches up runs over the others' second chances."""
    step = engine._model.step

    def slow(*args: object) -> object:
        time.sleep(0.3 * TICK_S)
        return step(*args)

    monkeypatch.setattr(engine._model, "step", slow)
    engine._took_s.extend([0.3 * TICK_S] * JUDGED)  # one slow step of a busy machine is no slow engine
    behind, late = Sender(engine, [0.0, -TICK_S] * 10), Sender(engine, [0.0] * 3 + [0.01, 0.04] * 8)
    engine.admit(behind, seed=0)
    engine.admit(late, seed=1)
    waited = late.waited_s()[4:]
    assert np.quantile(waited, 0.9) < 0.5 * TICK_S, waited


@pytest.mark.parametrize("part", [0.45, 0.55, 0.9])
def test_where_steps_take_long_who_comes_late_waits_and_makes_nobody_late(engine, monkeypatch, part: float) -> None:
    step, began = engine._model.step, list[float]()

    def slow(*args: object) -> object:
        began.append(time.monotonic())
        time.sleep(part * TICK_S)
        return step(*args)

    monkeypatch.setattr(engine._model, "step", slow)
    engine._took_s.extend([max(part, 0.75) * TICK_S] * JUDGED)  # even a slow one must be over at the next tick
    late = Sender(engine, [0.0] * 3 + [0.07] * 8)
    engine.admit(late, seed=0)
    assert np.median(late.waited_s()[3:]) > TICK_S - 0.07
    assert np.median(np.diff(began)) > 0.9 * TICK_S


def test_when_the_next_tick_comes_is_known_while_a_step_goes_on(engine, monkeypatch) -> None:
    """Clients begin by it: one that comes during a step would else miss the tick with every micro-turn."""
    step, ticks = engine._model.step, list[float]()

    def slow(*args: object) -> object:
        for _ in range(10):
            time.sleep(0.05 * TICK_S)
            ticks.append(time.monotonic() + engine.next_tick_s())
        return step(*args)

    monkeypatch.setattr(engine._model, "step", slow)
    one = Sender(engine, [0.0] * 5)
    engine.admit(one, seed=0)
    one.waited_s()
    phases = np.angle(np.exp(2j * np.pi * (np.asarray(ticks) - ticks[0]) / TICK_S)) / (2 * np.pi) * TICK_S
    assert np.abs(phases).max() < 0.01, phases


def test_what_is_replayed_was_not_waiting_since_the_machine_began(engine) -> None:
    ages_s = list[float]()
    engine.watch = lambda *told: ages_s.extend(told[-1])
    for replayed in (False, True):
        one = Sender(engine, [0.0] * 2, replayed=replayed)
        slot = engine.admit(one, seed=0)
        one.waited_s()
        engine.release(slot, one)
    assert len(ages_s) == 4
    assert max(ages_s) < 1.0
