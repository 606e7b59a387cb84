"""One reader of a session: a bounded queue of events, so that who does not read delays and holds up nobody."""

import asyncio
import collections
from collections.abc import Callable

from tml_jax.wire import events


class SlowClientError(RuntimeError):
    """The client does not read what it is sent."""


class Subscription:
    """Everything that a session tells from now on: an async iterator. Used on the session's event loop.

    The iteration ends with the session, by the session's error if it had one, after what was told before. A reader
    that falls behind loses what waits for it and gets a `SlowClientError`; the session goes on.

    Attributes:
      over: set when nothing more will come than what waits already.
      sequence: number of the last numbered event that was read, in the session.
    """

    def __init__(self, micro_turn_ms: int, limit_ms: int | None, read: Callable[[], None], sequence: int = 0) -> None:
        """Makes one that may fall `limit_ms` of micro-turns behind (None: any number); `read` is told of each event.

        It has read all events up to `sequence`, and passes them over.
        """
        self._micro_turn_ms, self._limit_ms, self._read = micro_turn_ms, limit_ms, read
        self.sequence = self._last = sequence
        self._waiting: collections.deque[tuple[int, events.Event]] = collections.deque()
        self._error: Exception | None = None
        self._turns = 0
        self._news = asyncio.Event()
        self.over = asyncio.Event()

    @property
    def behind_ms(self) -> int:
        """How much of the session waits to be read."""
        return self._turns * self._micro_turn_ms

    @property
    def waiting(self) -> int:
        """Events that were told and not read yet."""
        return len(self._waiting)

    def put(self, event: events.Event, sequence: int = 0) -> None:
        """Tells one event and its number, if it has one; nothing where the subscription is over."""
        if self.over.is_set() or 0 < sequence <= self._last:
            return
        self._waiting.append((sequence, event))
        self._turns += isinstance(event, events.Turn)
        self._news.set()
        if self._limit_ms is not None and self.behind_ms > self._limit_ms:
            self._waiting.clear()
            behind = f"{self._limit_ms / 1000:g} s behind in reading its replies"
            self.finish(SlowClientError(f"The client is {behind}, so it is told no more."))

    def finish(self, error: Exception | None) -> None:
        """Nothing more will come; only the first reason counts."""
        if not self.over.is_set():
            self._error = error
            self.over.set()
            self._news.set()

    def forget(self) -> None:
        """Its reader has gone: the error that it was told, which the session keeps, holds none of its frames."""
        if self._error is not None:
            self._error.__traceback__ = None

    def __aiter__(self) -> "Subscription":
        return self

    async def __anext__(self) -> events.Event:
        """The next event.

        Raises:
          SlowClientError: this reader was too slow.
          Exception: for which the session ended.
        """
        while not self._waiting:
            if self.over.is_set():
                raise self._error or StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        sequence, event = self._waiting.popleft()
        self.sequence = sequence or self.sequence
        self._turns -= isinstance(event, events.Turn)
        self._read()
        return event
