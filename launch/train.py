"""Trains an experiment: ``python -m launch.train --config=configs/inkling_tiny.py --workdir=runs/tiny``."""

import dataclasses
import logging
import sys

import jax
from absl import app, flags

from tml_jax.eval.describe import describe
from tml_jax.train.config import ExperimentConfig, load_experiment

CONFIG = flags.DEFINE_string("config", "configs/inkling_tiny.py", "The experiment's file.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints, metrics and the model go.")
TOKENIZER = flags.DEFINE_string("tokenizer", "checkpoints/inkling_tiny/tokenizer.json", "The model's tokenizer.json.")
BANK = flags.DEFINE_string("bank", None, "The speech bank, where it isn't the experiment's own.")
STEPS = flags.DEFINE_integer("steps", None, "Steps of the whole run, where not the experiment's own.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Conversations a step, where not the experiment's own.")
STOP_AFTER = flags.DEFINE_integer("stop_after", None, "Stop at this step, as if the run had been cut there.")
DESCRIBE = flags.DEFINE_bool("describe", False, "Print the model's parameters and costs, allocate nothing, and end.")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other hosts of a pod (jax.distributed.initialize).")


def _experiment() -> ExperimentConfig:
    experiment = load_experiment(CONFIG.value)
    changes = {k: v for k, v in {"steps": STEPS.value, "batch_size": BATCH_SIZE.value}.items() if v is not None}
    data = {"bank": BANK.value} if BANK.value else {}
    return dataclasses.replace(
        experiment,
        train=dataclasses.replace(experiment.train, **changes),
        data=dataclasses.replace(experiment.data, **data),
    )


def main(argv: list[str]) -> None:
    """Runs the command."""
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}.")
    logging.getLogger("tml_jax").setLevel(logging.INFO)
    try:
        experiment = _experiment()
        if DESCRIBE.value:
            print(describe(experiment))
            return
        if not WORKDIR.value:
            raise app.UsageError("--workdir says where the run goes; it is required.")
        if DISTRIBUTED.value:
            jax.distributed.initialize()
        from tml_jax.train.loop import train

        train(experiment, WORKDIR.value, TOKENIZER.value, STOP_AFTER.value)
    except ValueError as error:
        sys.exit(f"launch.train: {error}")


if __name__ == "__main__":
    app.run(main)
