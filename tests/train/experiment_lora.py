"""The same few steps by LoRA, in bfloat16 arithmetic."""

import dataclasses

from tests.train.experiment_small import CONFIG as SMALL
from tml_jax.model.lora import LoraConfig

CONFIG = dataclasses.replace(
    SMALL,
    train=dataclasses.replace(
        SMALL.train,
        lora=LoraConfig(rank=2, alpha=8.0),
        steps=16,
        workers=0,
        adam_learning_rate=1e-2,
        dtype="bfloat16",
        checkpoint_every=100,
    ),
)
