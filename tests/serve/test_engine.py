"""When the engine steps whom."""

import time

import numpy as np
import pytest

from tml_jax.serve.engine import SECOND_CHANCES, Engine, TurnResult
from tml_jax.serve.inbox import Block
from tml_jax.streams.micro_turn import MicroTurnInput

TICK_S = 0.2


class Sender:
    """A session whose micro-turns are complete at given times after a tick, one in each period."""

    def __init__(self, engine: Engine, after_s: list[float]) -> None:
        begins = time.monotonic() + engine.next_tick_s()
        self.complete = [begins + k * TICK_S + after for k, after in enumerate(after_s)]
        self.left, self.came = list(self.complete), list[float]()

    def ready(self, now: float | None) -> bool:
        assert now is not None
        return bool(self.left) and self.left[0] <= now

    def take(self, inputs: MicroTurnInput, row: int) -> Block:
        inputs.turn[row], inputs.active[row] = len(self.complete) - len(self.left), True
        return Block(None, not_before=self.left.pop(0))

    def deliver(self, result: TurnResult) -> None:
        self.came.append(time.monotonic())

    def fail(self, error: Exception) -> None:
        raise error

    def waited_s(self) -> np.ndarray:
        """From when a micro-turn was complete to its result."""
        while len(self.came) < len(self.complete):
            time.sleep(0.01)
        return np.subtract(self.came, self.complete)


@pytest.fixture
def engine(bundle):
    engine = Engine(bundle, 2)
    engine.start()
    yield engine
    engine.stop()


def test_who_comes_too_late_for_a_tick_is_stepped_soon_after_it(engine) -> None:
    """A quarter of a micro-turn is the most that is waited, not a whole one, up to the last chance."""
    late = Sender(engine, [0.0] * 3 + [0.02, 0.07] * 6)
    engine.admit(late, seed=0)
    waited = late.waited_s()[3:]
    assert np.median(waited) < SECOND_CHANCES[0] * TICK_S, waited


def test_where_steps_take_long_who_comes_late_waits_and_makes_nobody_late(engine, monkeypatch) -> None:
    run_step, began = engine._run_step, list[float]()

    def slow(inputs: MicroTurnInput) -> object:
        began.append(time.monotonic())
        time.sleep(0.6 * TICK_S)
        return run_step(inputs)

    monkeypatch.setattr(engine, "_run_step", slow)
    late = Sender(engine, [0.0] * 3 + [0.07] * 8)
    engine.admit(late, seed=0)
    assert np.median(late.waited_s()[3:]) > TICK_S
    assert np.median(np.diff(began)) > 0.9 * TICK_S
