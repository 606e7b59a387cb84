"""The training step, lowered for a GPU that isn't there."""

import collections
import re

import jax

from pallas_kernels import platform
from tml_jax import sharding
from tml_jax.streams import packed
from tml_jax.train.config import load_experiment
from tml_jax.train.trainer import Trainer


def test_the_training_step_lowers_for_cuda_without_loops_over_experts():
    """Its loops are over layers, forward and backward, and Muon's turns of each matrix; it calls no CPU's code."""
    experiment = load_experiment("configs/inkling_tiny.py")
    trainer = Trainer(experiment, sharding.make_mesh(()))
    room, group, size = experiment.data.room, experiment.data.group, experiment.train.batch_size
    packs = size // group, group * room.patches, group * room.speech
    batch = packed.abstract(experiment.model.stream, (size, room.turns), *packs)
    with platform.forced("gpu"):
        text = trainer.lower(trainer.abstract_state(), batch, ("cuda",)).as_text()
    assert "custom_call" not in text
    turns = [re.search(r"dense<(\d+)> : tensor<i32>", loop)[1] for loop in text.split("stablehlo.while")[1:]]
    matrices = len(jax.tree.leaves(trainer.model.matrices["transformer"], is_leaf=lambda m: isinstance(m, tuple)))
    assert collections.Counter(turns) == {"3": 2, "5": matrices}
