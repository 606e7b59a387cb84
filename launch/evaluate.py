"""Measures a model's behaviour: ``python -m launch.evaluate --suite=smoke --checkpoint=checkpoints/inkling_tiny``."""

import dataclasses
import json
import pathlib
import sys

from absl import app, flags

from tml_jax.checkpoint.store import load_model
from tml_jax.data.config import DataConfig
from tml_jax.data.pipeline import open_bank
from tml_jax.data.simulator import Simulator
from tml_jax.eval.metrics import judge, summarise
from tml_jax.eval.rollout import Rollout
from tml_jax.eval.timeline import Behaviour
from tml_jax.model.interaction import InteractionModel

SUITE = flags.DEFINE_enum("suite", "smoke", ["smoke"], "What to measure.")
CHECKPOINT = flags.DEFINE_string("checkpoint", "checkpoints/inkling_tiny", "The model.")
BANK = flags.DEFINE_string("bank", "checkpoints/speech_bank", "The speech bank.")
SPLIT = flags.DEFINE_enum(
    "split", "heldout", ["heldout", "train"], "Whose voices: held-out ones, or those of training."
)
ENGINES = flags.DEFINE_list("engines", [], "Only users of these speech engines; empty: all.")
CONVERSATIONS = flags.DEFINE_integer("conversations", 24, "Conversations a scenario.")
SEED = flags.DEFINE_integer("seed", 1000, "Of the simulated users.")
JSON = flags.DEFINE_string("json", None, "Write the figures there, too.")

SCENARIOS = ("command", "greeting", "timer", "beeper", "barge_in", "count", "delegate", "watch", "quiet")
# The smoke suite's bars: figure -> (at least?, bar).
BARS = {
    "answer_in_time": (True, 0.9),
    "hesitation_false_speech": (False, 0.1),
    "count_exact": (True, 0.8),
    "stop_silent_in_time": (True, 0.8),
}


def main(argv: list[str]) -> None:
    """Runs the command."""
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}.")
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
    model_config, params, tokenizer = load_model(CHECKPOINT.value)
    config = DataConfig(bank=BANK.value, seed=SEED.value)
    if ENGINES.value:
        # Engines that are not asked for weigh nothing.
        every = {clip.engine for clip in open_bank(config.bank).clips}
        config = dataclasses.replace(config, engines=tuple((e, float(e in ENGINES.value)) for e in sorted(every)))
    simulator = Simulator(config, model_config.stream, open_bank(config.bank), SPLIT.value)
    rollout = Rollout(InteractionModel(model_config), params, tokenizer, slots=24)
    verdicts = []
    for scenario in SCENARIOS:
        users = [simulator.conversation(i, scenario) for i in range(CONVERSATIONS.value)]
        for user, events in zip(users, rollout.run(users), strict=True):
            verdicts += judge(user.expectations, Behaviour.from_events(events), user.duration_s)
    return summarise(verdicts)


if __name__ == "__main__":
    app.run(main)
