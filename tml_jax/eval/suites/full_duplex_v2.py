"""Full-Duplex-Bench v2: conversations of several turns with an automatic examiner, rated by a judge.

Lin et al. 2025, arXiv:2510.07838, github.com/DanielLin94144/Full-Duplex-Bench (v2): 200 tasks of the splits Daily,
Correction, EntityTracking and Safety. The examiner (channel A) is a paid model that talks to the system (channel B), so
that the conversations themselves cannot be had here; what is scored is what the published pipeline leaves:

* ``SPLIT/TASK_processed.json``, or ``TASK.json``, a judge's ratings: ``"Turn-taking event and score"``, a list of
  ``[[start, end], turn taking, instruction following]``, and ``"Task-specific score"``, all of 1 to 5;
* where there is none, ``SPLIT/TASK/A.json`` and ``B.json``, transcripts as of v1, which a chat model may rate, with the
  goals of ``prompts_staged_200.json``. The published judge is Gemini 2.5 Flash; ours asks for the same in other words.

As in the public scripts, a task's ratings are means over its events, and of stretches of 15 s means weighted by how
long each event lies in them. They print a line a task; how its tables put tasks together is not known. Here a split's
figure is the mean over all of its events, or tasks.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from tml_jax.eval import bootstrap
from tml_jax.eval.suites.judge import ChatJudge

SPLITS = ("Daily", "Correction", "EntityTracking", "Safety")
BIN_S, LAST_S = 15.0, 120.0
_EVENTS, _TASK = "Turn-taking event and score", "Task-specific score"
_DONE = "_processed.json"


@dataclasses.dataclass(frozen=True)
class Rated:
    """A task's ratings.

    Attributes:
      split, name: of the task.
      events: (start and end in seconds, turn taking, instruction following).
      task: the task-specific rating; None where there is none.
    """

    split: str
    name: str
    events: tuple[tuple[float, float, float, float], ...]
    task: float | None = None


def load(
    root: str | pathlib.Path, goals: str | pathlib.Path | None = None, judge: ChatJudge | None = None
) -> list[Rated]:
    """Reads the ratings below a folder, and has those made that are not there.

    Args:
      root: the folder; a task's split is the first folder of its path that is called as one, or the one that holds it.
      goals: ``prompts_staged_200.json``; only a judge needs it.
      judge: rates transcripts; None: only what is rated is read.

    Raises:
      ValueError: nothing is rated, or a file is not as published.
    """
    root, found = pathlib.Path(root), dict[str, Rated]()
    for path in sorted(root.rglob("*.json"), key=lambda path: (not path.name.endswith(_DONE), path)):
        read = _read(path)
        name = path.name.removesuffix(_DONE).removesuffix(".json")
        if isinstance(read, dict) and _EVENTS in read and name not in found:
            found[name] = _rated(path, name, read)
    staged = {} if goals is None else _goals(_read(pathlib.Path(goals)))
    for path in sorted(root.rglob("B.json")) if judge is not None else []:
        name = path.parent.name
        if name in found:
            continue
        if name not in staged:
            raise ValueError(f"No task called {name} has goals: give the published prompts_staged_200.json as --data.")
        said = {channel: _read(path.with_name(f"{channel}.json")) for channel in "AB"}
        assert judge is not None
        made = judge.rate(staged[name], said["A"].get("text", ""), said["B"].get("chunks", []), _split(path.parent))
        found[name] = _rated(path.parent, name, {_EVENTS: made.get("events"), _TASK: made.get("task")})
    if not found:
        raise ValueError(f"{root} holds no ratings of Full-Duplex-Bench v2, and transcripts need a --judge.")
    return list(found.values())


def _read(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}.") from None


def _split(path: pathlib.Path) -> str:
    return next((part for part in path.parts if part in SPLITS), path.parent.name)


def _goals(read: Any) -> dict[str, Mapping[str, str]]:
    """The goals of each task, wherever it stands in the file."""
    rows = list(read.values()) if isinstance(read, dict) else read if isinstance(read, list) else []
    found = {}
    if isinstance(read, dict) and isinstance(read.get("staged_reveal"), dict):
        found[str(read.get("id"))] = read["staged_reveal"]
    for row in rows:
        found |= _goals(row)
    return found


def _rated(path: pathlib.Path, name: str, read: Mapping[str, Any]) -> Rated:
    try:
        events = [
            (*map(float, span[:2]), *map(float, ratings[:2])) for span, *ratings in read[_EVENTS] if None not in ratings
        ]
        task = read.get(_TASK)
        return Rated(_split(path), name, tuple(events), None if task is None else float(task))
    except (TypeError, ValueError):
        raise ValueError(f"The ratings of {path} are not as Full-Duplex-Bench v2 has them.") from None


def summarise(rated: Sequence[Rated]) -> dict[str, float | bootstrap.Figure]:
    """``daily_turn_taking_rating`` and so on: by split, and of stretches of 15 s; 1 to 5."""
    figures: dict[str, float | bootstrap.Figure] = {}
    for split in sorted({one.split for one in rated}):
        of, head = [one for one in rated if one.split == split], split.lower()
        figures[f"{head}_cases"] = len(of)
        for place, name in ((2, "turn_taking"), (3, "instruction_following")):
            figures[f"{head}_{name}_rating"] = bootstrap.pooled_mean([[e[place] for e in one.events] for one in of])
            for start in range(0, int(LAST_S), int(BIN_S)):
                if (value := _weighted(of, place, start)) is not None:
                    figures[f"{head}_{name}_{start}_to_{start + int(BIN_S)}_s_rating"] = value
        figures[f"{head}_task_rating"] = bootstrap.mean([one.task for one in of if one.task is not None])
    return figures


def _weighted(rated: Sequence[Rated], place: int, start_s: float) -> float | None:
    """The mean rating in [start_s, start_s + 15 s), by time; None where nothing is said."""
    weights = [
        (max(0.0, min(event[1], start_s + BIN_S) - max(event[0], start_s)), event[place])
        for one in rated
        for event in one.events
    ]
    total = sum(weight for weight, _ in weights)
    return sum(weight * value for weight, value in weights) / total if total else None
