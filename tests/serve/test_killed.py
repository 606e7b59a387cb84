"""Real servers of the shipped model, killed or told to go while four people talk with them."""

import asyncio
import contextlib
import os
import pathlib
import re
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator

import numpy as np
import pytest

from tests.serve.test_resume import kept
from tml_jax import client
from tml_jax.client import media
from tml_jax.data.speech_bank import SAMPLE_RATE, SpeechBank
from tml_jax.wire import events

SESSIONS = 4
ROUND_S = 40.0


class Served:
    """A server's process at a port, which is started again as often as one likes; it shares its sessions."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.address = f"127.0.0.1:{self._port}"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        flags = (f"--port={self._port}", f"--session_dir={self._folder / 'sessions'}", f"--slots={SESSIONS}")
        command = ("-m", "launch.serve", "--checkpoint=checkpoints/inkling_tiny", "--faster_than_real_time", *flags)
        environment = {"JAX_COMPILATION_CACHE_DIR": str(self._folder / "compiled")} | os.environ
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=pipe, env=environment)
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        assert re.search(rf":{self._port}$", line.decode().strip()), line

    async def stop(self, number: signal.Signals) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        await self._process.communicate()
        return self._process.returncode or 0

    async def make_sure(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.communicate()


@contextlib.asynccontextmanager
async def two_servers(folder: pathlib.Path) -> AsyncIterator[list[Served]]:
    servers = [Served(folder), Served(folder)]
    try:
        for server in servers:
            await server.start()
        yield servers
    finally:
        for server in servers:
            await server.make_sure()


def scripts(round_: int, seconds: float) -> list[client.Script]:
    """Commands that the model answers by itself, with pauses; each session has its own rate."""
    bank, rng = SpeechBank.load("checkpoints/speech_bank"), np.random.default_rng(round_)
    texts = ["count to three", "count to four", "count to five", "repeat six four please"]
    clips = bank.select(split="heldout", text=texts)
    made = []
    for number, rate in enumerate((16_000, 16_000, 48_000, 44_100)):
        pieces: list[np.ndarray] = []
        while sum(map(len, pieces)) < seconds * SAMPLE_RATE:
            said = bank.audio(clips[rng.integers(len(clips))])
            pieces += [np.zeros(rng.integers(4000, 9000), np.float32), said, np.zeros(40_000, np.float32)]
        sound = np.concatenate(pieces)[: round(seconds * SAMPLE_RATE)]
        if rate != SAMPLE_RATE:
            sound = np.interp(np.arange(round(len(sound) * rate / SAMPLE_RATE)) * SAMPLE_RATE / rate,
                              np.arange(len(sound)), sound)  # fmt: skip
        made.append(client.Script(media.SoundFile(sound[:, None].astype(np.float32), rate), tail_s=1.0, seed=number))
    return made


async def hold(servers: list[Served], script: client.Script, told: list[events.Event], real_time: bool) -> None:
    async with client.connect(*(server.address for server in servers), resume=True) as channel:
        await client.converse(channel, script, real_time=real_time, observe=told.append)


async def all_at_once(
    servers: list[Served], talks: list[client.Script], real_time: bool
) -> tuple[list[list[events.Event]], "asyncio.Future[list[None]]"]:
    told: list[list[events.Event]] = [[] for _ in talks]
    return told, asyncio.gather(*(hold(servers, *one, real_time) for one in zip(talks, told, strict=True)))


async def replace(folder: pathlib.Path, times: int, number: signal.Signals, seconds: float) -> None:
    """Ends the server that people talk with, `times` in all, while they go on with the other one."""
    rng, ended, began = np.random.default_rng(number), 0, time.monotonic()
    async with two_servers(folder) as servers:
        round_ = turns = 0
        while ended < times:
            talks = scripts(round_, seconds)
            wanted, holding = await all_at_once(servers[:1], talks, real_time=False)
            await holding
            told, holding = await all_at_once(servers, talks, real_time=True)
            while not holding.done() and ended < times:
                await asyncio.wait((holding,), timeout=rng.uniform(0.1, 2.0))
                if holding.done():
                    break
                status = await servers[0].stop(number)
                assert status == (0 if number is signal.SIGTERM else -number)
                ended += 1
                servers.append(servers.pop(0))  # people are with the other one now
                await servers[1].start()
            await holding
            for mine, whole in zip(told, wanted, strict=True):
                assert kept(mine) == kept(whole)
                assert any(isinstance(event, events.Words) for event in mine)
            turns += sum(isinstance(event, events.Turn) for mine in told for event in mine)
            round_ += 1
            took = f"{time.monotonic() - began:.0f} s"
            print(f"{ended} times {number.name}, {SESSIONS} sessions in {round_} rounds, {turns} micro-turns, {took}")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_people_talk_on_while_their_server_is_killed_or_told_to_go(tmp_path: pathlib.Path, number) -> None:
    asyncio.run(replace(tmp_path, 2, number, seconds=20.0))


@pytest.mark.soak
@pytest.mark.parametrize(("number", "times"), [(signal.SIGKILL, 50), (signal.SIGTERM, 20)])
def test_people_talk_on_however_often_that_happens(tmp_path: pathlib.Path, number, times: int) -> None:
    asyncio.run(replace(tmp_path, times, number, ROUND_S))
