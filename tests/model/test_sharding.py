"""The same numbers on eight devices as on one, for the training step and the live step."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import dataclasses, json
import jax, numpy as np
from tests.model import tiny
from tml_jax import sharding
from tml_jax.data.config import DataConfig
from tml_jax.executor.live import LiveModel
from tml_jax.streams.micro_turn import empty_output
from tml_jax.train.config import ExperimentConfig, TrainConfig
from tml_jax.train.trainer import Trainer, TrainState

assert len(jax.devices()) == 8
# One layer of each kind, the second kind stacked and scanned.
config = tiny.config(layer_types=("hybrid_sliding", "hybrid", "hybrid"), mlp_layer_types=("dense", "sparse", "sparse"))
spec = config.stream

def meshes():
    yield "one", sharding.make_mesh(devices=jax.devices()[:1])
    yield "eight", sharding.make_mesh((2, 1, 2, 2))

def batch(slots, turns):
    inputs = tiny.random_inputs(spec, slots, turns)
    outputs = empty_output(spec, (slots, turns))
    rng = np.random.default_rng(1)
    outputs.num_tokens[:] = inputs.active
    outputs.tokens[:] = rng.integers(0, 60, outputs.tokens.shape)
    outputs.speaking[:] = inputs.active & (rng.random((slots, turns)) < 0.5)
    outputs.mel[:] = rng.normal(size=outputs.mel.shape) * outputs.speaking[..., None, None, None]
    return tiny.pack(inputs, outputs)

results, cut = {}, {}
for name, mesh in meshes():
    train = TrainConfig(batch_size=4, steps=10, warmup_steps=1, balance_rate=0.0)
    data = DataConfig(window_turns=8, window_tokens=64, group=1)
    trainer = Trainer(ExperimentConfig("test", config, data, train), mesh)
    params = tiny.random_params(trainer.model)
    state = TrainState(np.int32(0), params, params, trainer.tx.init(params))
    state = jax.device_put(state, trainer.shardings)
    losses = []
    assert trainer.groups() == [0, 1, 2, 3]
    for _ in range(2):
        state, metrics = trainer.step(state, batch(4, 8))
        losses.append(float(metrics["loss"]))
    placed = jax.device_put(params, trainer.shardings.params)
    live = LiveModel(trainer.executor, trainer.model, spec, 4)
    conversations, outs = live.init(), []
    inputs = tiny.random_inputs(spec, 4, 6)
    for t in range(6):
        now = jax.tree.map(lambda x: x[:, t], inputs)
        conversations, out = live.step(placed, conversations, now, np.zeros((4, 2), np.uint32))
        outs.append(jax.device_get(out))
    results[name] = (losses, jax.device_get(state.params), outs)
    cut[name] = sum(not x.sharding.is_fully_replicated for x in jax.tree.leaves(state.params))

def difference(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.max(np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64)))) for x, y in pairs)

def norm(tree):
    return sum(float(np.sum(np.square(np.asarray(x, np.float64)))) for x in jax.tree.leaves(tree)) ** 0.5

# Adam divides each entry's gradient by its own size, so that one which is nothing but rounding moves by its sign: the
# update is compared as a whole.
one, eight = results["one"][1], results["eight"][1]
update = norm(jax.tree.map(np.subtract, one, jax.device_get(params)))
print(json.dumps({
    "losses": max(abs(a - b) / abs(a) for a, b in zip(results["one"][0], results["eight"][0])),  # relative: it is a sum
    "update": norm(jax.tree.map(np.subtract, one, eight)) / update,
    "outputs": difference(results["one"][2], results["eight"][2]),
    "cut": cut,
}))
"""


@pytest.fixture(scope="module")
def found():
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # the arithmetic is the same; compiling takes half as long
    }
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_eight_devices_equal_one(found):
    """The training step, data x expert x tensor = 2 x 2 x 2."""
    assert found["losses"] <= 1e-5
    assert found["update"] <= 1e-4  # measured 4.6e-5, nearly all of it in one entry


def test_the_live_step_on_eight_devices_equals_one(found):
    assert found["outputs"] <= 1e-5


def test_weights_are_really_cut(found):
    assert found["cut"]["one"] == 0 and found["cut"]["eight"] > 20
