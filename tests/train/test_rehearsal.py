"""Rehearsal: half of a batch is what the model that a run begins with can do, and its answers are the targets there."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.model import tiny
from tests.train.experiment_small import CONFIG as SMALL
from tml_jax import sharding
from tml_jax.checkpoint.store import load_model, save_model
from tml_jax.data.config import Shares
from tml_jax.data.pipeline import Pipeline
from tml_jax.model.interaction import InteractionModel
from tml_jax.streams.micro_turn import UNHEARD
from tml_jax.train import loop, loss
from tml_jax.train.config import Rehearsal
from tml_jax.train.loop import Run
from tml_jax.train.trainer import Trainer

TOKENIZER = "checkpoints/inkling_tiny/tokenizer.json"
MODEL, TRAIN = InteractionModel(SMALL.model), dataclasses.replace(SMALL.train, workers=0)
KNOWN = dataclasses.replace(SMALL.data, seed=1, shares=Shares(command=1.0, timer=1.0))
EXPERIMENT = dataclasses.replace(SMALL, train=TRAIN, rehearsal=Rehearsal(KNOWN, weight=0.7))


@pytest.fixture(scope="module")
def batch():
    return next(Pipeline(SMALL.data, SMALL.model.stream, TOKENIZER, 4, "train").batches())


@pytest.fixture(scope="module")
def teacher():
    return tiny.random_params(MODEL, 5)


def loss_of(batch, taught, **changes):
    """The loss with no sound in it, and the metrics: of weights and a teacher's."""
    config = dataclasses.replace(TRAIN, flow_weight=0.0, **changes)
    tokens, packs = SMALL.data.window_tokens, len(batch[1].mel)
    keys, over = jax.random.split(jax.random.key(0), packs), loss.counts(MODEL, batch, tokens)

    def of(params, theirs):
        found = loss.loss(MODEL, params, batch, config, tokens, keys, over, loss.Taught(theirs, *taught))
        return found[0], found[1].metrics

    return of


def norm(tree):
    return float(jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(tree))))


def test_a_model_has_nothing_to_learn_of_itself(batch, teacher):
    """The loss against its own distribution is at its least, whatever the labels say."""
    gradient = jax.jit(jax.grad(loss_of(batch, (2, 1.0)), has_aux=True))
    of_itself, of_another = (gradient(teacher, theirs)[0] for theirs in (teacher, tiny.random_params(MODEL, 6)))
    assert norm(of_another) > 0.1 and norm(of_itself) < 1e-4 * norm(of_another)


@pytest.mark.parametrize("loss_turns", [None, 7])
def test_the_targets_are_a_mean_of_labels_and_teacher_in_the_last_packs_alone(batch, teacher, loss_turns):
    params = tiny.random_params(MODEL, 6)
    found = jax.jit(loss_of(batch, (1, 0.7), loss_turns=loss_turns))(params, teacher)[1]
    inputs, outputs = batch
    keys = jax.random.split(jax.random.key(0), 2)
    noise = jnp.stack([jax.random.normal(jax.random.split(key)[0], outputs.mel.shape[1:]) for key in keys])
    noise *= MODEL.config.flow.sigma_feedback
    logits, tokens = {}, SMALL.data.window_tokens
    decide = jax.jit(lambda weights: MODEL.decide(weights, inputs, outputs, tokens, noise))
    for name, weights in (("ours", params), ("theirs", teacher)):
        decided = decide(weights)
        net = MODEL.net(weights)
        logits[name] = [np.asarray(of(decided.hidden), np.float64) for of in (net.logits, net.heard_logits)]
    real = np.asarray(decided.real)

    def total(which, labels, counted):
        ours, theirs = (x[which] - np.logaddexp.reduce(x[which], -1, keepdims=True) for x in logits.values())
        target = np.eye(ours.shape[-1])[labels]
        target[2:] = 0.3 * target[2:] + 0.7 * np.exp(theirs[2:])  # two conversations a pack
        return -(np.where(target > 0, target * ours, 0).sum(-1) * counted).sum()

    speech = (real & (outputs.tokens != MODEL.control.listen)).sum()
    nothing, heard = MODEL.control.nothing, outputs.heard
    words = (real & (heard != UNHEARD) & (heard != nothing)).sum()
    assert found["token_loss"] == pytest.approx(total(0, outputs.tokens, real) / speech, rel=1e-4)
    wanted = total(1, np.maximum(heard, 0), real & (heard != UNHEARD)) / words
    assert found["heard_loss"] == pytest.approx(wanted, rel=1e-4)


