"""The training step: in which numbers it is taken, and lowered for a GPU that isn't there."""

import collections
import dataclasses
import itertools
import math
import re

import jax
import numpy as np
import optax
import pytest
from flax import traverse_util

from pallas_kernels import platform
from tests.model import tiny
from tests.train.experiment_small import CONFIG as SMALL
from tml_jax import sharding
from tml_jax.data.pipeline import Pipeline
from tml_jax.streams import packed
from tml_jax.streams.micro_turn import UNHEARD
from tml_jax.train.config import load_experiment
from tml_jax.train.trainer import Trainer


def test_the_training_step_lowers_for_cuda_without_loops_over_experts():
    """Its loops: units and layers of a kind, forward and backward; Muon's of each size of matrix. No CPU's code."""
    experiment = load_experiment("configs/inkling_tiny.py")
    trainer = Trainer(experiment, sharding.make_mesh(()))
    room, group, size = experiment.data.room, experiment.data.group, experiment.train.batch_size
    packs = size // group, group * room.patches, group * room.speech
    batch = packed.abstract(experiment.model.stream, (size, room.turns), *packs)
    with platform.forced("gpu"):
        text = trainer.lower(trainer.abstract_state(), batch, ("cuda",)).as_text()
    assert "custom_call" not in text
    turns = [re.search(r"dense<(\d+)> : tensor<i32>", loop)[1] for loop in text.split("stablehlo.while")[1:]]
    roles, shapes = trainer.model.matrices["transformer"], trainer.model.abstract["transformer"]
    sizes = jax.tree.leaves(
        jax.tree.map(lambda x, r: r and frozenset(math.prod(x.shape[i] for i in side) for side in r), shapes, roles)
    )
    assert collections.Counter(turns) == {"3": 2, "2": 2, "5": len(set(sizes))}


TOKENIZER = "checkpoints/inkling_tiny/tokenizer.json"


def losses(steps, **changes):
    """Of a run of so many steps, and the state that it ends with."""
    train = dataclasses.replace(SMALL.train, steps=steps, cooldown=0.3, **changes)
    experiment = dataclasses.replace(SMALL, train=train)
    trainer = Trainer(experiment, sharding.make_mesh(()))
    data = Pipeline(experiment.data, experiment.model.stream, TOKENIZER, train.batch_size, "train").batches()
    state, found = trainer.init(), []
    for batch in itertools.islice(data, steps):
        state, metrics = trainer.step(state, batch)
        found.append(float(metrics["loss"]))
    return found, state


def test_an_average_moves_on_late_in_a_run_in_bfloat16_arithmetic():
    """Its step of a thousandth of the way to the weights is far below bfloat16's distance to the next number."""
    train = dataclasses.replace(SMALL.train, dtype="bfloat16", ema=0.999)
    experiment = dataclasses.replace(SMALL, train=train)
    trainer = Trainer(experiment, sharding.make_mesh(()))
    batch = next(Pipeline(experiment.data, experiment.model.stream, TOKENIZER, 4, "train").batches())
    begin = jax.device_get(trainer.init().params)
    late = dataclasses.replace(trainer.init(), step=np.int32(100_000))
    state, _ = trainer.step(late, batch)
    params, average = (dict(jax.tree_util.tree_leaves_with_path(x)) for x in (state.params, state.average))
    moved = 0
    for path, before in jax.tree_util.tree_leaves_with_path(begin):
        way = params[path] - before
        if np.abs(way).max() > 1e-4:
            # A thousandth of the way, to the rounding of a float32 of this size.
            off = np.abs(average[path] - before - 0.001 * way)
            assert params[path].dtype == average[path].dtype == np.float32
            assert off.max() <= 1e-7 * max(1.0, np.abs(before).max()), path
            moved += 1
    assert moved > 10


def test_without_an_average_the_weights_are_what_is_kept():
    _, state = losses(1, ema=None)
    assert state.average is None and state.best is state.params


