"""An hour of conversation through the shipped model's step: nothing compiles, and it gets no slower."""

import time

import jax
import numpy as np
import pytest
from scipy import stats

from tml_jax.checkpoint.store import load_model
from tml_jax.executor.executor import Executor
from tml_jax.executor.live import LiveModel
from tml_jax.model.interaction import InteractionModel
from tml_jax.streams.micro_turn import empty_input

MINUTE, MINUTES = 300, 60  # micro-turns


@pytest.mark.soak
def test_a_simulated_hour_gets_no_slower() -> None:
    config, params, _ = load_model("checkpoints/inkling_tiny")
    model = InteractionModel(config)
    live = LiveModel(Executor(), model, config.stream, 1)
    step, state = live.step, live.init()
    rng = np.random.default_rng(0)
    keys = np.zeros((1, 2), np.uint32)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )

    def turn(k, state):
        inputs = empty_input(config.stream, (1,))
        inputs.active[:] = inputs.has_audio[:] = True
        inputs.turn[:] = k
        inputs.audio[:] = rng.integers(0, 8, inputs.audio.shape)
        inputs.num_patches[:] = k % 7 < 3
        inputs.num_text[:] = 2 * (k % 50 == 0)
        state, out = step(params, state, inputs, keys)
        jax.block_until_ready(out)
        return state

    for k in range(20):  # warm-up
        state = turn(k, state)
    assert compiled
    compiled.clear()
    times = []
    for k in range(20, 20 + MINUTES * MINUTE):
        began = time.perf_counter()
        state = turn(k, state)
        times.append(time.perf_counter() - began)
    minutes = np.median(np.reshape(times, (MINUTES, MINUTE)), axis=1)
    slope, _, low, high = stats.theilslopes(minutes, np.arange(MINUTES) / 60)  # of the line that outliers don't turn
    hour = 100 * np.array([slope, low, high]) / np.median(minutes)
    print(
        f"compilations {len(compiled)}, first minute {1e3 * minutes[0]:.2f} ms, last {1e3 * minutes[-1]:.2f} ms, "
        f"slope {hour[0]:+.2f} % an hour ({hour[1]:+.2f} to {hour[2]:+.2f})"
    )
    assert not compiled
    assert hour[0] < 2
