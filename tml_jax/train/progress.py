"""How far a training run has come, by steps or by wall time."""

import time

from tml_jax.train.config import TrainConfig


class Progress:
    """The length of a run and what of it is over; times that an interrupted run took count.

    Args:
      config: of the run.
      began: when this process's share of the run began, by `time.monotonic`.
      elapsed_s: what the run took before.
    """

    def __init__(self, config: TrainConfig, began: float, elapsed_s: float = 0.0) -> None:
        self._config, self._began, self._before = config, began, elapsed_s
        self._tail_s = self._rest_s = 0.0
        self._last = dict.fromkeys(("evaluate", "save"), time.monotonic())

    def elapsed_s(self) -> float:
        """Seconds of the run."""
        return self._before + time.monotonic() - self._began

    def share(self, step: int) -> float:
        """How much of the run is over after `step` steps, 0 to 1."""
        if self._config.minutes is None:
            return min(1.0, step / self._config.steps)
        return min(1.0, self.elapsed_s() / self._training_s())

    def over(self, step: int) -> bool:
        """Whether there is nothing left to train."""
        if self._config.minutes is None:
            return step >= self._config.steps
        return self.elapsed_s() >= self._training_s()

    def due(self, what: str, step: int) -> bool:
        """Whether it is time to "evaluate" or to "save" after `step` steps."""
        config = self._config
        if config.minutes is None:
            return step % {"evaluate": config.eval_every, "save": config.checkpoint_every}[what] == 0
        every = {"evaluate": config.eval_every_s, "save": config.checkpoint_every_s}[what]
        return time.monotonic() - self._last[what] >= every

    def took(self, what: str, seconds: float) -> None:
        """Notes that an evaluation or a save took so long: the last ones have to fit in a run's minutes."""
        self._last[what] = time.monotonic()
        if what == "evaluate":
            self._tail_s = seconds
        else:
            self._rest_s = seconds

    def _training_s(self) -> float:
        """Seconds that a run by time trains for: all but what its last evaluation and its saving take."""
        assert self._config.minutes is not None
        whole = 60 * self._config.minutes
        return max(0.5 * whole, whole - self._tail_s - 2 * self._rest_s)
