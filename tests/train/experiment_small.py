"""An experiment that takes a few steps in a test."""

import dataclasses

from tests.model import tiny
from tml_jax.data.config import DataConfig
from tml_jax.train.config import ExperimentConfig, TrainConfig

_TINY = tiny.config(vocab_size=512, unpadded_vocab_size=480)

CONFIG = ExperimentConfig(
    name="small",
    # One layer of each kind, so that it compiles fast.
    model=dataclasses.replace(
        _TINY,
        text=dataclasses.replace(
            _TINY.text, layer_types=("hybrid_sliding", "hybrid"), mlp_layer_types=("dense", "sparse")
        ),
    ),
    data=DataConfig(window_turns=24, window_tokens=96, window_patches=8, group=2, replay=0.5, replay_pool=3),
    train=TrainConfig(
        steps=8,
        batch_size=4,
        workers=2,
        warmup_steps=2,
        log_every=1,
        checkpoint_every=2,
        eval_every=8,
        eval_conversations=2,
    ),
)
