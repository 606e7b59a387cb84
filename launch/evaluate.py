"""Measures how a system behaves: ``python -m launch.evaluate --suite=smoke --target=grpc:HOST:PORT``.

The suites: `smoke` plays simulated users of every scenario, and gives the panel beside its figures; `overheard` plays
a folder of recordings of people who talk to somebody else (``--recordings=FOLDER``), all through which a system should
be silent; `load` times a server's steps at 1, 8 and 16 sessions; `full_duplex_bench` plays the samples of
Full-Duplex-Bench in ``--data=FOLDER`` or, without it, own ones. `all` plays each of these that it can, and puts what
the model is to show into one table.
`repcount`, `charades`, `proactive`, `timed_speech` and `audio_multichallenge` score recordings, ``folder:DIR``, by the
annotations in ``--data=FILE``; without it they play own data, whose figures are comparable with no published ones.
`full_duplex_bench_v2` and `_v3` score the files that those benchmarks' own pipelines leave, ``folder:DIR``.

The targets: a saved model; a server, through the gRPC door; a folder of what was recorded before, by ``--out=FOLDER``
or by anybody else (docs/bench.md says how it looks).
"""

import dataclasses
import functools
import itertools
import json
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from absl import app, flags
from tqdm import tqdm

from launch import cli, reach
from tml_jax import client
from tml_jax.checkpoint.store import load_model
from tml_jax.checkpoint.voice import read_voice
from tml_jax.data.config import DataConfig
from tml_jax.data.pipeline import open_bank
from tml_jax.data.scenarios import SCENARIOS
from tml_jax.data.simulator import Simulator
from tml_jax.eval import (
    bootstrap,
    findings,
    full_duplex_bench,
    full_duplex_samples,
    hearing,
    miniatures,
    overheard,
    panel,
    report,
    shows,
    simulated,
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
    "split", "heldout", ["heldout", "train"], "Of simulated users: whose voices, held-out ones or those of training."
)
ENGINES = flags.DEFINE_list("engines", [], "Of simulated users: only those of these speech engines; empty: all.")
SCENARIO = flags.DEFINE_list("scenarios", [], "Of smoke: only these scenarios; empty: all.")
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
ALL = "all"
SLOTS = 24
Figures = Mapping[str, float | bootstrap.Figure]


class Suite(NamedTuple):
    """What is measured.

    Attributes:
      cases: what is played, for a stream; None: what a system left behind is scored.
      score: of what was recorded.
      see: what was expected in a case, and came; none of a case in which nothing is.
      lacks: what it cannot be measured without and has not got; empty where nothing is missing.
      by_sound: whether scoring needs the sound.
      otherwise: who judges what words mean where no chat model does; empty: nobody has to.
      data: what ``--data`` brings, to be "played", or recordings to be "scored" by; without it own data is played in
        its place. Empty: nothing.
    """

    cases: Callable[[StreamSpec], list[targets.Case]] | None
    score: Callable[[Iterable[Recorded]], Figures]
    see: Callable[[Recorded], list[findings.Seen]] = lambda case: []
    lacks: Callable[[], str] = lambda: ""
    by_sound: bool = False
    otherwise: str = ""
    data: str = ""


def main(argv: list[str]) -> None:
    """Runs the command."""
    del argv
    if SUITE.value == ALL and DATA.value:
        raise app.UsageError("--data is of one suite: --suite=all plays own data.")
    shown = shows.Shown(_ear()) if SUITE.value == ALL else None
    found, refused = _found(shown)
    table = shown.table() if shown else []
    told = {one.suite: bootstrap.flat(one.figures) for one in found}
    own = [one.suite for one in found if _SUITES[one.suite].data]
    note = miniatures.NOTE if own and not DATA.value and targets.parse(TARGET.value)[0] != "folder" else ""
    _print(told, table)
    if note:
        print(f"({', '.join(own)}: {note})")
    if JSON.value:
        figures = {"table": report.numbers(table)} | told if shown else told[SUITE.value]
        pathlib.Path(JSON.value).write_text(json.dumps(figures, indent=1) + "\n")
    if REPORT.value:
        report.write(findings.report_of(SUITE.value, found, BARS, _facts(found, note), table), REPORT.value)
    if refused:
        sys.exit("launch.evaluate: " + "; ".join(refused))


