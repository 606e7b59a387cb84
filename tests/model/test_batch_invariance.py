"""With `NumericsConfig` set, the trainer and the sampler compute the same bits, whoever else is computed with them."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.model import tiny
from tests.model.live import stream
from tml_jax.executor.executor import Executor
from tml_jax.executor.live import LiveModel
from tml_jax.model.config import NumericsConfig, StateConfig
from tml_jax.model.interaction import InteractionModel

TURNS = 60


@pytest.fixture(scope="module")
def model():
    config = dataclasses.replace(
        tiny.config(max_output=2, layer_types=("hybrid_sliding", "hybrid"), mlp_layer_types=("dense", "sparse")),
        state=StateConfig(sinks=16, global_window=64),
        numerics=NumericsConfig(key_block=16, row_tile=32),
    )
    return InteractionModel(config)


@pytest.fixture(scope="module")
def params(model):
    return tiny.random_params(model)


@pytest.fixture(scope="module")
def run(model, params):
    inputs = tiny.random_inputs(model.config.stream, slots=3, turns=TURNS)
    keys = np.array([[7, 1], [8, 2], [9, 3]], np.uint32)
    (outputs, logits), state = stream(model, params, inputs, keys)
    return inputs, outputs, logits, state, keys


def test_the_trainers_logits_are_the_samplers(model, params, run):
    """Bit for bit in float32, over rings that go round."""
    inputs, outputs, logits, state, _ = run
    length = int(np.max(state.length)) + model.config.stream.max_output
    predictions = jax.jit(model.forward, static_argnums=3)(params, *tiny.pack(inputs, outputs), length)
    real = np.asarray(predictions.real)
    assert real.sum() > TURNS and length > 2 * model.config.state.global_window
    np.testing.assert_array_equal(np.asarray(predictions.logits)[real], logits[real])


def test_one_conversation_is_trained_on_as_among_others(model, params, run):
    inputs, outputs, *_, state, _ = run
    length = int(np.max(state.length)) + model.config.stream.max_output
    forward = jax.jit(model.forward, static_argnums=3)
    together = forward(params, *tiny.pack(inputs, outputs), length)
    alone = forward(params, *tiny.pack(*jax.tree.map(lambda x: x[1:2], (inputs, outputs))), length)
    np.testing.assert_array_equal(alone.logits[0], together.logits[1])


def test_one_session_computes_as_one_of_64(model, params, run):
    inputs, _, logits, _, keys = run
    turns = 6
    few = jax.tree.map(lambda x: x[:, :turns], inputs)

    def crowd(x):
        return np.concatenate([x, *[x[:1]] * 61])

    (_, many), _ = stream(model, params, jax.tree.map(crowd, few), crowd(keys))
    (_, alone), _ = stream(model, params, jax.tree.map(lambda x: x[2:3], few), keys[2:3])
    np.testing.assert_array_equal(many[:3], logits[:, :turns])
    np.testing.assert_array_equal(alone[0], logits[2, :turns])


def test_a_session_computes_the_same_whichever_block_is_compiled():
    """Sound alone, text, pictures, everything: the shortest block that holds them gives the bits of the longest."""
    config = tiny.config(layer_types=("hybrid",), mlp_layer_types=("sparse",))
    spec = dataclasses.replace(config.stream, max_patches=9, max_text=10)
    numerics, state = NumericsConfig(key_block=32, row_tile=32), StateConfig(sinks=32, global_window=64)
    model = InteractionModel(dataclasses.replace(config, stream=spec, numerics=numerics, state=state))
    params = tiny.random_params(model)
    live = LiveModel(Executor(), model, spec, 3)
    assert [rung.name for rung in live.rungs] == ["sound", "sound+picture", "sound+text", "sound+picture+text"]
    inputs, keys = tiny.random_inputs(spec, slots=3, turns=16), np.array([[7, 1], [8, 2], [9, 3]], np.uint32)
    pictures, words = np.arange(16) & 1, np.arange(16) >> 1 & 1
    inputs.has_audio[:] |= words == 0
    inputs.num_patches[:] *= pictures
    inputs.num_text[:] *= words
    chosen, longest = model.init_state(3), model.init_state(3)
    for turn in range(16):
        now = jax.tree.map(lambda x, t=turn: x[:, t], inputs)
        chosen, mine = live.step(params, chosen, now, keys)
        longest, theirs = live._step(params, longest, now, keys)
        jax.tree.map(np.testing.assert_array_equal, (mine, chosen), (theirs, longest))