def test_a_frozen_weight_that_the_model_has_not_is_told():
    with pytest.raises(ValueError, match=r"train\.frozen names 'mlp\.gateup', which is no weight of this model"):
        losses(0, frozen=("mlp.down", "mlp.gateup"))


def test_what_is_frozen_stays_and_all_else_learns():
    """The routed experts and a table; the names are those of a layer's weights, and of weights outside the layers."""
    frozen = ("mlp.gate_up", "mlp.down", "audio.table")
    state = losses(3, frozen=frozen)[1]
    before = traverse_util.flatten_dict(Trainer(SMALL, sharding.make_mesh(())).init().params, sep=".")
    after = traverse_util.flatten_dict(state.params, sep=".")
    still = {path for path, x in after.items() if np.array_equal(x, before[path])}
    held = {path for path in after if path.endswith((".mlp.gate_up", ".mlp.down")) or path == "audio.table"}
    assert len(held) >= 3 and held <= still
    assert not [path for path in still - held if after[path].ndim > 1 and not path.endswith("correction")]


@pytest.mark.slow
def test_bfloat16_arithmetic_follows_float32():
    """Two runs of 200 steps from the same weights on the same data, the last 20 losses compared."""
    exact, half = (losses(200, dtype=dtype)[0] for dtype in ("float32", "bfloat16"))
    assert half != exact
    assert np.mean(half[-20:]) == pytest.approx(np.mean(exact[-20:]), rel=0.01)


def test_nothing_is_learnt_from_what_nobody_wrote_down():
    """No gradient of the words heard where they are not known, and the whole of it where they are."""
    trainer = Trainer(SMALL, sharding.make_mesh(()))
    inputs, outputs = next(Pipeline(SMALL.data, SMALL.model.stream, TOKENIZER, 4, "train").batches())
    unheard = dataclasses.replace(outputs, heard=np.full_like(outputs.heard, UNHEARD))
    loss = jax.jit(trainer.gradients)
    params = trainer.init().params
    for target, learns in ((outputs, True), (unheard, False)):
        gradients, out = loss(params, trainer.place((inputs, target)), jax.random.key(0))
        assert bool(optax.global_norm(gradients["heard"]) > 0) == bool(out.metrics["heard_loss"] > 0) == learns
        assert out.metrics["token_loss"] > 0


def gradients_of_a_batch(**changes):
    """And its metrics."""
    experiment = dataclasses.replace(SMALL, train=dataclasses.replace(SMALL.train, **changes))
    trainer = Trainer(experiment, sharding.make_mesh(()))
    batch = next(Pipeline(experiment.data, experiment.model.stream, TOKENIZER, 4, "train").batches())
    params = tiny.random_params(trainer.model)
    return jax.device_get(jax.jit(trainer.gradients)(params, trainer.place(batch), jax.random.key(0)))


@pytest.fixture(scope="module")
def whole_batch():
    return gradients_of_a_batch()


@pytest.mark.parametrize("changes", [{"loss_turns": 5}, {"microbatches": 2}])
def test_losses_in_chunks_and_gradients_in_parts_are_those_of_the_whole(whole_batch, changes):
    """Chunks that do not divide the window, too; of the same random draws."""
    whole, out = whole_batch
    in_parts, added = gradients_of_a_batch(**changes)
    assert {k: float(v) for k, v in added.metrics.items()} == pytest.approx(
        {k: float(v) for k, v in out.metrics.items()}, rel=1e-5
    )
    jax.tree.map(np.testing.assert_array_equal, added.load, out.load)
    # As one vector: a router's one scale has a gradient that is the rounding of a sum of thousands.
    norm, off = (float(optax.global_norm(g)) for g in (whole, jax.tree.map(np.subtract, whole, in_parts)))
    assert off <= 1e-5 * norm


def test_parts_of_a_batch_are_whole_groups():
    experiment = dataclasses.replace(SMALL, train=dataclasses.replace(SMALL.train, microbatches=3))
    with pytest.raises(ValueError, match=r"2 groups .* can't be cut over 1 devices of 3 microbatches"):
        Trainer(experiment, sharding.make_mesh(())).groups()
