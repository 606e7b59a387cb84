"""A server's background model: its backend and its tools, on a thread and an event loop of their own.

Sessions live on another loop, so that nothing here, be it slow, hung or broken, holds up a conversation.
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import threading
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from tml_jax.serve.background.backend import Answer, Backend, Desk, Tool
from tml_jax.serve.background.embedded import Embedded

_T = TypeVar("_T")
START_S, CLOSE_S = 60.0, 8.0


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one task may take.

    Attributes:
      deadline_s: from its beginning to its answer, without the time that the user takes to confirm something.
      tool_deadline_s: for each use of a tool. confirm_s: for the user to confirm.
      tool_calls: uses of tools. tool_output: characters of what one says. answer: characters of an answer.
      tasks: at work at once, over all sessions; more wait.
    """

    deadline_s: float = 30.0
    tool_deadline_s: float = 10.0
    confirm_s: float = 30.0
    tool_calls: int = 16
    tool_output: int = 4000
    answer: int = 600
    tasks: int = 16

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) <= 0:
                raise ValueError(f"{field.name} must be more than 0.")


class ToolSource(Protocol):
    """Where tools come from."""

    @property
    def tools(self) -> Sequence[Tool]:
        """Those that there are now."""

    async def start(self) -> None:
        """Called once before the first task. Raises ValueError where it will never work."""

    async def close(self) -> None:
        """Called once after the last task."""


class FixedTools:
    """Tools that are always there."""

    def __init__(self, tools: tuple[Tool, ...]) -> None:
        """A source of these."""
        self.tools = tools

    async def start(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""


class Mind:
    """Works out what sessions hand over. Thread-safe; the thread begins with the first task, or with `start`.

    Attributes:
      limits: of each task.
    """

    def __init__(
        self, backend: Backend | None = None, sources: Sequence[ToolSource] = (), limits: Limits | None = None
    ) -> None:
        """Makes one of a backend, by default the embedded one, and its tools."""
        self.limits = limits or Limits()
        self._backend, self._sources = backend or Embedded(), tuple(sources)
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the backend and its tools now, in order to see what is wrong with them.

        Raises:
          ValueError, MissingExtraError: they cannot work.
        """
        self._submit(self._started()).result(START_S)

    def tools(self) -> dict[str, Tool]:
        """All tools that there are now, by name; the first of a name counts."""
        return {tool.name: tool for source in reversed(self._sources) for tool in reversed(source.tools)}

    async def answer(self, desk: Desk) -> Answer:
        """The backend's answer; may be cancelled, raises what the backend does."""
        return await asyncio.wrap_future(self._submit(self._answer(desk)))

    def close(self) -> None:
        """Ends what is under way, and the backend's and tools' own processes; blocks for some seconds at most."""
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is None or thread is None:
            return
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(self._closed(), loop).result(CLOSE_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(CLOSE_S)

    def _submit(self, work: Coroutine[Any, Any, _T]) -> concurrent.futures.Future[_T]:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._start_task: asyncio.Task[None] | None = None
                self._slots = asyncio.Semaphore(self.limits.tasks)
                self._thread = threading.Thread(target=_run_loop, args=(self._loop,), name="background", daemon=True)
                self._thread.start()
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _started(self) -> None:
        if self._start_task is None:
            self._start_task = asyncio.create_task(self._start_all())
        await asyncio.shield(self._start_task)

    async def _start_all(self) -> None:
        await asyncio.gather(self._backend.start(), *(source.start() for source in self._sources))

    async def _answer(self, desk: Desk) -> Answer:
        await self._started()
        async with self._slots:
            return await self._backend.answer(desk)

    async def _closed(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        closing = [self._backend.close(), *(source.close() for source in self._sources)]
        await asyncio.gather(*closing, return_exceptions=True)
        for task in others:
            task.cancel()
        await asyncio.wait(others, timeout=1.0) if others else None


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.close()
