"""What the time of a training run goes into."""

import contextlib
import time
from collections.abc import Iterator
from typing import Literal

from tml_jax.executor.watchdog import SLOW_S, Watchdog

What = Literal["data", "step", "save", "evaluate"]
_DOING: dict[What, str] = {
    "data": "waiting for its data",
    "step": "running the step",
    "save": "saving",
    "evaluate": "evaluating",
}


class Spending:
    """Seconds of each kind; tells the watchdog what the process is at.

    Args:
      watchdog: of the run.
      started: when the run first began, by `time.time`.
      trained_s: seconds of steps that its checkpoint holds already.
    """

    def __init__(self, watchdog: Watchdog, started: float, trained_s: float) -> None:
        self.started, self.trained_s = started, trained_s
        self._watchdog = watchdog
        self._spent = dict.fromkeys(_DOING, 0.0)

    @contextlib.contextmanager
    def on(self, what: What, step: int, *, slow: bool = False) -> Iterator[None]:
        """The block is spent on this, for this step; `slow`: it may take minutes, as a step that is compiled does."""
        self._watchdog.at(step, _DOING[what], SLOW_S if slow else None)
        begin = time.monotonic()
        yield
        took = time.monotonic() - begin
        self._spent[what] += took
        if what == "step" and not slow:
            self.trained_s += took

    def per_step(self, steps: int) -> dict[str, float]:
        """Seconds a step of each kind over the last `steps`, and the run's goodput.

        Goodput is the time of the steps that the weights have in them as a share of all since the run first began:
        starts, compilations, waits, evaluations, saves, interruptions and steps that were lost with a process lower it.
        """
        shares = {f"{what}_s": spent / steps for what, spent in self._spent.items()}
        self._spent = dict.fromkeys(_DOING, 0.0)
        return shares | {"goodput": self.trained_s / max(time.time() - self.started, 1e-9)}
