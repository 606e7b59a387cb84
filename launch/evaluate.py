"""Measures a model's behaviour: ``python -m launch.evaluate --suite=smoke --checkpoint=checkpoints/inkling_tiny``.

The suites: `smoke` plays simulated users of every scenario; `overheard` plays a folder of recordings of people who talk
to somebody else (``--recordings=FOLDER``), all through which a model should be silent.
"""

import dataclasses
import json
import pathlib
import sys

import jax.numpy as jnp
from absl import flags
from tqdm import tqdm

from launch import cli
from tml_jax.checkpoint.store import load_model
from tml_jax.data.config import DataConfig
from tml_jax.data.pipeline import open_bank
from tml_jax.data.scenarios import SCENARIOS
from tml_jax.data.simulator import Simulator
from tml_jax.data.timeline import Conversation
from tml_jax.eval import overheard
from tml_jax.eval.metrics import judge, summarise
from tml_jax.eval.rollout import Rollout
from tml_jax.executor.executor import Executor
from tml_jax.model.interaction import InteractionModel
from tml_jax.wire.behaviour import Behaviour

SUITE = flags.DEFINE_enum("suite", "smoke", ["smoke", "overheard"], "What to measure.")
CHECKPOINT = cli.checkpoint()
MESH = cli.mesh("the first device alone")
DTYPE = cli.dtype()
WEIGHTS = cli.weights()
BANK = cli.bank()
SPLIT = flags.DEFINE_enum(
    "split", "heldout", ["heldout", "train"], "Whose voices: held-out ones, or those of training."
)
ENGINES = flags.DEFINE_list("engines", [], "Only users of these speech engines; empty: all.")
CONVERSATIONS = flags.DEFINE_integer("conversations", 24, "Conversations a scenario.", lower_bound=1)
RECORDINGS = flags.DEFINE_string("recordings", None, "Of the suite `overheard`: a folder of sound files.")
SEED = cli.seed(1000, "Of the simulated users.")
JSON = cli.json_out()

# The bars of a small model: figure -> (at least?, bar).
BARS = {
    "answer_in_time": (True, 0.96),
    "answer_words_right": (True, 0.92),
    "count_exact": (True, 0.97),
    "delegate_in_time": (True, 0.98),
    "goes_on_rate": (True, 0.8),
    "hesitation_false_speech": (False, 0.015),
    "overheard_starts_a_minute": (False, 0.5),
    "quiet_false_speech": (False, 0.015),
    "stop_silent_in_time": (True, 0.98),
    "timer_in_time": (True, 0.93),
}
SLOTS = 24


def main(argv: list[str]) -> None:
    """Runs the command."""
    del argv
    try:
        figures = _measure()
    except ValueError as error:
        sys.exit(f"launch.evaluate: {error}")
    for name, value in figures.items():
        print(f"{name:32s} {value:8.3f}{_verdict(name, value)}")
    if JSON.value:
        pathlib.Path(JSON.value).write_text(json.dumps(figures, indent=1) + "\n")


def _verdict(name: str, value: float) -> str:
    if name not in BARS:
        return ""
    at_least, bar = BARS[name]
    met = value >= bar if at_least else value <= bar
    return f"  ({'at least' if at_least else 'at most'} {bar}: {'met' if met else 'MISSED'})"


def _measure() -> dict[str, float]:
    executor, dtype = Executor.of_shape(cli.mesh_shape(MESH)), jnp.dtype(DTYPE.value)
    model_config, params, tokenizer = load_model(
        CHECKPOINT.value, dtype=dtype, mesh=executor.mesh, int8=WEIGHTS.value == "int8"
    )
    rollout = Rollout(InteractionModel(model_config, dtype), params, tokenizer, SLOTS, executor)
    if SUITE.value == "overheard":
        return _overheard(rollout)
    config = DataConfig(bank=BANK.value, seed=SEED.value)
    if ENGINES.value:
        # Engines that are not asked for weigh nothing.
        every = {clip.engine for clip in open_bank(config.bank).clips}
        config = dataclasses.replace(config, engines=tuple((e, float(e in ENGINES.value)) for e in sorted(every)))
    simulator = Simulator(config, model_config.stream, open_bank(config.bank), SPLIT.value)
    verdicts = []
    with tqdm(total=CONVERSATIONS.value * len(SCENARIOS), unit="conversation") as bar:
        for scenario in SCENARIOS:
            bar.set_description(scenario)
            for first in range(0, CONVERSATIONS.value, SLOTS):
                numbers = range(first, min(first + SLOTS, CONVERSATIONS.value))
                users = [simulator.conversation(i, scenario) for i in numbers]
                for user, events in zip(users, rollout.run(users, seed=first), strict=True):
                    verdicts += judge(user.expectations, Behaviour.from_events(events), user.duration_s)
                bar.update(len(users))
    return summarise(verdicts)


def _overheard(rollout: Rollout) -> dict[str, float]:
    if RECORDINGS.value is None:
        raise ValueError("The suite `overheard` needs recordings of people: --recordings=FOLDER.")
    users = list(overheard.conversations(RECORDINGS.value, SEED.value))
    heard: list[tuple[Conversation, Behaviour]] = []
    with tqdm(total=len(users), unit="conversation") as bar:
        for first in range(0, len(users), SLOTS):
            now = users[first : first + SLOTS]
            heard += zip(now, map(Behaviour.from_events, rollout.run(now, seed=first)), strict=True)
            bar.update(len(now))
    return overheard.summarise(heard)


if __name__ == "__main__":
    cli.run(main)
