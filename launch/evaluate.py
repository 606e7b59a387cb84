"""Measures how a system behaves: ``python -m launch.evaluate --suite=smoke --target=grpc:HOST:PORT``.

The suites: `smoke` plays simulated users of every scenario, and gives the panel beside its figures; `overheard` plays a
folder of recordings of people who talk to somebody else (``--recordings=FOLDER``), all through which a system should be
silent; `full_duplex_bench` plays the samples of Full-Duplex-Bench in ``--data=FOLDER`` or, without it, own ones.
`repcount`, `charades`, `proactive`, `timed_speech` and `audio_multichallenge` score recordings, ``folder:DIR``, by the
annotations in ``--data=FILE``; without it they play own data, whose figures are comparable with no published ones.
`full_duplex_bench_v2` and `_v3` score the files that those benchmarks' own pipelines leave, ``folder:DIR``.

The targets: a saved model; a server, through the gRPC door; a folder of what was recorded before, by ``--out=FOLDER``
or by anybody else (docs/bench.md says how it looks).
"""

import dataclasses
import functools
import json
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

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
from tml_jax.eval import (
    bootstrap,
    findings,
    full_duplex_bench,
    full_duplex_samples,
    miniatures,
    overheard,
    panel,
    report,
    targets,
)
from tml_jax.eval.metrics import summarise
from tml_jax.eval.recorded import Recorded, load_all
from tml_jax.eval.rollout import Rollout
from tml_jax.eval.suites import (
    audio_multichallenge,
    charades,
    full_duplex_v2,
    full_duplex_v3,
    judge,
    proactive,
    recordings,
    repcount,
    timed_speech,
)
from tml_jax.executor.executor import Executor
from tml_jax.model.interaction import InteractionModel
from tml_jax.streams.micro_turn import StreamSpec
from tml_jax.wire.behaviour import Behaviour

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
    "data",
    None,
    "Of full_duplex_bench: its published data, or a part of it; none: own samples. Of others: the file of annotations.",
)
JUDGE = flags.DEFINE_list(
    "judge", [], "Of the suites that need one: BASE_URL,MODEL of a chat model; its key is OPENAI_API_KEY. None: words."
)
PEOPLE = flags.DEFINE_string("people", None, "Of full_duplex_bench: its icc_gt_distribution.json.")
SEED = cli.seed(1000, "Of the simulated users.")
OUT = cli.out_folder("out", None, "Keep the recorded timelines here, to be scored again as folder:DIR.")
JSON = cli.json_out()
REPORT = cli.out_file("report", None, "Write a page here, HTML: figures with intervals, and cases to look at and hear.")

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
Figures = Mapping[str, float | bootstrap.Figure]


class Suite(NamedTuple):
    """What is measured.

    Attributes:
      cases: what is played, for a stream.
      score: of what was recorded.
      see: what was expected in a case, and came; none of a case in which nothing is.
      by_sound: whether scoring needs the sound.
      otherwise: who judges what words mean where no chat model does; empty: nobody has to.
      data: what ``--data`` brings, to be "played", or recordings to be "scored" by; without it own data is played in
        its place. Empty: nothing.
    """

    cases: Callable[[StreamSpec], list[targets.Case]]
    score: Callable[[Iterable[Recorded]], Figures]
    see: Callable[[Recorded], list[findings.Seen]] = lambda case: []
    by_sound: bool = False
    otherwise: str = ""
    data: str = ""


def main(argv: list[str]) -> None:
    """Runs the command."""
    del argv
    suite = _SUITES[SUITE.value]
    watch = findings.Watch(suite.see)
    try:
        cases = _recorded(suite)
        scored = suite.score(watch.watch(cases) if REPORT.value else cases)
    except (ValueError, client.SessionError) as error:
        sys.exit(f"launch.evaluate: {error}")
    figures = bootstrap.flat(scored)
    for name, value in figures.items():
        print(f"{name:48s} {value:8.3f}{_verdict(name, value)}")
    note = miniatures.NOTE if suite.data and not DATA.value and not TARGET.value.startswith("folder:") else ""
    if note:
        print(f"({note})")
    if JSON.value:
        pathlib.Path(JSON.value).write_text(json.dumps(figures, indent=1) + "\n")
    if REPORT.value:
        facts = {"target": TARGET.value, "on": time.strftime("%Y-%m-%d")} | ({"data": note} if note else {})
        if suite.otherwise:
            facts["judge"] = JUDGE.value[1] if JUDGE.value else suite.otherwise
        report.write(findings.report_of(SUITE.value, scored, BARS, watch.chosen(), facts), REPORT.value)


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
    if suite.data == "scored" and DATA.value:
        raise _only_recordings()
    target = _grpc(where) if kind == "grpc" else _checkpoint(where)
    cases = suite.cases(target.spec)
    sound = suite.by_sound or bool(OUT.value or REPORT.value)
    for case in tqdm(target.play(cases, sound=sound), total=len(cases), unit="case"):
        if OUT.value:
            case.save(pathlib.Path(OUT.value))
        yield case


def _only_recordings() -> ValueError:
    needs = "recordings, --target=folder:DIR, by the benchmark's annotations, --data=FILE; it plays own data alone"
    return ValueError(f"The suite `{SUITE.value}` scores {needs}.")


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


def _smoke_score(cases: Iterable[Recorded]) -> Figures:
    judged = [panel.judged(case) for case in cases]
    verdicts = [verdict for case in judged for _, verdict in case if verdict is not None]
    return summarise(verdicts) | panel.estimates(panel.figures(judged))


