"""Full-Duplex-Bench v3: are the right tools called, though people hesitate and correct themselves?

Lin et al. 2026, arXiv:2604.04847, github.com/DanielLin94144/Full-Duplex-Bench (v3): 100 recordings of 79 scenarios in
four domains, with 12 tools. What a system did is scored without its sound, in the published folders:
``{example}_{speaker}/`` with ``input.wav``, ``metadata.json`` (the scenario) and ``result_{provider}.json``, of which
``example_id``, ``actual_tool_calls`` (``function``, ``args``, ``timestamp_start``), ``transcript``, ``asr_chunks``,
``user_speech_end_rel`` and ``audio_agent_speech_start`` are read, in seconds of the recording.

The rules were read in the README and in public copies of the scripts. A scenario passes where exactly the expected
tools were called, in any order, and all their arguments are right. Tool selection is the F1 of their names. Calls of
one tool are compared in order. As published, F1, arguments and responses are means over the examples in which the
system spoke at all. Arguments are compared as text, without case and with "_" as a space; a value that begins with "$"
stands for any. What differs as text a chat model may judge, as it may the response: the published judge is GPT-4o, ours
asks for the same in other words. How long a task took is not told: the published script asks its judge which word
completes it.
"""

import dataclasses
import json
import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tml_jax.eval import bootstrap
from tml_jax.eval.suites.common import need
from tml_jax.eval.suites.judge import Judge

Call = tuple[str, Mapping[str, Any]]
"""The name of a tool, and its arguments."""


@dataclasses.dataclass(frozen=True)
class Example:
    """A recording, and what a system did.

    Attributes:
      name: its folder's.
      groups: what its scenario is one of: domain, difficulty, number of calls, disfluencies, corrections.
      expected, called: tools, in order.
      intent: what a good answer says.
      transcript: what was said.
      spoke: whether anything was.
      user_end_s: when the user's first turn ended; None where nobody could tell.
      speaks_s, calls_s: when the system first spoke, and first called a tool; None: never.
    """

    name: str
    groups: tuple[str, ...]
    expected: tuple[Call, ...]
    called: tuple[Call, ...]
    intent: str = ""
    transcript: str = ""
    spoke: bool = True
    user_end_s: float | None = None
    speaks_s: float | None = None
    calls_s: float | None = None


@dataclasses.dataclass(frozen=True)
class Score:
    """Of one example: F1 and arguments 0 to 1; whether the response was right, None where nobody judged it."""

    example: Example
    selection: float
    arguments: float
    exact: bool
    response: bool | None = None

    @property
    def passed(self) -> bool:
        """Whether exactly the expected tools were called, and all arguments are right."""
        return self.exact and self.arguments == 1.0


def load(root: str | pathlib.Path, scenarios: str | pathlib.Path | None = None) -> dict[str, list[Example]]:
    """Reads the results below a folder, by provider. Those of no known scenario are left out, as published.

    Args:
      root: the folder.
      scenarios: the published ``benchmark_data_v2.json``; None: each folder's own ``metadata.json``.

    Raises:
      ValueError: there is no result, or a file is not as published.
    """
    known = {} if scenarios is None else {str(s["id"]): s for s in _scenarios(pathlib.Path(scenarios))}
    found: dict[str, list[Example]] = {}
    for path in sorted(pathlib.Path(root).rglob("result_*.json")):
        result, beside = _read(path), path.with_name("metadata.json")
        scenario = known.get(str(result.get("example_id")))
        if scenario is None and scenarios is None and beside.exists():
            scenario = _read(beside)
        if scenario is not None:
            found.setdefault(path.stem.removeprefix("result_"), []).append(_example(path, scenario, result))
    if not found:
        raise ValueError(f"{root} holds no result_PROVIDER.json of a known scenario of Full-Duplex-Bench v3.")
    return found


def _read(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}.") from None


def _scenarios(path: pathlib.Path) -> list[dict[str, Any]]:
    read = _read(path)
    rows = read.get("scenarios") if isinstance(read, dict) else read
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "id" in row for row in rows):
        raise ValueError(f"{path} has no list of scenarios with an “id” each.")
    return rows


def _example(path: pathlib.Path, scenario: Any, result: Any) -> Example:
    where = f"the scenario of {path}"
    expected = _calls(need(scenario, "expected_tool_calls", where, list), where)
    groups = [need(scenario, "domain", where, str), need(scenario, "difficulty", where, str), f"{len(expected)}_calls"]
    groups += [str(feature).lower() for feature in scenario.get("disfluency_features", [])]
    groups.append("rollback" if scenario.get("state_rollback_test") else "no_rollback")
    made = result.get("actual_tool_calls", [])
    dialogue, transcript = scenario.get("dialogue") or [{}], result.get("transcript") or ""
    return Example(
        path.parent.name,
        tuple(groups),
        expected,
        _calls(made, str(path)),
        dialogue[-1].get("ai") or "",
        transcript,
        bool(transcript.strip() or result.get("asr_chunks")),
        result.get("user_speech_end_rel"),
        result.get("audio_agent_speech_start"),
        next((call["timestamp_start"] for call in made if "timestamp_start" in call), None),
    )


