"""An experiment that takes a few steps in a test, on up to four processes."""

import dataclasses

from tests.train.experiment_small import CONFIG as SMALL

CONFIG = dataclasses.replace(
    SMALL,
    data=dataclasses.replace(SMALL.data, group=1),
    train=dataclasses.replace(SMALL.train, workers=0, steps=10, eval_every=100),
)
