"""People who talk all the time, always the same: what they got, and when. As a program, in a process of their own."""

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import sys
import types
from collections.abc import AsyncIterator
from typing import Any

import numpy as np

from tests.serve.conftest import bursts
from tests.serve.hostile_clients import KEY
from tests.serve.test_resume import kept
from tml_jax import client
from tml_jax.wire import events

LOUD_S = 6.0


@dataclasses.dataclass
class Talks:
    """What they got.

    Attributes:
      replies: who, and a digest of all that must repeat.
      round_trip_ms: how long each micro-turn took to come back.
      silence_ms: silence that was put into their sound.
    """

    replies: list[list[Any]] = dataclasses.field(default_factory=list)
    round_trip_ms: list[float] = dataclasses.field(default_factory=list)
    silence_ms: int = 0

    def percentile(self, percent: float) -> float:
        """Of the round trips."""
        return float(np.percentile(self.round_trip_ms, percent))

    def told(self) -> str:
        """In words."""
        count = len(self.round_trip_ms)
        return f"p50 {self.percentile(50):.0f} ms, p99 {self.percentile(99):.0f} ms of {count} micro-turns"


@contextlib.asynccontextmanager
async def program(module: types.ModuleType, *arguments: object) -> AsyncIterator[asyncio.subprocess.Process]:
    """A module in a process of its own."""
    words, pipe = ("-m", module.__name__, *map(str, arguments)), asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, *words, stdin=pipe, stdout=pipe)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def told_by(process: asyncio.subprocess.Process) -> dict[str, Any]:
    """What it tells in the end, once its input has ended."""
    told, _ = await process.communicate(b"")
    return json.loads(told.splitlines()[-1])


async def talk(address: str, number: int, talks: Talks) -> None:
    """One conversation, the same for each number."""
    told = list[events.Event]()
    async with client.connect(client.Address(address, KEY)) as channel:
        script = client.Script(bursts(LOUD_S, seed=number), tail_s=0.4, seed=number)
        recording = await client.converse(channel, script, observe=told.append)
    assert recording.events[-1]["type"] == "end", recording.events[-1]
    talks.replies.append([number, hashlib.sha256(repr(kept(told)).encode()).hexdigest()])
    talks.round_trip_ms += recording.round_trip_ms
    talks.silence_ms += sum(event.silence_ms for event in told if isinstance(event, events.Turn))


async def _talk_on(address: str, count: int) -> Talks:
    talks, over = Talks(), asyncio.create_task(asyncio.to_thread(sys.stdin.read))

    async def on(number: int) -> None:
        await talk(address, number, talks)
        while not over.done():
            await talk(address, number, talks)

    await asyncio.gather(*map(on, range(count)))
    return talks


def main() -> None:
    """So many talk to the server at an address, once at least and until the input ends; then tells, as JSON."""
    address, count = sys.argv[1:]
    print(json.dumps(dataclasses.asdict(asyncio.run(_talk_on(address, int(count))))))


if __name__ == "__main__":
    main()
