"""What was recorded, scored by the annotations that a user brings: a folder is named as its case is.

Of a name that is a file's the ending may be left out. ``proactive/EGO/17/output.wav`` belongs to a case "17", or to one
"EGO/17".
"""

import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

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


def figures_of(
    annotated: Sequence[C],
    cases: Iterable[Recorded],
    score: Callable[[C, Behaviour], S],
    summarise: Callable[[Sequence[S]], Mapping[str, Figure]],
) -> dict[str, float | Figure]:
    """A suite's figures, and how many of its cases were recorded and how many were not: those count for nothing.

    Args:
      annotated: the suite's cases.
      cases: what was recorded; what belongs to no case is left out.
      score, summarise: the suite's.

    Raises:
      ValueError: nothing belongs to a case, or two recordings, or two cases, are called the same, or nobody wrote down
        what a system says.
    """
    by_name: dict[str, C] = {}
    for one in annotated:
        if one.name in by_name:
            raise ValueError(f"Two cases are called {one.name}.")
        by_name[one.name] = one
    for one in annotated:
        by_name.setdefault(pathlib.PurePosixPath(one.name).with_suffix("").as_posix(), one)
    scores: dict[str, S] = {}
    for case in cases:
        parts = case.name.split("/")
        found = next((by_name[tail] for i in range(len(parts)) if (tail := "/".join(parts[i:])) in by_name), None)
        if found is None:
            continue
        if found.name in scores:
            raise ValueError(f"Two recordings belong to the case {found.name}; {case.name} is one of them.")
        if case.events is None and case.chunks is None:
            raise ValueError(
                f"{case.name} has neither session.jsonl nor output.json: nothing tells what a system says."
            )
        scores[found.name] = score(found, case.behaviour())
    if not scores:
        raise ValueError("No recording's folder is called as a case of --data is.")
    left = {"recorded_cases": len(scores), "missing_cases": len(annotated) - len(scores)}
    return {**summarise(list(scores.values())), **left}
