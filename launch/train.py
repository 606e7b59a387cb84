"""Trains an experiment: ``python -m launch.train --config=configs/inkling_tiny.py --workdir=runs/tiny``.

Ctrl-C or SIGTERM ends it after the step it is in, with a checkpoint that the same command goes on from, and with exit
status 130 or 143; a second one ends it at once. On a pod SIGTERM on any host ends all after the same step; where
one is dead or stuck, the others end within a minute, with status 75. The same command, on as many hosts or others, goes
on with the conversations that would have come next.

With JAX_COMPILATION_CACHE_DIR=<folder> in the environment the next run finds there what this one compiled.
"""

import dataclasses
import logging
import sys
import time
from typing import Any

from absl import app, flags

from launch import cli
from tml_jax.perf.describe import describe
from tml_jax.train.config import ExperimentConfig, load_experiment
from tml_jax.train.interrupt import Interruption, PodInterruption

CONFIG = cli.config("configs/inkling_tiny.py")
WORKDIR = cli.out_folder("workdir", None, "Where checkpoints, metrics and the model go.")
TOKENIZER = flags.DEFINE_string("tokenizer", "checkpoints/inkling_tiny/tokenizer.json", "The model's tokenizer.json.")
BANK = cli.bank(None)
STEPS = flags.DEFINE_integer("steps", None, "Steps of the whole run, where not the experiment's own.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Conversations a step, where not the experiment's own.", lower_bound=1
)
MINUTES = flags.DEFINE_float("minutes", None, "Train for so long, start-up and saving included.", lower_bound=0.1)
LEARNING_RATE = flags.DEFINE_float(
    "learning_rate", None, "Muon's peak rate, where not the experiment's own; AdamW's goes with it.", lower_bound=1e-9
)
WORKERS = flags.DEFINE_integer(
    "workers", None, "Processes that make data, where not the experiment's own number.", lower_bound=0
)
REPLAY = flags.DEFINE_float(
    "replay", None, "Share of a batch that was in an earlier one, where not the experiment's own.", lower_bound=0.0
)
LOCAL = cli.out_folder("local", None, "On a disk of each host's own: checkpoints between those in the workdir.")
MESH = cli.mesh("the experiment's own")
PROFILE = flags.DEFINE_list("profile", None, "First and last step of which to write a trace, such as 10,12.")
INIT_FROM = flags.DEFINE_string(
    "init_from",
    None,
    "A model to begin with, instead of fresh weights: published, saved, in Orbax arrays, or the folder of another run. "
    "Where the experiment rehearses, it is the teacher too.",
)
STOP_AFTER = flags.DEFINE_integer(
    "stop_after", None, "Stop at this step, as if the run had been cut there; 0 imports --init_from.", lower_bound=0
)
DESCRIBE = flags.DEFINE_bool("describe", False, "Print the model's parameters and costs, allocate nothing, and end.")
POD = cli.pod()


@flags.validator("profile")
def _check_profile(steps: list[str] | None) -> bool:
    if steps is not None and not (
        len(steps) == 2 and all(step.isdigit() for step in steps) and 1 <= int(steps[0]) <= int(steps[1])
    ):
        raise flags.ValidationError(f"a first and a last step are needed, such as 10,12, not {','.join(steps)}.")
    return True


def _experiment() -> ExperimentConfig:
    experiment = load_experiment(CONFIG.value)
    given = {"steps": STEPS, "batch_size": BATCH_SIZE, "minutes": MINUTES, "workers": WORKERS, "local": LOCAL}
    changes: dict[str, Any] = {name: flag.value for name, flag in given.items() if flag.value is not None}
    if MESH.value:
        changes["mesh"] = cli.mesh_shape(MESH)
    if PROFILE.value is not None:
        changes["profile"] = tuple(map(int, PROFILE.value))
    if STEPS.value is not None:
        if MINUTES.value is not None:
            raise ValueError("A run has --steps or --minutes, not both.")
        changes["minutes"] = None
    if LEARNING_RATE.value is not None:
        factor = LEARNING_RATE.value / experiment.train.learning_rate
        changes |= {
            "learning_rate": LEARNING_RATE.value,
            "adam_learning_rate": experiment.train.adam_learning_rate * factor,
        }
    data: dict[str, Any] = {"bank": BANK.value} if BANK.value else {}
    if REPLAY.value is not None:
        data["replay"] = REPLAY.value
    rehearsal = experiment.rehearsal
    return dataclasses.replace(
        experiment,
        train=dataclasses.replace(experiment.train, **changes),
        data=dataclasses.replace(experiment.data, **data),
        rehearsal=rehearsal and dataclasses.replace(rehearsal, data=dataclasses.replace(rehearsal.data, **data)),
    )


def main(argv: list[str]) -> None:
    """Runs the command."""
    del argv
    began = time.monotonic()
    logging.getLogger("tml_jax").setLevel(logging.INFO)
    interruption = Interruption()
    try:
        experiment = _experiment()
        if DESCRIBE.value:
            print(describe(experiment))
            return
        if not WORKDIR.value:
            raise app.UsageError("--workdir says where the run goes; it is required.")
        if cli.join_pod(POD):
            interruption = PodInterruption()
        with interruption:
            from tml_jax.train.loop import Run

            run = Run(experiment, WORKDIR.value, TOKENIZER.value, INIT_FROM.value, began, interruption)
            run.train(STOP_AFTER.value)
    except ValueError as error:
        sys.exit(f"launch.train: {error}")


if __name__ == "__main__":
    cli.run(main, at_once=True)
