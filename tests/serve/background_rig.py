"""An actor of the background model in a conversation that a test makes up, micro-turn by micro-turn."""

import asyncio
import contextlib
import dataclasses
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import uvicorn

from tml_jax.serve.background.actor import BackgroundActor, TaskEvent
from tml_jax.serve.background.backend import Answer, Desk, Tool
from tml_jax.serve.background.context import Said, Timeline
from tml_jax.serve.background.mind import FixedTools, Limits, Mind
from tml_jax.wire import events

LISTEN, SPEAK = events.Decision.LISTEN, events.Decision.SPEAK
LOUD = 0.2


class Scripted:
    """A backend that does what a test says."""

    def __init__(self, answer: Callable[[Desk], Awaitable[Answer]]) -> None:
        self._answer, self.asked = answer, list[str]()

    async def start(self) -> None:
        pass

    async def answer(self, desk: Desk) -> Answer:
        self.asked.append(desk.context.question())
        return await self._answer(desk)

    async def close(self) -> None:
        pass


@dataclasses.dataclass
class Rig:
    """What an actor said and reported, and the conversation that it is in."""

    actor: BackgroundActor
    timeline: Timeline
    turn: int = -1
    said: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    reports: list[TaskEvent] = dataclasses.field(default_factory=list)

    def tell(self, decision: events.Decision = LISTEN, level: float = 0.0, heard: str = "", words: str = "") -> None:
        """One micro-turn."""
        self.turn += 1
        told: list[events.Event] = [events.Turn(self.turn, decision, 1.0, False, 0, level, 0)]
        told += [events.HeardWords(self.turn, heard, 0, 0)] if heard else []
        told += [events.Words(self.turn, words, 0, 0)] if words else []
        now = (self.turn + 1) * 0.2
        for who, text in (("user", heard), ("model", words)):
            if text:
                self.timeline.add(Said(now, who, text))
        self.actor.observe(told)

    def typed(self, text: str) -> None:
        """The user types this."""
        self.timeline.add(Said((self.turn + 1) * 0.2, "user_text", text))
        self.actor.typed(text)

    def delegate(self) -> int:
        """The model hands over."""
        return self.actor.delegate(self.timeline.package((self.turn + 1) * 0.2))

    def hear(self, text: str) -> None:
        """The user says this, loudly, and then nothing for a while."""
        self.tell(level=LOUD)
        self.tell(level=LOUD, heard=f" {text}")
        for _ in range(3):
            self.tell()

    def states(self) -> list[str]:
        return [event.state for event in self.reports if event.state != "progress"]

    async def until(self, reached: Callable[[], bool], tick: Callable[[], None] | None = None) -> None:
        """Lets real time go by, in silence or as `tick` tells it, until something is so."""
        async with asyncio.timeout(60):
            while not reached():
                (tick or self.tell)()
                await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def rig(mind: Mind) -> AsyncIterator[Rig]:
    """An actor in a conversation that has not begun."""
    made: Rig
    timeline = Timeline()

    def remember(text: str) -> None:
        timeline.add(Said((made.turn + 1) * 0.2, "background", text))

    def say(text: str) -> None:
        remember(text)
        made.said.append((made.turn, text))

    actor = BackgroundActor(
        mind,
        say,
        remember,
        lambda event: made.reports.append(event),
        lambda: (made.turn + 1) * 0.2,
    )
    made = Rig(actor, timeline)
    try:
        yield made
    finally:
        actor.close()
        await asyncio.to_thread(mind.close)


def play(
    scenario: Callable[[Rig], Awaitable[None]],
    answer: Callable[[Desk], Awaitable[Answer]],
    tools: tuple[Tool, ...] = (),
    **limits: Any,
) -> Scripted:
    """Plays a conversation beside a backend that a test wrote."""
    backend = Scripted(answer)

    async def run() -> None:
        async with asyncio.timeout(90), rig(Mind(backend, [FixedTools(tools)], Limits(**limits))) as made:
            await scenario(made)

    asyncio.run(run())
    return backend


async def at_once(desk: Desk) -> Answer:
    return Answer(f"the answer to {desk.context.question()}")


class Bank:
    """A tool that must never be used by itself."""

    def __init__(self) -> None:
        self.paid: list[dict[str, Any]] = []

    def tool(self) -> Tool:
        async def pay(arguments: dict[str, Any]) -> str:
            self.paid.append(arguments)
            return "paid"

        return Tool("send_money", "Sends money.", {"type": "object"}, pay, consequential=True)


@contextlib.contextmanager
def http_server(app: Any) -> Iterator[str]:
    """An ASGI app on a port of its own, in a thread; its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        for _ in range(3000):
            if server.started:
                break
            time.sleep(0.01)
        host, port = server.servers[0].sockets[0].getsockname()[:2]
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
