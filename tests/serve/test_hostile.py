"""Hundreds of hostile acts at every door, and by the thousand: each is answered, nothing grows, two others talk on."""

import asyncio
import collections
import ctypes
import dataclasses
import gc
import json
import logging
import os
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest

from tests.serve import hostile_acts, hostile_clients
from tests.serve.conftest import RunningWeb, bursts, start_web
from tests.serve.test_resume import kept
from tml_jax import client
from tml_jax.serve.config import SessionSettings
from tml_jax.serve.server import ServerSettings
from tml_jax.wire import events

SLOTS = 12
WITNESSES = 2
LOUD_S = 8.0


@dataclasses.dataclass
class Talks:
    """What two people who talk all the time got: their replies, and how long each micro-turn took to come back."""

    replies: list[tuple[int, Any]] = dataclasses.field(default_factory=list)
    round_trip_ms: list[float] = dataclasses.field(default_factory=list)

    def told(self) -> str:
        p50, p99 = np.percentile(self.round_trip_ms, (50, 99))
        return f"p50 {p50:.0f} ms, p99 {p99:.0f} ms of {len(self.round_trip_ms)} micro-turns"


async def witness(server: RunningWeb, number: int, talks: Talks) -> None:
    """One conversation, always the same."""
    address, told = client.Address(server.address, hostile_clients.KEY), list[events.Event]()
    async with client.connect(address) as channel:
        script = client.Script(bursts(LOUD_S, seed=number), tail_s=0.4, seed=number)
        recording = await client.converse(channel, script, observe=told.append)
    assert recording.events[-1]["type"] == "end", recording.events[-1]
    talks.replies.append((number, kept(told)))
    talks.round_trip_ms += recording.round_trip_ms


async def witnesses(server: RunningWeb, talks: Talks, until: asyncio.Event) -> None:
    """Both of them, over and over, once at least."""

    async def on(number: int) -> None:
        await witness(server, number, talks)
        while not until.is_set():
            await witness(server, number, talks)

    await asyncio.gather(*map(on, range(WITNESSES)))


def held() -> tuple[int, int, int]:
    """Files, threads and tasks of this process."""
    return len(os.listdir("/proc/self/fd")), threading.active_count(), len(asyncio.all_tasks())


async def settle(server: RunningWeb) -> float:
    """Waits until all sessions are over, and gives the memory of this process then."""
    async with asyncio.timeout(60):
        while len(server.server.sessions) or server.server.engine.stats().live:
            await asyncio.sleep(0.1)
    await asyncio.sleep(0.5)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return hostile_clients.resident_mib()


async def throw(server: RunningWeb, seed: int, first: int, last: int) -> dict[str, Any]:
    """Has another process do the acts of these numbers; gives what became of them, as `hostile_acts.main` tells it."""
    ports = server.address.rpartition(":")[2], str(server.server.web.port)
    words = ("-m", hostile_acts.__name__, *ports, *map(str, (seed, first, last)))
    process = await asyncio.create_subprocess_exec(sys.executable, *words, stdout=asyncio.subprocess.PIPE)
    try:
        told, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    return json.loads(told.splitlines()[-1])


async def scenario(bundle, acts: int, seed: int) -> list[str]:
    """All of it; fails where anything grew or a witness's bits changed."""
    settings = ServerSettings(
        slots=SLOTS, http_address="127.0.0.1:0", api_keys=[hostile_clients.KEY], session=SessionSettings(resume_s=2.0)
    )
    async with start_web(bundle, settings) as server:
        alone, beside, over = Talks(), Talks(), asyncio.Event()
        over.set()
        await witnesses(server, alone, over)
        over.clear()
        warm = acts // 5
        first = await throw(server, seed, 0, warm)
        before, had = await settle(server), held()
        talking = asyncio.create_task(witnesses(server, beside, over))
        began = time.monotonic()
        rest = await throw(server, seed, warm, acts)
        took_s = time.monotonic() - began
        over.set()
        await talking
        after, has = await settle(server), held()
        stats = server.server.engine.stats()
        answers, faults = (
            collections.Counter(first["answers"]) + collections.Counter(rest["answers"]),
            first["faults"] + rest["faults"],
        )
        table = "\n".join(f"  {count:6d} {code}" for code, count in sorted(answers.items()))
        told = (
            f"{acts} acts, the last {acts - warm} in {took_s:.0f} s; answers and errors:\n{table}\n"
            f"memory {before:.0f} -> {after:.0f} MiB; files, threads, tasks {had} -> {has}\n"
            f"{WITNESSES} witnesses alone {alone.told()}; beside {beside.told()}, {len(beside.replies)} conversations\n"
            f"{stats.steps} steps, p99 {stats.step_p99_ms:.1f} ms, {stats.deadline_misses} late, "
            f"{stats.compilations_after_warmup} compilations\n" + "\n".join(faults[:40])
        )
        print(told)
        assert all(reply in alone.replies for reply in beside.replies), "somebody heard something else"
        assert stats.compilations_after_warmup == 0
        assert all(now <= then + 3 for now, then in zip(has, had, strict=True)), (had, has)
        assert after < before + 32 + 0.1 * before * (acts < 1000), (before, after)
        return faults


def check(bundle, caplog: pytest.LogCaptureFixture, acts: int, seed: int) -> None:
    with caplog.at_level(logging.ERROR):
        faults = asyncio.run(scenario(bundle, acts, seed))
    for record in caplog.records[:10]:
        print(record.name, record.getMessage(), record.exc_info and repr(record.exc_info[1]))
    assert not faults, f"{len(faults)} faults, such as {faults[:3]}"
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_hostile_acts_are_answered_and_touch_nobody_else(bundle, caplog) -> None:
    check(bundle, caplog, 300, seed=1)


@pytest.mark.soak
def test_ten_thousand_hostile_acts_are_answered_and_nothing_grows(bundle, caplog) -> None:
    check(bundle, caplog, 10_000, seed=2)
