"""Inkling-Small taught to interact by LoRA: its own weights stay, low-rank additions and our heads are trained."""

import dataclasses

from configs.inkling_small import CONFIG as FULL
from tml_jax.model.lora import LoraConfig

CONFIG = dataclasses.replace(
    FULL,
    name="inkling_small_lora",
    train=dataclasses.replace(FULL.train, lora=LoraConfig(rank=16, alpha=32.0), adam_learning_rate=3e-4),
)
