"""The background model of one session: takes a context package, uses tools, sends its answer back as text.

It runs beside the conversation: the model goes on listening and speaking meanwhile, and an interrupted answer
interrupts no work here. Whatever goes wrong in a task is one journal line and the answer "i do not know".
"""

import asyncio
import dataclasses
from collections.abc import Callable, Sequence

from tml_jax.serve.background.tools import DEFAULT_TOOLS, UNKNOWN, Tool


@dataclasses.dataclass(frozen=True)
class Said:
    """One entry of the conversation so far; what was heard and said is in pieces with their own spaces."""

    time_s: float
    who: str  # "user" (heard), "user_text" (typed), "model" or "background"
    text: str


@dataclasses.dataclass(frozen=True)
class ContextPackage:
    """What the background model is told: the conversation so far, as the model heard and said it."""

    time_s: float
    said: tuple[Said, ...]

    def question(self, within_s: float = 15.0) -> str:
        """What the user said and typed last: since the model last spoke, and not longer ago than `within_s`."""
        pieces: list[str] = []
        for entry in reversed(self.said):
            if entry.time_s < self.time_s - within_s or (entry.who == "model" and pieces):
                break
            if entry.who in ("user", "user_text"):
                pieces.append(entry.text if entry.who == "user" else f" {entry.text} ")
        return " ".join("".join(reversed(pieces)).split())


@dataclasses.dataclass(frozen=True)
class TaskEvent:
    """A task began or ended: `state` is "started", "finished" or "failed". Without a `task`, it was the client's."""

    task: int | None
    state: str
    text: str


class BackgroundActor:
    """Answers delegated questions, each in its own asyncio task.

    Attributes:
      pending: tasks under way.
    """

    def __init__(
        self,
        answer: Callable[[str], None],
        report: Callable[[TaskEvent], None],
        tools: Sequence[Tool] = DEFAULT_TOOLS,
        timeout_s: float = 5.0,
    ) -> None:
        """Makes an actor.

        Args:
          answer: called with the text for the model.
          report: called when a task starts, finishes or fails.
          tools: tried in order; the first that answers is believed.
          timeout_s: a task that takes longer has failed.
        """
        self._answer, self._report, self._tools, self._timeout_s = answer, report, tuple(tools), timeout_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._count = 0

    @property
    def pending(self) -> int:
        """Tasks under way."""
        return len(self._tasks)

    def delegate(self, context: ContextPackage, number: int | None = None) -> int:
        """Starts a task and returns its number: the next, or that of one that another process has left undone."""
        number = self._count if number is None else number
        self._count = max(self._count, number + 1)
        self._report(TaskEvent(number, "started", context.question()))
        task = asyncio.create_task(self._run(number, context))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return number

    async def _run(self, number: int, context: ContextPackage) -> None:
        text, event = UNKNOWN, None
        try:
            text = await asyncio.wait_for(asyncio.to_thread(self._ask, context.question()), self._timeout_s)
            event = TaskEvent(number, "finished", text)
        except TimeoutError:
            event = TaskEvent(number, "failed", f"no answer within {self._timeout_s:g} s")
        except Exception as error:  # a tool may raise anything; the session must not notice
            event = TaskEvent(number, "failed", f"{type(error).__name__}: {error}")
        self._report(event)
        self._answer(text)

    def _ask(self, question: str) -> str:
        for tool in self._tools:
            if (text := tool(question)) is not None:
                return text
        return UNKNOWN

    def close(self) -> None:
        """Drops what is under way; the session is over."""
        for task in self._tasks:
            task.cancel()
