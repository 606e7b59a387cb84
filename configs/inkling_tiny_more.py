"""The tiny model taught further, from the shipped weights on: lower rates, half of a batch heard before.

python -m launch.train --config=configs/inkling_tiny_more.py --init_from=checkpoints/inkling_tiny --workdir=runs/more
"""

import dataclasses

from configs import inkling_tiny

_BASE = inkling_tiny.CONFIG
CONFIG = dataclasses.replace(
    _BASE,
    name="inkling_tiny_more",
    data=dataclasses.replace(_BASE.data, replay=0.5),
    train=dataclasses.replace(
        _BASE.train,
        minutes=85.0,
        learning_rate=1.5e-3,
        adam_learning_rate=6e-4,
        warmup_steps=40,
        cooldown=0.5,
        ema=0.996,
        eval_every_s=1200.0,
        checkpoint_every_s=900.0,
    ),
)
