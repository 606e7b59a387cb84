"""The tiny model taught further, from the shipped weights on: lower rates, the routed experts as they are.

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
        minutes=70.0,
        # Two thirds of the weights, and a third of a step's work on a CPU; what they route to is learnt by now.
        frozen=("mlp.gate_up", "mlp.down", "audio.table"),
        learning_rate=1.5e-3,
        adam_learning_rate=6e-4,
        balance_rate=0.0,
        warmup_steps=40,
        cooldown=0.5,
        ema=0.996,
        eval_every_s=1200.0,
        checkpoint_every_s=900.0,
    ),
)
