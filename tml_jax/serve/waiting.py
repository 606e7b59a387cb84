"""How many sessions may wait for their clients, and which of them ends where there are too many.

Each keeps its state and what it has told, and whoever opens sessions and goes can leave as many as there are steps.
"""

import collections
from collections.abc import Collection
from typing import Protocol, TypeVar

FOR_EACH_SLOT = 4  # sessions, those that have a slot counted


class Waiting(Protocol):
    """A session, as it is seen here.

    Attributes:
      owner: whose it is. turns: its micro-turns so far.
    """

    owner: str

    @property
    def parked(self) -> bool:
        """Whether it waits for its client."""

    @property
    def turns(self) -> int:
        """Micro-turns so far."""


_W = TypeVar("_W", bound=Waiting)


def one_too_many(sessions: Collection[_W], slots: int, owner: str, of_owner: int) -> _W | None:
    """The session that has to end now that there is one more, of `owner`; None where all can stay.

    It is one that waits: of this owner, who may have `of_owner` sessions (0: any number, as who has no key may); or,
    where there are more than `FOR_EACH_SLOT` times the slots, of the owner of whom most wait, so that nobody drives out
    the sessions of others. Of these it is the shortest, for then the least is lost.
    """
    waiting = [one for one in sessions if one.parked]
    if owner and 0 < of_owner < sum(one.owner == owner for one in sessions):
        those = [one for one in waiting if one.owner == owner]
    elif len(sessions) > FOR_EACH_SLOT * slots:
        count = collections.Counter(one.owner for one in waiting)
        those = [one for one in waiting if count[one.owner] == max(count.values())]
    else:
        those = []
    return min(those, key=lambda one: one.turns, default=None)
