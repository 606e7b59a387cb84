"""Twenty minutes of conversation through the shipped model's step: nothing compiles, and it gets no slower."""

import statistics
import time

import jax
import numpy as np
import pytest

from tml_jax.checkpoint.store import load_model
from tml_jax.executor.executor import Executor
from tml_jax.executor.live import LiveModel
from tml_jax.model.interaction import InteractionModel
from tml_jax.streams.micro_turn import empty_input

MINUTE = 300  # micro-turns


@pytest.mark.soak
def test_twenty_simulated_minutes():
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
    for k in range(20, 20 + 20 * MINUTE):
        began = time.perf_counter()
        state = turn(k, state)
        times.append(time.perf_counter() - began)
    first, last = statistics.median(times[:MINUTE]), statistics.median(times[-MINUTE:])
    print(f"compilations {len(compiled)}, first minute {1e3 * first:.2f} ms, last {1e3 * last:.2f} ms")
    assert not compiled
    assert last <= 1.05 * first
