"""Audio MultiChallenge: is the last reply of a spoken conversation right by its rubrics?

The benchmark is Gosai et al., arXiv 2512.14865. The data is ``ScaleAI/audiomc`` on Hugging Face, parquet; this reads
JSON lines of its text columns: ``id``, ``axis``, ``rubric`` (a list, or a list written as JSON) and, for K from 1 on,
``user_turn_K_transcript`` and ``assistant_turn_K_transcript``; and, of our own, ``last_turn_from``, where a recording
does not begin with the user's last turn. docs/bench_suites.md has the line that writes them.

The published protocol gives the model the earlier turns, the user's as sound and the assistant's as text, and has it
reply to the last one; a language model (o4-mini) then says of each rubric whether that reply meets it. APR, the average
pass rate, is the share of conversations of which every rubric is met; ARS, the average rubric score, the mean over
conversations of the share of their rubrics that are. A duplex model cannot be given somebody else's words as its own:
one that talked through the conversation was asked something else, and its figures are not comparable.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from tml_jax.eval import bootstrap
from tml_jax.eval.suites.common import Told, need, read_lines
from tml_jax.eval.suites.judge import Judge
from tml_jax.wire.behaviour import Behaviour


@dataclasses.dataclass(frozen=True)
class Case:
    """A conversation.

    Attributes:
      name: its id.
      axis: what is tested, e.g. "VOICE_EDITING".
      turns: (who, text) up to and with the user's last turn.
      rubrics: what the reply has to meet.
      last_turn_s: where the user's last turn begins in the recording, seconds; what is said before is not the reply.
    """

    name: str
    axis: str
    turns: tuple[tuple[str, str], ...]
    rubrics: tuple[str, ...]
    last_turn_s: float = 0.0


@dataclasses.dataclass(frozen=True)
class Score:
    """Of one case: whether each rubric was met."""

    axis: str
    met: tuple[bool, ...]

    @property
    def share(self) -> float:
        """Of the rubrics, how many were met, 0 to 1."""
        return sum(self.met) / len(self.met)


def load(path: str | pathlib.Path) -> list[Case]:
    """Reads JSON lines.

    Raises:
      ValueError: a line has another form.
    """
    return [_case(row, f"{path}, line {number}") for number, row in read_lines(path)]


def _case(row: dict[str, Any], where: str) -> Case:
    if isinstance(row.get("rubric"), str):
        try:
            row = row | {"rubric": json.loads(row["rubric"])}
        except json.JSONDecodeError:
            raise ValueError(f"“rubric” of {where} is not a list.") from None
    rubrics = need(row, "rubric", where, list)
    if not rubrics:
        raise ValueError(f"“rubric” of {where} is empty.")
    turns: list[tuple[str, str]] = []
    k = 1
    while user := (row.get(f"user_turn_{k}_transcript") or "").strip():
        turns.append(("User", user))
        if reply := (row.get(f"assistant_turn_{k}_transcript") or "").strip():
            turns.append(("Assistant", reply))
        k += 1
    if not turns:
        raise ValueError(f"{where} has no “user_turn_1_transcript”.")
    if turns[-1][0] == "Assistant":  # a reply to the last turn is what the model is asked for
        turns.pop()
    name, axis = need(row, "id", where, str), need(row, "axis", where, str)
    last_turn_s = need(row, "last_turn_from", where, float) if "last_turn_from" in row else 0.0
    return Case(name, axis, tuple(turns), tuple(str(rubric).strip() for rubric in rubrics), last_turn_s)


def score(case: Case, done: Behaviour, judge: Judge) -> Score:
    """Has the reply judged, rubric by rubric; silence meets none and costs no judge.

    Args:
      case: the conversation.
      done: what the model did.
      judge: a `ChatJudge`, or where words alone meet the rubrics a `WordJudge`.
    """
    reply = " ".join(word for time, word in done.words if time >= case.last_turn_s)
    if not reply:
        return Score(case.axis, (False,) * len(case.rubrics))
    conversation = [*case.turns, ("Assistant", reply)]
    return Score(case.axis, tuple(judge.meets(conversation, rubric) for rubric in case.rubrics))


def told(case: Case, score: Score) -> list[Told]:
    """The rubrics."""
    return [Told(case.last_turn_s, math.inf, rubric, met) for rubric, met in zip(case.rubrics, score.met, strict=True)]


def summarise(scores: Sequence[Score]) -> dict[str, bootstrap.Figure]:
    """``audiomc_apr`` and ``audiomc_ars``, and the first of each axis, e.g. ``audiomc_apr_voice_editing``; 0 to 1."""
    figures = {
        "audiomc_apr": bootstrap.rate([all(s.met) for s in scores]),
        "audiomc_ars": bootstrap.mean([s.share for s in scores]),
    }
    for axis in sorted({s.axis for s in scores}):
        figures[f"audiomc_apr_{axis.lower()}"] = bootstrap.rate([all(s.met) for s in scores if s.axis == axis])
    return figures
