"""What was recorded, scored by annotations: a folder is named as its case is.

Of a name that is a file's the ending may be left out. ``proactive/EGO/17/output.wav`` belongs to a case "17", or to one
"EGO/17".
"""

import functools
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

from tml_jax.eval.bootstrap import Figure
from tml_jax.eval.recorded import Recorded
from tml_jax.wire.behaviour import Behaviour


class Named(Protocol):
    """A case of any suite."""

    @property
    def name(self) -> str:
        """By which its recording is found."""


C = TypeVar("C", bound=Named)
S = TypeVar("S")


class Scored(NamedTuple, Generic[C, S]):
    """A case, and the score of its recording."""

    case: C
    score: S


class Annotated(Generic[C, S]):
    """A suite's cases, and the scores of those that were recorded.

    Args:
      load: reads the cases, when the first recording is there.
      score: the suite's.
    """

    def __init__(self, load: Callable[[], Sequence[C]], score: Callable[[C, Behaviour], S]) -> None:
        self._load, self._score = load, score
        self._scored: dict[str, tuple[str, Scored[C, S]]] = {}  # by the case's name: the recording's, and its score

    @functools.cached_property
    def _cases(self) -> tuple[int, dict[str, C]]:
        by_name: dict[str, C] = {}
        cases = self._load()
        for one in cases:
            if one.name in by_name:
                raise ValueError(f"Two cases are called {one.name}.")
            by_name[one.name] = one
        for one in cases:
            by_name.setdefault(pathlib.PurePosixPath(one.name).with_suffix("").as_posix(), one)
        return len(cases), by_name

    def scored(self, recorded: Recorded) -> Scored[C, S] | None:
        """The case that a recording belongs to, with its score, which is made once; None where it belongs to none.

        Raises:
          ValueError: two recordings, or two cases, are called the same, or nobody wrote down what a system says.
        """
        _, by_name = self._cases
        parts = recorded.name.split("/")
        found = next((by_name[tail] for i in range(len(parts)) if (tail := "/".join(parts[i:])) in by_name), None)
        if found is None:
            return None
        if found.name not in self._scored:
            if recorded.events is None and recorded.chunks is None:
                raise ValueError(
                    f"{recorded.name} has neither session.jsonl nor output.json: nothing tells what a system says."
                )
            score = self._score(found, recorded.behaviour())
            self._scored[found.name] = recorded.name, Scored(found, score)
        other, scored = self._scored[found.name]
        if other != recorded.name:
            raise ValueError(f"Two recordings belong to the case {found.name}; {recorded.name} is one of them.")
        return scored

    def figures(
        self, recorded: Iterable[Recorded], summarise: Callable[[Sequence[S]], Mapping[str, Figure]]
    ) -> dict[str, float | Figure]:
        """A suite's figures, and how many of its cases were recorded and how many were not: those count for nothing.

        Args:
          recorded: what was recorded; what belongs to no case is left out.
          summarise: the suite's.

        Raises:
          ValueError: as for `scored`; or nothing belongs to a case.
        """
        for one in recorded:
            self.scored(one)
        if not self._scored:
            raise ValueError("No recording's folder is called as a case of --data is.")
        # In the annotations' order, so that intervals do not depend on that of the recordings.
        names = dict.fromkeys(one.name for one in self._cases[1].values())
        scores = [self._scored[name][1].score for name in names if name in self._scored]
        left = {"recorded_cases": len(scores), "missing_cases": self._cases[0] - len(scores)}
        return {**summarise(scores), **left}
