"""Who is told what a session tells: its readers, and for one who comes back what was told meanwhile."""

import collections
from collections.abc import Callable, Iterable, Sequence

from tml_jax.serve.errors import ToldTooLongAgoError
from tml_jax.serve.subscription import Subscription
from tml_jax.wire import events


class Audience:
    """Counts a session's events and hands them to its readers. Used on the session's event loop.

    Attributes:
      told: events so far; also the number of the last.
    """

    def __init__(self, micro_turn_ms: int, keep_ms: int | None, read: Callable[[], None]) -> None:
        """Makes one without readers; it keeps events of `keep_ms` of the session, all (None) or none (0)."""
        self._micro_turn_ms, self._keep_ms, self._read = micro_turn_ms, keep_ms, read
        self._readers: list[Subscription] = []
        self._kept: collections.deque[tuple[int, events.Event]] = collections.deque()
        self._turns = 0
        self.told = 0

    @property
    def kept(self) -> list[tuple[int, events.Event]]:
        """The events that can be told again, and their numbers."""
        return list(self._kept)

    def go_on(self, told: int, kept: Iterable[tuple[int, events.Event]]) -> None:
        """Goes on as the audience of a session that has told so much."""
        self.told = told
        for sequence, event in kept:
            self._keep(sequence, event)

    def subscribe(self, first: Sequence[events.Event], limit_ms: int | None, after: int | None = None) -> Subscription:
        """A new reader, which is told `first` and then all that follows: event `after`, or now.

        Raises:
          ToldTooLongAgoError: not all of it is kept.
        """
        if after is not None and after + 1 < (self._kept[0][0] if self._kept else self.told + 1):
            raise ToldTooLongAgoError(after)
        again = [one for one in self._kept if after is not None and one[0] > after]
        if limit_ms is not None:
            limit_ms += self._micro_turn_ms * sum(isinstance(event, events.Turn) for _, event in again)
        reader = Subscription(self._micro_turn_ms, limit_ms, self._read, self.told if after is None else after)
        for event in first:
            reader.put(event)
        for sequence, event in again:
            reader.put(event, sequence)
        self._readers.append(reader)
        return reader

    def tell(self, told: Iterable[events.Event]) -> None:
        """Tells events to everybody."""
        self._readers = [reader for reader in self._readers if not reader.over.is_set()]
        for event in told:
            self.told += 1
            self._keep(self.told, event)
            for reader in self._readers:
                reader.put(event, self.told)

    def _keep(self, sequence: int, event: events.Event) -> None:
        if self._keep_ms == 0:
            return
        self._kept.append((sequence, event))
        self._turns += isinstance(event, events.Turn)
        while self._keep_ms is not None and self._turns * self._micro_turn_ms > self._keep_ms:
            self._drop()

    def _drop(self) -> None:
        self._turns -= isinstance(self._kept.popleft()[1], events.Turn)

    def arrived(self, sequence: int) -> None:
        """A reader that may come back has all events up to this one: they need not be kept."""
        while self._kept and self._kept[0][0] <= sequence:
            self._drop()

    @property
    def behind_ms(self) -> int:
        """How far the slowest reader is behind."""
        return max((reader.behind_ms for reader in tuple(self._readers) if not reader.over.is_set()), default=0)

    def finish(self, error: Exception | None) -> None:
        """Nothing more will be told."""
        for reader in self._readers:
            reader.finish(error)