def _found(shown: shows.Shown | None) -> tuple[list[findings.Found], list[str]]:
    """What was found, and of `all`, of which the rest is still measured, what the system refused."""
    found, refused = list[findings.Found](), list[str]()
    for name in _wanted():
        try:
            found += _measured(name, shown)
        except (ValueError, client.SessionError) as error:
            if not shown or isinstance(error, ValueError):
                sys.exit(f"launch.evaluate: {error}")
            refused.append(f"{name}: {error}")
    return found, refused


def _print(told: Mapping[str, Mapping[str, float]], table: Sequence[report.Row]) -> None:
    """Prints the figures; of `all` under their suites' names, and the table last."""
    for suite, figures in told.items():
        if table:
            print(f"\n{suite}:")
        for name, value in figures.items():
            print(f"{name:48s} {value:8.3f}{_verdict(name, value)}")
    if table:
        print("", *report.plain(table), sep="\n")


def _facts(found: Sequence[findings.Found], note: str) -> dict[str, str]:
    """What the page says of the run."""
    facts = {"target": TARGET.value, "on": time.strftime("%Y-%m-%d")} | ({"data": note} if note else {})
    if judges := dict.fromkeys(who for one in found if (who := _SUITES[one.suite].otherwise)):
        facts["judge"] = JUDGE.value[1] if JUDGE.value else ", ".join(judges)
    return facts


def _wanted() -> list[str]:
    """What is measured: of `all`, what can be played, or was recorded."""
    if SUITE.value != ALL:
        return [SUITE.value]
    return [name for name, suite in _SUITES.items() if suite.cases is not None and not suite.lacks()]


def _measured(name: str, shown: shows.Shown | None) -> list[findings.Found]:
    """What a suite found; of `all`, nothing where there is no case of it."""
    suite, cases = _SUITES[name], _recorded(name)
    watch = findings.Watch(suite.see)
    if shown:
        first = next((case for case in cases if case.suite == name), None)
        if first is None:
            return []
        cases = shown.watch(itertools.chain([first], cases))
    scored = suite.score(watch.watch(cases) if REPORT.value else cases)
    return [findings.Found(name, scored, watch.chosen())]


def _verdict(name: str, value: float) -> str:
    if name not in BARS:
        return ""
    at_least, bar = BARS[name]
    met = value >= bar if at_least else value <= bar
    return f"  ({'at least' if at_least else 'at most'} {bar}: {'met' if met else 'MISSED'})"


def _recorded(name: str) -> Iterator[Recorded]:
    """The cases of a suite, played or read; kept where that is asked for."""
    kind, where = targets.parse(TARGET.value)
    if kind == "folder":
        if OUT.value:
            raise app.UsageError("--out keeps what is played; folder:DIR plays nothing.")
        yield from load_all(pathlib.Path(where), name)
        return
    suite = _SUITES[name]
    assert suite.cases is not None
    if lacks := suite.lacks():
        raise ValueError(f"The suite `{name}` needs {lacks}.")
    target = _target()
    cases = suite.cases(target.spec)
    sound = suite.by_sound or bool(OUT.value or REPORT.value)
    for case in tqdm(target.play(cases, sound=sound), total=len(cases), unit="case", desc=name):
        if OUT.value:
            case.save(pathlib.Path(OUT.value))
        yield case


@functools.cache
def _target() -> targets.Checkpoint | targets.Grpc:
    kind, where = targets.parse(TARGET.value)
    return _grpc(where) if kind == "grpc" else _checkpoint(where)


def _checkpoint(path: str) -> targets.Checkpoint:
    executor, dtype = Executor.of_shape(cli.mesh_shape(MESH)), jnp.dtype(DTYPE.value)
    config, params, tokenizer = load_model(path, dtype=dtype, mesh=executor.mesh, int8=WEIGHTS.value == "int8")
    voice = read_voice(path, config.stream)
    return targets.Checkpoint(Rollout(InteractionModel(config, dtype), params, tokenizer, SLOTS, executor, voice))


def _grpc(address: str) -> targets.Grpc:
    return targets.Grpc(REACH(address), real_time=PACE.value == "real", sessions=SESSIONS.value)