def test_the_last_groups_of_a_batch_are_what_is_rehearsed():
    run = Run(EXPERIMENT, "nowhere", TOKENIZER, "a model")
    made = loop._side_by_side(run._training_data(), 1)
    found = [next(made) for _ in range(2)]
    parts = [Pipeline(data, SMALL.model.stream, TOKENIZER, 2, "train").batches(1) for data in (SMALL.data, KNOWN)]
    for batch in found:
        for x, new, known in zip(*map(jax.tree.leaves, (batch, *(next(part) for part in parts))), strict=True):
            np.testing.assert_array_equal(x, np.concatenate([new, known]))
    run.trainer.groups = lambda: [1]  # a process of a pod that has the rehearsed one alone
    alone = next(loop._side_by_side(run._training_data(), 1))
    known = next(Pipeline(KNOWN, SMALL.model.stream, TOKENIZER, 2, "train").batches(1))
    jax.tree.map(np.testing.assert_array_equal, alone, known)


def test_a_step_learns_of_the_teacher(batch, teacher):
    """Two teachers, two gradients; an evaluation asks neither."""
    trainer = Trainer(EXPERIMENT, sharding.make_mesh(()))
    params, key = tiny.random_params(MODEL, 6), jax.random.key(0)
    gradients = jax.jit(lambda base: trainer.gradients(params, batch, key, base)[0])
    one, other = gradients(teacher), gradients(params)
    assert norm(jax.tree.map(jnp.subtract, one, other)) > 0.01 * norm(one)
    assert trainer.rehearsed == 1
    losses = []
    for base in (teacher, params):
        trainer.freeze(base)
        losses.append(float(trainer.evaluate(params, batch)["loss"]))
    assert losses[0] == losses[1]


def test_a_run_goes_on_with_the_teacher_that_it_began_with(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "evaluate", lambda *_: {"loss": 0.0})
    small = dataclasses.replace(EXPERIMENT, train=dataclasses.replace(TRAIN, eval_conversations=1))
    models = [str(tmp_path / name) for name in ("model", "other")]
    for model in models:
        save_model(model, SMALL.model, teacher, TOKENIZER, dtype="int8")
    for _ in range(2):
        run = Run(small, str(tmp_path / "run"), TOKENIZER, models[0])
        run.train(stop_after=0)
        for path, weight in load_model(models[0])[1]["heard"].items():
            np.testing.assert_array_equal(run.trainer.base["heard"][path], weight)
    with pytest.raises(ValueError, match=r"rehearsed\.teacher was .*model' and is now .*other"):
        Run(small, str(tmp_path / "run"), TOKENIZER, models[1]).train(stop_after=0)


def test_what_does_not_fit_is_told():
    with pytest.raises(ValueError, match="What is rehearsed is what a saved model can do: name it with --init_from"):
        Run(EXPERIMENT, "nowhere", TOKENIZER)
    with pytest.raises(ValueError, match="rehearsed has window_turns 25, and the experiment's own data 24"):
        dataclasses.replace(EXPERIMENT, rehearsal=Rehearsal(dataclasses.replace(KNOWN, window_turns=25)))
    with pytest.raises(ValueError, match="set microbatches=1"):
        dataclasses.replace(EXPERIMENT, train=dataclasses.replace(TRAIN, microbatches=2))
    with pytest.raises(ValueError, match="A batch of 2 has one group of 2"):
        dataclasses.replace(EXPERIMENT, train=dataclasses.replace(TRAIN, batch_size=2))
    with pytest.raises(ValueError, match=r"not 1\.0, 0\.7"):
        Rehearsal(KNOWN, share=1.0)
