"""Instructions that hold for a whole session: the model reads them again before they go out of its view."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class View:
    """What a model sees of a conversation: its first `sinks` tokens for good, and the last `window`."""

    sinks: int
    window: int


class Standing:
    """A session's instructions that it would forget. What is read again, and when, follows from what it reads alone.

    The latest that fit into a 32nd of the view come again when half of the view has passed: at most a sixteenth of all
    that the model reads.
    """

    def __init__(self, view: View | None) -> None:
        """Of a session that has read nothing; without a `view` nothing goes out of it."""
        self._view = view
        self._messages: list[tuple[int, ...]] = []
        self._read = self._since = 0  # tokens of all kinds: all; and since instructions were read, or came

    def state(self) -> tuple[list[tuple[int, ...]], int, int]:
        """All that it is."""
        return list(self._messages), self._read, self._since

    def go_on(self, state: tuple[Sequence[Sequence[int]], int, int]) -> None:
        """Goes on where another one was."""
        messages, self._read, self._since = state
        self._messages = [tuple(message) for message in messages]

    def add(self, message: Sequence[int]) -> None:
        """Further instructions, which are read from now on: with what comes in between twice their tokens."""
        view = self._view
        if view is None or self._read + 2 * len(message) <= view.sinks:
            return
        if not self._messages:
            self._since = 0
        self._messages.append(tuple(message))
        while sum(map(len, self._messages)) > view.window // 32:
            del self._messages[0]

    def read(self, count: int) -> list[int]:
        """The session reads so many tokens. Returns the instructions that it is to read again after them."""
        self._read, self._since = self._read + count, self._since + count
        if self._view is None or not self._messages or self._since < self._view.window // 2:
            return []
        self._since = 0
        return [token for message in self._messages for token in message]