def _simulator(spec: StreamSpec) -> Simulator:
    config = DataConfig(bank=BANK.value, seed=SEED.value)
    if ENGINES.value:
        # Engines that are not asked for weigh nothing.
        every = {clip.engine for clip in open_bank(config.bank).clips}
        config = dataclasses.replace(config, engines=tuple((e, float(e in ENGINES.value)) for e in sorted(every)))
    return Simulator(config, spec, open_bank(config.bank), SPLIT.value)


def _simulated(spec: StreamSpec) -> list[targets.Case]:
    """Users of those scenarios that are asked for."""
    if unknown := set(SCENARIO.value) - set(SCENARIOS):
        raise ValueError(f"No scenario is called {min(unknown)}; known: {', '.join(SCENARIOS)}.")
    wanted = [name for name in SCENARIOS if name in SCENARIO.value or not SCENARIO.value]
    return simulated.cases("smoke", wanted, CONVERSATIONS.value, _simulator(spec))


def _smoke_score(cases: Iterable[Recorded]) -> Figures:
    judged = [panel.judged(case) for case in cases]
    verdicts = [verdict for case in judged for _, verdict in case if verdict is not None]
    return summarise(verdicts) | panel.estimates(panel.figures(judged))


def _load_cases(spec: StreamSpec) -> list[targets.Case]:
    target = _target()
    assert isinstance(target, targets.Grpc)
    return simulated.load(target.slots, _simulator(spec))


def _load_lacks() -> str:
    kind = targets.parse(TARGET.value)[0]
    real = kind == "folder" or (kind == "grpc" and PACE.value == "real")
    return "" if real else "a server at the pace of time: --target=grpc:HOST:PORT"


def _overheard_lacks() -> str:
    there = RECORDINGS.value is not None or targets.parse(TARGET.value)[0] == "folder"
    return "" if there else "recordings of people: --recordings=FOLDER"


def _overheard_cases(spec: StreamSpec) -> list[targets.Case]:
    del spec
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


def _ear() -> hearing.Ear | None:
    """Who listens to what is said; None where there is no recogniser."""
    try:
        return hearing.Ear(open_bank(BANK.value))
    except ImportError:
        return None


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

    def lacks() -> str:
        scored = not DATA.value or targets.parse(TARGET.value)[0] == "folder"
        return "" if scored else "recordings, --target=folder:DIR, where there is --data; it plays own data alone"

    def load() -> list[Any]:
        kept = pathlib.Path(targets.parse(TARGET.value)[1]) / miniatures.file_of(name)
        if not own and not DATA.value and not kept.exists():
            raise ValueError(f"The suite `{name}` needs the annotations of what was recorded: --data=FILE.")
        return own or module.load(DATA.value or kept)

    def score(case: Any, done: Behaviour) -> Any:
        return module.score(case, done, _judge() or otherwise) if judged else module.score(case, done)

    annotated = recordings.Annotated(load, score)

    def see(recorded: Recorded) -> list[findings.Seen]:
        scored = annotated.scored(recorded)
        return findings.annotated(recorded, module.told(*scored)) if scored else []

    def figures(played: Iterable[Recorded]) -> Figures:
        return annotated.figures(played, module.summarise)

    return Suite(cases, figures, see, lacks, otherwise=judge.WordJudge.name if judged else "", data="scored")


def _left(read: Callable[[str], Figures], otherwise: str) -> Suite:
    """A benchmark of what a system left behind, without its sound; arguments as of `Suite`."""

    def score(cases: Iterable[Recorded]) -> Figures:
        del cases
        kind, where = targets.parse(TARGET.value)
        if kind != "folder":
            raise ValueError(f"The suite `{SUITE.value}` scores what a system left behind: --target=folder:DIR.")
        return read(where)

    return Suite(None, score, otherwise=otherwise)


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
    "smoke": Suite(_simulated, _smoke_score, findings.expected),
    "overheard": Suite(_overheard_cases, _overheard_score, findings.silence, _overheard_lacks),
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
    "load": Suite(_load_cases, shows.steps, lacks=_load_lacks),
}
SUITE = flags.DEFINE_enum("suite", "smoke", [*_SUITES, ALL], "What to measure.")


if __name__ == "__main__":
    cli.run(main)
