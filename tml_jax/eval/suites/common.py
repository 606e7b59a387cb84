"""What the suites have in common: utterances, words as they are compared, files that a user brings.

A suite is a module with four functions: `load(path)` reads the published annotations as cases, `score(case, done)` says
of one recorded `Behaviour` how well it met one case, `summarise(scores)` makes figures with their intervals, and
`told(case, score)` says what was expected in a case and came, for people.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar, cast

from tml_jax.wire.behaviour import Behaviour

T = TypeVar("T")
APART_S = 1.0
"""Words further apart than this do not belong to the same utterance."""
_EDGES = re.compile(r"^\W+|\W+$")


class Told(NamedTuple):
    """Something that was expected in [start_s, end_s] of a recording, and what came.

    Attributes:
      start_s, end_s: seconds; infinity for the recording's end.
      text: what, in words.
      met: whether it was met in full.
      worth: of what came, 0 to 1, where it can be met in part.
    """

    start_s: float
    end_s: float
    text: str
    met: bool
    worth: float | None = None


@dataclasses.dataclass(frozen=True)
class Utterance:
    """Words that were said in one go.

    Attributes:
      start_s: when the first of them began.
      last_s: when the last of them began.
      words: plain, as `plain` has them.
      text: as it was said.
    """

    start_s: float
    last_s: float
    words: tuple[str, ...]
    text: str


def plain(text: str) -> tuple[str, ...]:
    """The words of a text in lower case, without the signs at their edges: "Twenty-one!" is "twenty", "one"."""
    pieces = text.lower().replace("-", " ").split()
    return tuple(word for piece in pieces if (word := _EDGES.sub("", piece)))


def utterances(done: Behaviour) -> list[Utterance]:
    """What was said, cut where no word begins for longer than `APART_S`."""
    found: list[Utterance] = []
    for time, word in done.words:
        if found and time - found[-1].last_s <= APART_S:
            last = found[-1]
            found[-1] = Utterance(last.start_s, time, last.words + plain(word), f"{last.text} {word}")
        else:
            found.append(Utterance(time, time, plain(word), word))
    return found


def read_lines(path: str | pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines, with the number of their line.

    Raises:
      ValueError: a line is no JSON object.
    """
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{path}, line {number} is not JSON: {error.msg}.") from None
                if not isinstance(row, dict):
                    raise ValueError(f"{path}, line {number} is not a JSON object.")
                yield number, row


_KINDS = {list: "a list", str: "text", float: "a number", dict: "an object"}


def need(row: Any, key: str, where: str, kind: type[T]) -> T:
    """A field that has to be there; a whole number will do for a float.

    Args:
      row: an object as JSON has it.
      key: of the field.
      where: the row is, for people.
      kind: list, str, float or dict.

    Raises:
      ValueError: it is not there, or of another kind.
    """
    if not isinstance(row, dict):
        raise ValueError(f"{where} holds {row!r} where an object should be.")
    value = row.get(key)
    if value is None:
        raise ValueError(f"{where} has no “{key}”.")
    if not isinstance(value, int | float if kind is float else kind) or isinstance(value, bool):
        raise ValueError(f"“{key}” of {where} is not {_KINDS[kind]}.")
    return cast(T, value)


def span(row: Any, key: str, where: str) -> tuple[float, float]:
    """A field that holds seconds [from, to]; arguments and errors as for `need`."""
    value = need(row, key, where, list)
    if len(value) != 2 or not all(isinstance(x, int | float) for x in value) or value[0] > value[1]:
        raise ValueError(f"“{key}” of {where} is {value!r}, not seconds [from, to].")
    return float(value[0]), float(value[1])
