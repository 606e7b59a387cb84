"""ProactiveVideoQA: does it say what is to be seen, as soon as it can be seen? (Wang et al., 2025, arXiv 2507.09313).

The annotation file is the published ``TASK/anno.json`` of each of the tasks WEB, EGO, TV and VAD: a list of objects
with ``question_id``, ``video``, ``conversation`` (what the user asks first) and ``answer``, a list of turns with
``content``, ``related_timespan`` (in which it can be seen) and ``reply_timespan`` (in which a reply counts), seconds.

PAUC, of one turn: its replies inside the reply's time span are judged in order, each together with those before it, by
a judge that gives 0, 1 or 2 points (0.5 before anything was said). The points are a step function of time; its area
over the span, divided by that of 2 points all along, is the PAUC. Time is counted from the beginning of the span and
multiplied by 1 - omega: at 0 a late reply costs all of its delay, at 1 none. A reply after the related span that lowers
the points does not count. A silent model has 0.25. The figure is the mean over all turns, at omega = 0.5 unless stated.
The formula and the data's form were read in public ports of the authors' code (VLMEvalKit's data set ProactiveVideoQA);
the paper's own formula could not be opened. Published judges are large chat models, and the reply a text with a time:
of a speaking model, an utterance here replies when its last word begins.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from tml_jax.eval import bootstrap
from tml_jax.eval.suites.common import Told, need, span, utterances
from tml_jax.eval.suites.judge import Judge
from tml_jax.wire.behaviour import Behaviour

MOST = 2
BEFORE = 0.5
"""The points of silence."""
OMEGA = 0.5


@dataclasses.dataclass(frozen=True)
class Turn:
    """One answer that is expected; spans in seconds of the video."""

    content: str
    related_s: tuple[float, float]
    reply_s: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Case:
    """A question about a video, asked at its beginning."""

    name: str
    video: str
    question: str
    turns: tuple[Turn, ...]


@dataclasses.dataclass(frozen=True)
class Score:
    """Of one case: the PAUC of each turn, 0 to 1."""

    pauc: tuple[float, ...]


def load(path: str | pathlib.Path) -> list[Case]:
    """Reads an ``anno.json``.

    Raises:
      ValueError: it has another form.
    """
    try:
        rows = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error.msg}.") from None
    if not isinstance(rows, list):
        raise ValueError(f"{path} is not a list: it is not an annotation file of ProactiveVideoQA.")
    cases = []
    for i, row in enumerate(rows):
        where = f"{path}, entry {i}"
        asked = need(row, "conversation", where, list)
        turns = tuple(_turn(turn, where) for turn in need(row, "answer", where, list))
        if not asked:
            raise ValueError(f"{where} asks nothing.")
        question = need(asked[0], "content", where, str)
        cases.append(Case(need(row, "question_id", where, str), need(row, "video", where, str), question, turns))
    return cases


def _turn(turn: Any, where: str) -> Turn:
    related, reply = (span(turn, f"{kind}_timespan", where) for kind in ("related", "reply"))
    return Turn(need(turn, "content", where, str), related, reply)


def pauc(points: Sequence[tuple[float, float]], turn: Turn, omega: float = OMEGA) -> float:
    """The area under the points of one turn, 0 to 1.

    Args:
      points: (seconds, 0 to `MOST`) of its replies, by time, all inside the reply's span.
      turn: its spans.
      omega: how little a delay costs, 0 to 1.
    """
    start, end = turn.reply_s
    if not points or end <= start:
        return BEFORE / MOST
    counted: list[tuple[float, float]] = []
    in_time = 0.0
    for time, value in points:
        if time <= turn.related_s[1]:
            in_time = value
        elif value < in_time:
            continue
        counted.append(((time - start) * (1 - omega), value))
    area = at = 0.0
    height = BEFORE
    for time, value in [*counted, (end - start, 0.0)]:
        area += (time - at) * height
        at, height = time, value
    return area / ((end - start) * MOST)


def score(case: Case, done: Behaviour, judge: Judge, omega: float = OMEGA) -> Score:
    """Judges what was said, turn by turn; times are seconds of the video."""
    replies = [(u.last_s, u.text) for u in utterances(done)]
    found = []
    for turn in case.turns:
        points: list[tuple[float, float]] = []
        so_far: list[str] = []
        for time, text in replies:
            if turn.reply_s[0] <= time <= turn.reply_s[1] and text not in so_far:
                so_far.append(text)
                points.append((time, judge.grade(case.question, turn.content, " ".join(so_far))))
        found.append(pauc(points, turn, omega))
    return Score(tuple(found))


def told(case: Case, score: Score) -> list[Told]:
    """The turns, by their PAUC; met where it is above that of silence."""
    return [
        Told(*turn.reply_s, f"says “{turn.content}”; PAUC {found:.2f}", found > BEFORE / MOST, found)
        for turn, found in zip(case.turns, score.pauc, strict=True)
    ]


def summarise(scores: Sequence[Score]) -> dict[str, bootstrap.Figure]:
    """``proactive_pauc``, the mean over turns, 0 to 1; published figures are times 100."""
    return {"proactive_pauc": bootstrap.pooled_mean([s.pauc for s in scores])}
