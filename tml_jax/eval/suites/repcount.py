"""RepCount-A: how often was a movement repeated? Of TransRAC, Hu et al., CVPR 2022, arXiv 2204.01018.

The annotation file is the published one: CSV with the columns ``type``, ``name``, ``count`` and ``L1`` to ``L302``, the
frames at which each repetition begins and ends in turn.

Figures, as in the paper and in its authors' test code: MAE is the mean of |said - true| / true, where the code adds 0.1
to the divisor, and so does this; off-by-one accuracy (OBO) is the share of videos with |said - true| <= 1. These score
an estimate. Of a model that counts aloud the last number that it says is taken, and 0 where it says none. Thinking
Machines publish an off-by-one accuracy; that they take the last number as well could not be looked up.
"""

import csv
import dataclasses
import math
import pathlib
from collections.abc import Sequence

from tml_jax.eval import bootstrap
from tml_jax.eval.suites.common import Told, utterances
from tml_jax.streams.number_words import parse_words
from tml_jax.wire.behaviour import Behaviour

# What makes of "one" something else than a number, before and after it.
_BEFORE_A_THING = frozenset(
    {"this", "that", "the", "which", "each", "every", "any", "no", "some", "another", "other"}
    | {"first", "last", "next", "only", "right", "wrong", "good", "nice", "great", "easy", "hard"}
)
_AFTER_A_THING = frozenset({"of", "more", "at", "moment"})


@dataclasses.dataclass(frozen=True)
class Case:
    """A video.

    Attributes:
      name: of its file.
      action: what is repeated, e.g. "situp".
      count: how often.
      cycles: the first and the last frame of each repetition; empty where the file does not say.
    """

    name: str
    action: str
    count: int
    cycles: tuple[tuple[int, int], ...] = ()


@dataclasses.dataclass(frozen=True)
class Score:
    """Of one case: the number that was said, and the true one."""

    said: int
    count: int

    @property
    def error(self) -> float:
        """The relative error."""
        return abs(self.said - self.count) / (self.count + 0.1)

    @property
    def off_by_one(self) -> bool:
        """Whether it was right, or one too many or too few."""
        return abs(self.said - self.count) <= 1


def load(path: str | pathlib.Path) -> list[Case]:
    """Reads an annotation file, e.g. ``test.csv``. Rows without a count are left out, as the authors do.

    Raises:
      ValueError: a column is missing, or something is no number.
    """
    with open(path, encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        missing = {"type", "name", "count"} - set(rows.fieldnames or ())
        if missing:
            raise ValueError(f"{path} has no column “{min(missing)}”: it is not an annotation file of RepCount-A.")
        marks = [name for name in rows.fieldnames or () if name[:1] == "L" and name[1:].isdecimal()]
        cases = []
        for number, row in enumerate(rows, 2):
            if not (row["count"] or "").strip():
                continue
            try:
                frames = [int(float(row[name])) for name in marks if (row[name] or "").strip()]
                count = int(float(row["count"]))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}.") from None
            cases.append(Case(row["name"], row["type"], count, tuple(zip(frames[::2], frames[1::2], strict=False))))
    return cases


def last_number(done: Behaviour) -> int:
    """The last number that was said, in words or digits; 0 where none was. The "one" of "that one" is no number."""
    last = 0
    for utterance in utterances(done):
        words, i = utterance.words, 0
        while i < len(words):
            found = parse_words(words[i:])
            if found and not (words[i : i + found[1]] == ("one",) and _stands_for_a_thing(words, i)):
                last = found[0]
            i += found[1] if found else 1
    return last


def _stands_for_a_thing(words: Sequence[str], at: int) -> bool:
    before, after = words[at - 1] if at else "", words[at + 1] if at + 1 < len(words) else ""
    return before in _BEFORE_A_THING or after in _AFTER_A_THING


def score(case: Case, done: Behaviour) -> Score:
    """Takes the last number that was said."""
    return Score(last_number(done), case.count)


def told(case: Case, score: Score) -> list[Told]:
    """The number, by its error."""
    text = f"counts to {case.count}; the last number said is {score.said}"
    return [Told(0.0, math.inf, text, score.said == case.count, max(0.0, 1 - score.error))]


def summarise(scores: Sequence[Score]) -> dict[str, bootstrap.Figure]:
    """``repcount_mae`` (lower is better) and ``repcount_off_by_one`` (0 to 1)."""
    return {
        "repcount_mae": bootstrap.mean([s.error for s in scores]),
        "repcount_off_by_one": bootstrap.rate([s.off_by_one for s in scores]),
    }
