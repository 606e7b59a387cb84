"""Measures how a system behaves: ``python -m launch.evaluate --suite=smoke --target=grpc:HOST:PORT``.

The suites: `smoke` plays simulated users of every scenario, and gives the panel beside its figures; `overheard` plays a
folder of recordings of people who talk to somebody else (``--recordings=FOLDER``), all through which a system should be
silent; `full_duplex_bench` plays the samples of Full-Duplex-Bench in ``--data=FOLDER`` or, without it, own ones.

The targets: a saved model; a server, through the gRPC door; a folder of what was recorded before, by ``--out=FOLDER``
or by anybody else (docs/bench.md says how it looks).
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax.numpy as jnp
from absl import app, flags
from tqdm import tqdm

from launch import cli, reach
from tml_jax import client
from tml_jax.checkpoint.store import load_model
from tml_jax.data.config import DataConfig
from tml_jax.data.pipeline import open_bank
from tml_jax.data.scenarios import SCENARIOS
from tml_jax.data.simulator import Simulator
from tml_jax.eval import full_duplex_bench, full_duplex_samples, overheard, panel, targets
from tml_jax.eval.metrics import summarise
from tml_jax.eval.recorded import Recorded, load_all
from tml_jax.eval.rollout import Rollout
from tml_jax.executor.executor import Executor
from tml_jax.model.interaction import InteractionModel
from tml_jax.streams.micro_turn import StreamSpec

TARGET = flags.DEFINE_string(
    "target", "checkpoint:checkpoints/inkling_tiny", "What to measure: checkpoint:PATH, grpc:HOST:PORT or folder:DIR."
)
MESH = cli.mesh("the first device alone")
DTYPE = cli.dtype()
WEIGHTS = cli.weights()
REACH = reach.credentials()
PACE = flags.DEFINE_enum(
    "pace", "real", ["real", "fast"], "Of grpc: as people speak, or as fast as --faster_than_real_time takes it."
)
SESSIONS = flags.DEFINE_integer("sessions", 1, "Of grpc: conversations at once.", lower_bound=1)
BANK = cli.bank()
SPLIT = flags.DEFINE_enum(
    "split", "heldout", ["heldout", "train"], "Of smoke: whose voices, held-out ones or those of training."
)
ENGINES = flags.DEFINE_list("engines", [], "Of smoke: only users of these speech engines; empty: all.")
CONVERSATIONS = flags.DEFINE_integer("conversations", 24, "Conversations a scenario or a task.", lower_bound=1)
RECORDINGS = flags.DEFINE_string("recordings", None, "Of overheard: a folder of sound files.")
DATA = flags.DEFINE_string(
    "data", None, "Of full_duplex_bench: its published data, or a part of it; none: own samples."
)
PEOPLE = flags.DEFINE_string("people", None, "Of full_duplex_bench: its icc_gt_distribution.json.")
SEED = cli.seed(1000, "Of the simulated users.")
OUT = cli.out_folder("out", None, "Keep the recorded timelines here, to be scored again as folder:DIR.")
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


class Suite(NamedTuple):
    """What is played, for a stream; how what was recorded is scored; whether that needs the sound."""

    cases: Callable[[StreamSpec], list[targets.Case]]
    score: Callable[[Iterable[Recorded]], dict[str, float]]
    by_sound: bool


def main(argv: list[str]) -> None:
    """Runs the command."""
    del argv
    suite = _SUITES[SUITE.value]
    try:
        figures = suite.score(_recorded(suite))
    except (ValueError, client.SessionError) as error:
        sys.exit(f"launch.evaluate: {error}")
    for name, value in figures.items():
        print(f"{name:48s} {value:8.3f}{_verdict(name, value)}")
    if JSON.value:
        pathlib.Path(JSON.value).write_text(json.dumps(figures, indent=1) + "\n")


def _verdict(name: str, value: float) -> str:
    if name not in BARS:
        return ""
    at_least, bar = BARS[name]
    met = value >= bar if at_least else value <= bar
    return f"  ({'at least' if at_least else 'at most'} {bar}: {'met' if met else 'MISSED'})"


def _recorded(suite: Suite) -> Iterator[Recorded]:
    """The cases, played or read; kept where that is asked for."""
    kind, where = targets.parse(TARGET.value)
    if kind == "folder":
        if OUT.value:
            raise app.UsageError("--out keeps what is played; folder:DIR plays nothing.")
        yield from (case for case in load_all(pathlib.Path(where)) if case.suite in ("", SUITE.value))
        return
    target = _grpc(where) if kind == "grpc" else _checkpoint(where)
    cases = suite.cases(target.spec)
    for case in tqdm(target.play(cases, sound=suite.by_sound or bool(OUT.value)), total=len(cases), unit="case"):
        if OUT.value:
            case.save(pathlib.Path(OUT.value))
        yield case


def _checkpoint(path: str) -> targets.Target:
    executor, dtype = Executor.of_shape(cli.mesh_shape(MESH)), jnp.dtype(DTYPE.value)
    config, params, tokenizer = load_model(path, dtype=dtype, mesh=executor.mesh, int8=WEIGHTS.value == "int8")
    return targets.Checkpoint(Rollout(InteractionModel(config, dtype), params, tokenizer, SLOTS, executor))


def _grpc(address: str) -> targets.Target:
    return targets.Grpc(REACH(address), real_time=PACE.value == "real", sessions=SESSIONS.value)


def _smoke_cases(spec: StreamSpec) -> list[targets.Case]:
    config = DataConfig(bank=BANK.value, seed=SEED.value)
    if ENGINES.value:
        # Engines that are not asked for weigh nothing.
        every = {clip.engine for clip in open_bank(config.bank).clips}
        config = dataclasses.replace(config, engines=tuple((e, float(e in ENGINES.value)) for e in sorted(every)))
    simulator = Simulator(config, spec, open_bank(config.bank), SPLIT.value)
    return [
        targets.Case(f"smoke/{scenario}/{i}", "smoke", scenario, simulator.conversation(i, scenario), i)
        for scenario in SCENARIOS
        for i in range(CONVERSATIONS.value)
    ]


def _smoke_score(cases: Iterable[Recorded]) -> dict[str, float]:
    judged = [panel.judged(case) for case in cases]
    verdicts = [verdict for case in judged for _, verdict in case if verdict is not None]
    return summarise(verdicts) | panel.shown(panel.figures(judged))


def _overheard_cases(spec: StreamSpec) -> list[targets.Case]:
    del spec
    if RECORDINGS.value is None:
        raise ValueError("The suite `overheard` needs recordings of people: --recordings=FOLDER.")
    talks = overheard.conversations(RECORDINGS.value, SEED.value)
    return [targets.Case(f"overheard/{i}", "overheard", "talk", talk, i) for i, talk in enumerate(talks)]


def _overheard_score(cases: Iterable[Recorded]) -> dict[str, float]:
    return overheard.summarise((case.duration_s, case.behaviour()) for case in cases)


def _full_duplex_cases(spec: StreamSpec) -> list[targets.Case]:
    if DATA.value:
        return full_duplex_bench.read_cases(pathlib.Path(DATA.value))
    return full_duplex_samples.draw(open_bank(BANK.value), spec, SEED.value, CONVERSATIONS.value)


def _full_duplex_score(cases: Iterable[Recorded]) -> dict[str, float]:
    try:
        people = json.loads(pathlib.Path(PEOPLE.value).read_text()) if PEOPLE.value else None
    except ValueError as error:
        raise ValueError(f"{PEOPLE.value} is no JSON file: {error}.") from error
    return full_duplex_bench.summarise(cases, people)


_SUITES = {
    "smoke": Suite(_smoke_cases, _smoke_score, by_sound=False),
    "overheard": Suite(_overheard_cases, _overheard_score, by_sound=False),
    full_duplex_bench.SUITE: Suite(_full_duplex_cases, _full_duplex_score, by_sound=True),
}
SUITE = flags.DEFINE_enum("suite", "smoke", list(_SUITES), "What to measure.")


if __name__ == "__main__":
    cli.run(main)
