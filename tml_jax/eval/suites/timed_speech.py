"""TimeSpeak and CueSpeak: does it speak by itself at the right time, and say the right thing?

Both are Thinking Machines' own ("Interaction Models", May 2026). TimeSpeak: the user sets a time ("remind me to breathe
in and out every 4 seconds"). CueSpeak: the user sets a cue, and the model speaks at it, if need be while the user does.
What is published, as far as it could be looked up: a response has credit only where both its content and its time are
right, content is judged by a language model, and TimeSpeak's figure is a macro accuracy. Not published: the data, how
wide the time window is, and what the mean is taken over. So cases, windows and categories here are whoever's that
writes the file, and its figures cannot be compared with theirs.

The file has JSON lines: ``{"id": "breathe-1", "category": "repeated", "asked": "...", "expect": [{"say": ["breathe
in"], "from": 8.0, "to": 8.6}, ...]}``; times are seconds of the session, ``asked`` is what the user wants and need not
be there, ``say`` lists wordings of which one is enough, and ``{"never": ["breathe"], "from": 30, "to": 60}`` is
something that must not be said. A case is right where all that it expects is. A file may hold both benchmarks, where
its categories say which: ``timespeak/repeated``. Without a judge what is said is compared word by word, in any company;
a judge is shown one utterance at a time.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from tml_jax.eval import bootstrap
from tml_jax.eval.suites.common import Told, need, plain, read_lines, utterances
from tml_jax.eval.suites.judge import Judge
from tml_jax.wire.behaviour import Behaviour


@dataclasses.dataclass(frozen=True)
class Expected:
    """What is to be said, or never, in a window.

    Attributes:
      wordings: one of them is enough.
      start_s, end_s: when its first word may begin, seconds.
      never: it must not be said.
    """

    wordings: tuple[str, ...]
    start_s: float
    end_s: float
    never: bool = False


@dataclasses.dataclass(frozen=True)
class Case:
    """One conversation; `asked` is what the user wants, in words."""

    name: str
    category: str
    expected: tuple[Expected, ...]
    asked: str = ""


@dataclasses.dataclass(frozen=True)
class Score:
    """Of one case: whether each of its expectations was met, and whether its words were said at any time at all."""

    category: str
    met: tuple[bool, ...]
    content: tuple[bool, ...]

    @property
    def right(self) -> bool:
        """Whether all were met."""
        return all(self.met)


def load(path: str | pathlib.Path) -> list[Case]:
    """Reads a file of cases.

    Raises:
      ValueError: it has another form.
    """
    cases = []
    for number, row in read_lines(path):
        where = f"{path}, line {number}"
        expected = tuple(_expected(e, where) for e in need(row, "expect", where, list))
        if not expected:
            raise ValueError(f"{where} expects nothing.")
        name, category = need(row, "id", where, str), need(row, "category", where, str)
        cases.append(Case(name, category, expected, row.get("asked", "")))
    return cases


def _expected(row: Any, where: str) -> Expected:
    start, end = need(row, "from", where, float), need(row, "to", where, float)
    never = "never" in row
    wordings = tuple(map(str, need(row, "never" if never else "say", where, list)))
    if not wordings or not all(map(plain, wordings)):
        raise ValueError(f"{where} expects a wording without words.")
    if end <= start:
        raise ValueError(f"{where} has a window that ends before it begins.")
    return Expected(wordings, start, end, never)


def score(case: Case, done: Behaviour, judge: Judge | None = None) -> Score:
    """Looks for what is expected: its first word has to begin in the window."""
    met, content = [], []
    for expected in case.expected:
        times = [time for wording in expected.wordings for time in _times(case.asked, wording, done, judge)]
        inside = any(expected.start_s <= time < expected.end_s for time in times)
        met.append(inside != expected.never)
        content.append(not inside if expected.never else bool(times))
    return Score(case.category, tuple(met), tuple(content))


def _times(asked: str, wording: str, done: Behaviour, judge: Judge | None) -> list[float]:
    """When it was said."""
    if judge is not None:
        return [u.start_s for u in utterances(done) if judge.grade(asked, wording, u.text) == 2]
    wanted = plain(wording)
    words = [(time, word) for time, said in done.words for word in plain(said)]
    heard = tuple(word for _, word in words)
    return [words[i][0] for i in range(len(words) - len(wanted) + 1) if heard[i : i + len(wanted)] == wanted]


def told(case: Case, score: Score) -> list[Told]:
    """What was to be said, and what never."""
    return [
        Told(one.start_s, one.end_s, ("never says " if one.never else "says ") + f"“{one.wordings[0]}”", met)
        for one, met in zip(case.expected, score.met, strict=True)
    ]


def summarise(scores: Sequence[Score]) -> dict[str, bootstrap.Figure]:
    """``macro_accuracy`` over categories, ``accuracy`` over cases, ``content`` whatever the time; 0 to 1.

    Of categories named ``timespeak/...`` the figures are ``timespeak_macro_accuracy`` and so on.
    """
    figures: dict[str, bootstrap.Figure] = {}
    for benchmark in sorted({found.category.rpartition("/")[0] for found in scores}):
        of = [found for found in scores if found.category.rpartition("/")[0] == benchmark]
        categories: dict[str, list[float]] = {}
        for found in of:
            categories.setdefault(found.category, []).append(float(found.right))
        head = f"{benchmark}_" if benchmark else ""
        figures[f"{head}macro_accuracy"] = bootstrap.macro_mean(categories)
        figures[f"{head}accuracy"] = bootstrap.rate([s.right for s in of])
        figures[f"{head}content"] = bootstrap.rate([all(s.content) for s in of])
    return figures