def _overheard_cases(spec: StreamSpec) -> list[targets.Case]:
    del spec
    if RECORDINGS.value is None:
        raise ValueError("The suite `overheard` needs recordings of people: --recordings=FOLDER.")
    talks = overheard.conversations(RECORDINGS.value, SEED.value)
    return [targets.Case(f"overheard/{i}", "overheard", "talk", talk, i) for i, talk in enumerate(talks)]


def _overheard_score(cases: Iterable[Recorded]) -> Figures:
    return overheard.summarise((case.duration_s, case.behaviour()) for case in cases)


def _full_duplex_cases(spec: StreamSpec) -> list[targets.Case]:
    if DATA.value:
        return full_duplex_bench.read_cases(pathlib.Path(DATA.value))
    return full_duplex_samples.draw(open_bank(BANK.value), spec, SEED.value, CONVERSATIONS.value)


def _full_duplex_score(cases: Iterable[Recorded]) -> Figures:
    try:
        people = json.loads(pathlib.Path(PEOPLE.value).read_text()) if PEOPLE.value else None
    except ValueError as error:
        raise ValueError(f"{PEOPLE.value} is no JSON file: {error}.") from error
    return full_duplex_bench.summarise(cases, people)


@functools.cache
def _judge() -> judge.ChatJudge | None:
    if JUDGE.value and len(JUDGE.value) != 2:
        raise ValueError(f"A judge is BASE_URL,MODEL, not {','.join(JUDGE.value)!r}.")
    return (
        judge.ChatJudge(JUDGE.value[0], JUDGE.value[1], os.environ.get("OPENAI_API_KEY", "none"))
        if JUDGE.value
        else None
    )


def _published(name: str, module: Any, otherwise: judge.Judge | None = None, judged: bool = False) -> Suite:
    """A benchmark of `eval/suites/`: recordings, by annotations that the user brings, or own data, played.

    Args:
      name: of the suite.
      module: it.
      otherwise: who judges where no chat model is given.
      judged: whether anybody does.
    """
    own: list[Any] = []

    def cases(spec: StreamSpec) -> list[targets.Case]:
        drawn = miniatures.draw(name, open_bank(BANK.value), spec, SEED.value, CONVERSATIONS.value)
        with tempfile.TemporaryDirectory() as folder:
            own.extend(module.load(drawn.write(pathlib.Path(OUT.value or folder))))
        if OUT.value:
            drawn.write_videos(pathlib.Path(OUT.value))
        return list(drawn.cases)

    def load() -> list[Any]:
        kept = pathlib.Path(targets.parse(TARGET.value)[1]) / miniatures.file_of(name)
        if not own and not DATA.value and not kept.exists():
            raise _only_recordings()
        return own or module.load(DATA.value or kept)

    def score(case: Any, done: Behaviour) -> Any:
        return module.score(case, done, _judge() or otherwise) if judged else module.score(case, done)

    annotated = recordings.Annotated(load, score)

    def see(recorded: Recorded) -> list[findings.Seen]:
        scored = annotated.scored(recorded)
        return findings.annotated(recorded, module.told(*scored)) if scored else []

    def figures(played: Iterable[Recorded]) -> Figures:
        return annotated.figures(played, module.summarise)

    return Suite(cases, figures, see, otherwise=judge.WordJudge.name if judged else "", data="scored")


def _left(read: Callable[[str], Figures], otherwise: str) -> Suite:
    """A benchmark of what a system left behind, without its sound; arguments as of `Suite`."""

    def score(cases: Iterable[Recorded]) -> Figures:
        del cases
        kind, where = targets.parse(TARGET.value)
        if kind != "folder":
            raise ValueError(f"The suite `{SUITE.value}` scores what a system left behind: --target=folder:DIR.")
        return read(where)

    return Suite(lambda spec: [], score, otherwise=otherwise)


def _tool_calls(folder: str) -> Figures:
    by_provider = full_duplex_v3.load(folder, DATA.value)
    told = {
        provider: full_duplex_v3.summarise([full_duplex_v3.score(example, _judge()) for example in examples])
        for provider, examples in by_provider.items()
    }
    if len(told) == 1:
        return next(iter(told.values()))
    return {f"{provider}_{name}": figure for provider, of in told.items() for name, figure in of.items()}


def _rated(folder: str) -> Figures:
    return full_duplex_v2.summarise(full_duplex_v2.load(folder, DATA.value, _judge()))


_SUITES = {
    "smoke": Suite(_smoke_cases, _smoke_score, findings.expected),
    "overheard": Suite(_overheard_cases, _overheard_score, findings.silence),
    full_duplex_bench.SUITE: Suite(
        _full_duplex_cases, _full_duplex_score, findings.FullDuplex(), by_sound=True, data="played"
    ),
    "full_duplex_bench_v2": _left(_rated, "whoever made the ratings"),
    "full_duplex_bench_v3": _left(_tool_calls, "equal text (offline substitute)"),
    "repcount": _published("repcount", repcount),
    "charades": _published("charades", charades),
    "proactive": _published("proactive", proactive, judge.WordJudge(), judged=True),
    "timed_speech": _published("timed_speech", timed_speech, judged=True),
    "audio_multichallenge": _published("audio_multichallenge", audio_multichallenge, judge.WordJudge(), judged=True),
}
SUITE = flags.DEFINE_enum("suite", "smoke", list(_SUITES), "What to measure.")


if __name__ == "__main__":
    cli.run(main)
