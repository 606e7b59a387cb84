"""The tiny model with the blocks of keys that the TPU kernels need."""

import dataclasses

from configs.inkling_tiny import CONFIG as TINY
from tml_jax.model.config import NumericsConfig

CONFIG = dataclasses.replace(
    TINY,
    model=dataclasses.replace(
        TINY.model,
        state=dataclasses.replace(TINY.model.state, sinks=128),
        numerics=NumericsConfig(key_block=128),
    ),
)