def _calls(rows: Sequence[Any], where: str) -> tuple[Call, ...]:
    return tuple((need(row, "function", where, str), row.get("args") or {}) for row in rows)


def selection(expected: Sequence[Call], called: Sequence[Call]) -> float:
    """F1 of the tools' names, 0 to 1; what is called or expected twice counts twice."""
    wanted, made = (Counter(name for name, _ in calls) for calls in (expected, called))
    matched = (wanted & made).total()
    recall, precision = (matched / of.total() if of else 1.0 for of in (wanted, made))
    return 2 * recall * precision / (recall + precision) if recall + precision else 0.0


def alike(expected: Mapping[str, Any], made: Mapping[str, Any]) -> bool:
    """Whether the arguments that are expected were given, as text; more of them do no harm."""

    def plain(value: Any) -> Any:
        return value.lower().strip().replace("_", " ") if isinstance(value, str) else value

    def same(key: str, value: Any) -> bool:
        free = isinstance(value, str) and value.startswith("$")
        return key in made and (free or plain(value) == plain(made[key]))

    return all(same(key, value) for key, value in expected.items())


def score(example: Example, judge: Judge | None = None) -> Score:
    """Scores one example; without a judge, arguments by their text and the response not at all."""
    left: dict[str, list[Mapping[str, Any]]] = {}
    for name, arguments in example.called:
        left.setdefault(name, []).append(arguments)
    right = [
        bool(left.get(name)) and _right(name, arguments, left[name].pop(0), judge)
        for name, arguments in example.expected
    ]
    names = [sorted(name for name, _ in calls) for calls in (example.expected, example.called)]
    response = (
        None
        if judge is None
        else bool(example.transcript.strip())
        and judge.meets(
            [("Assistant", example.transcript)],
            f"It does, or says that it has done, all of what this does: “{example.intent}” More detail is fine; a "
            "refusal, another action, or a part of it alone is not.",
        )
    )
    share = sum(right) / len(right) if right else 1.0
    return Score(example, selection(example.expected, example.called), share, names[0] == names[1], response)


def _right(name: str, expected: Mapping[str, Any], made: Mapping[str, Any], judge: Judge | None) -> bool:
    if judge is None or alike(expected, made):
        return alike(expected, made)
    told = json.dumps(dict(made), ensure_ascii=False)
    return judge.meets(
        [("Assistant", f"calls {name} with {told}")],
        f"Its arguments mean the same as {json.dumps(dict(expected), ensure_ascii=False)}. Other ways to write a date, "
        "other spellings, common short names and numbers within 5 % are the same; a value that begins with $ stands "
        "for any that an earlier call may have given.",
    )


def summarise(scores: Sequence[Score]) -> dict[str, float | bootstrap.Figure]:
    """``fdb_v3_pass_rate``, also of each group; ``..._tool_selection_f1``, ``..._argument_accuracy`` and so on.

    Latencies run from the end of the user's first turn, and are of those that are not negative: a system that speaks
    before it interrupts.
    """
    taken = [s for s in scores if s.example.spoke]
    passed = {"pass_rate": [s.passed for s in scores]}
    for group in sorted({group for s in scores for group in s.example.groups}):
        passed[f"pass_rate_{group}"] = [s.passed for s in scores if group in s.example.groups]
    figures: dict[str, float | bootstrap.Figure] = {name: bootstrap.rate(of) for name, of in passed.items()}
    for end, of in (("", taken), ("_all", scores)):
        figures[f"tool_selection_f1{end}"] = bootstrap.mean([s.selection for s in of])
        figures[f"argument_accuracy{end}"] = bootstrap.mean([s.arguments for s in of])
    judged = [s.response for s in taken if s.response is not None]
    if judged:
        figures["response_accuracy"] = bootstrap.rate(judged)
    figures["turn_take_rate"] = bootstrap.rate([s.example.spoke for s in scores])
    first = _latencies([(s.example.user_end_s, s.example.speaks_s) for s in taken])
    figures["interruption_rate"] = bootstrap.rate([latency < 0 for latency in first])
    figures["response_latency_s"] = bootstrap.mean([latency for latency in first if latency >= 0])
    calls = _latencies([(s.example.user_end_s, s.example.calls_s) for s in scores])
    figures["tool_call_latency_s"] = bootstrap.mean([latency for latency in calls if latency >= 0])
    figures["wrong_tools_cases"] = sum(not s.exact for s in scores)
    figures["wrong_arguments_cases"] = sum(s.exact and not s.passed for s in scores)
    return {f"fdb_v3_{name}": figure for name, figure in figures.items()}


def _latencies(times: Sequence[tuple[float | None, float | None]]) -> list[float]:
    return [at - end for end, at in times if end is not None and at is not None]
