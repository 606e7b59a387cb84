"""The same numbers on eight devices as on one, for the training step and the live step."""

import pytest

from tests import eight

SCRIPT = """
import dataclasses, json
import jax, jax.numpy as jnp, numpy as np
from tests.model import tiny
from tml_jax import sharding
from tml_jax.data.config import DataConfig
from tml_jax.executor.live import LiveModel
from tml_jax.model import attention
from tml_jax.model.state import CacheShape
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
    yield "time", sharding.make_mesh((2, 2, 2, 1))  # four windows, each on two devices

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
    for t in range(6 if name != "time" else 0):  # a live block is never cut
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

def attention_cut(tokens, window, sinks, key_block, extent):
    # Attention and its gradients, tokens cut over four devices: how far off they are; whether the values are the same.
    normal = lambda *shape: jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)
    heads, shape = ("batch", "sequence", None, None), CacheShape(sinks, 0, window, key_block)
    arrays = [normal(2, tokens, n, 8) for n in (4, 2, 2)] + [normal(2, tokens, 4, 4), normal(4, extent)]

    def run(arrays, grad):
        def f(q, *rest):
            attend = lambda *a: attention._attend(sharding.sequence_axes(q.shape), shape, *a)
            return sharding.on_each_device(attend, (q, *rest), ((heads,) * 4 + ((None, None),)), heads, out=q)
        y, vjp = jax.vjp(f, *arrays)
        return y, *vjp(grad)

    one = jax.jit(run)(arrays, normal(2, tokens, 4, 8) + 1)
    with jax.set_mesh(sharding.make_mesh((1, 2, 4, 1))):
        four = jax.jit(lambda *a: run(*a))(arrays, normal(2, tokens, 4, 8) + 1)
    off = max(float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(a))) for a, b in zip(one, four))
    return off, bool(jnp.all(one[0] == four[0]))

def refused(batch_size, window_tokens):
    train, data = TrainConfig(batch_size=batch_size), DataConfig(window_turns=8, window_tokens=window_tokens, group=1)
    try:
        return Trainer(ExperimentConfig("test", config, data, train), sharding.make_mesh((2, 2, 2, 1))).groups()
    except ValueError as error:
        return str(error)

# Adam divides each entry's gradient by its own size, so that one which is nothing but rounding moves by its sign: the
# update is compared as a whole.
one = results["one"]
update = norm(jax.tree.map(np.subtract, one[1], jax.device_get(params)))
print(json.dumps({
    "losses": {n: max(abs(a - b) / abs(a) for a, b in zip(one[0], r[0])) for n, r in results.items()},  # of a sum
    "update": {n: norm(jax.tree.map(np.subtract, one[1], r[1])) / update for n, r in results.items()},
    "outputs": difference(one[2], results["eight"][2]),
    "cut": cut,
    "attention": [attention_cut(64, *case) for case in ((30, 0, None, 10), (20, 12, None, 16), (300, 8, None, 20))],
    "in order": attention_cut(64, 24, 8, 8, 16),
    "refused": [refused(4, 66), refused(2, 66), refused(12, 64)],
}))
"""


@pytest.fixture(scope="module")
def found():
    return eight.run(SCRIPT)


@pytest.mark.parametrize("mesh", ["eight", "time"])
def test_eight_devices_equal_one(found, mesh):
    """The training step, data x expert x tensor = 2 x 2 x 2; data x fsdp = 2 x 2 windows, their time over expert."""
    assert found["losses"][mesh] <= 1e-5
    assert found["update"][mesh] <= 1e-4  # measured 4.6e-5, nearly all of it in one entry


def test_the_live_step_on_eight_devices_equals_one(found):
    assert found["outputs"] <= 1e-5


def test_weights_are_really_cut(found):
    assert found["cut"]["one"] == 0 and found["cut"]["eight"] > 20


def test_attention_along_time_is_that_of_one_device(found):
    """A window of two devices' tokens, one with sinks farther away, one longer than all; in order, to the bit."""
    assert max(off for off, _ in found["attention"]) <= 1e-5
    off, same = found["in order"]
    assert off <= 1e-5 and same


def test_a_window_that_cannot_be_shared_out_is_refused(found):
    even, uneven, many = found["refused"]
    assert even == [0, 1, 2, 3]
    assert "66 tokens and 8 micro-turns can't be cut over the 4 devices that share one where 2 go at once" in uneven
    assert "12 groups of 1 conversations can't be cut over 8 devices" in many
