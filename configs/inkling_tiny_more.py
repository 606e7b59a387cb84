"""The tiny model taught further, from the shipped weights on, which teach what they can do already.

python -m launch.train --config=configs/inkling_tiny_more.py --init_from=checkpoints/inkling_tiny --workdir=runs/more
"""

import dataclasses

from configs import inkling_tiny
from tml_jax.data.config import Shares
from tml_jax.train.config import Rehearsal

_BASE = inkling_tiny.CONFIG
_NOTHING = Shares(**{name: 0.0 for name, _ in Shares().items()})
# What it can do, as it was asked for when it learned it: what it says of these is what it is to go on saying.
_KNOWN = dataclasses.replace(
    _NOTHING,
    command=8.0,
    greeting=1.0,
    timer=4.0,
    beeper=2.0,
    barge_in=3.0,
    count=5.0,
    watch=1.0,
    delegate=3.0,
    quiet=2.0,
    talk=3.0,
    two_timers=2.0,
    redirect=2.5,
    side_talk=1.5,
    cue=1.5,
    shadow=1.5,
)
# What it can't do yet, or not well enough.
_NEW = dataclasses.replace(
    _NOTHING,
    command=3.0,
    timer=2.0,
    two_timers=4.0,
    redirect=3.0,
    delegate=4.0,
    count=2.0,
    cue=1.5,
    shadow=1.5,
    translate=3.5,
    elapsed=3.5,
    repair=3.0,
    instructed=3.5,
)
CONFIG = dataclasses.replace(
    _BASE,
    name="inkling_tiny_more",
    data=dataclasses.replace(_BASE.data, shares=_NEW),
    train=dataclasses.replace(
        _BASE.train,
        minutes=80.0,
        learning_rate=8e-4,
        adam_learning_rate=6e-4,
        warmup_steps=30,
        cooldown=0.6,
        ema=0.99,
        eval_every_s=1800.0,
        checkpoint_every_s=600.0,
        # Three quarters of its weights: what they know stays as it is, and so does their file.
        frozen=("mlp.gate_up", "mlp.down", "audio.table"),
    ),
    rehearsal=Rehearsal(
        dataclasses.replace(
            _BASE.data,
            shares=_KNOWN,
            seed=1,
            behaviour=dataclasses.replace(_BASE.data.behaviour, aloud_share=0.0),
        ),
    ),
)
