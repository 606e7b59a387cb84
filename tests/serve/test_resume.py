"""Sessions that outlive their connections and their servers: nothing is lost, told twice, or another bit."""

import asyncio
import contextlib
import pathlib
from collections.abc import AsyncIterator, Iterator
from typing import Any, Self

import numpy as np
import pytest

from tests.serve.conftest import bursts
from tml_jax import client
from tml_jax.client import media
from tml_jax.serve.config import SessionSettings
from tml_jax.serve.doors.grpc import GrpcDoor
from tml_jax.serve.engine import Engine
from tml_jax.serve.sessions import Sessions
from tml_jax.wire import events

TEXTS = [(0.7, "seven please"), (1.9, "what is six times seven")]


class Breakable:
    """A way to a server that can be moved to another and cut at any moment."""

    def __init__(self) -> None:
        self.target = ""
        self._open: set[asyncio.StreamWriter] = set()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        try:
            yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            self.cut()

    def cut(self) -> None:
        for writer in self._open:
            writer.transport.abort()
        self._open.clear()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(*self.target.split(":"))
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, back}
        await asyncio.gather(_pump(reader, back), _pump(there, writer))
        writer.transport.abort()
        back.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 14):
            writer.write(data)
            await writer.drain()
        writer.close()


def script(seed: int, rate: int = 16_000, texts: Any = ()) -> client.Script:
    frames = [np.full((40, 40, 3), 10 * k + seed, np.uint8) for k in range(20)]
    video = media.VideoFile(frames, [0.2 * k for k in range(20)])
    return client.Script(bursts(4.0, seed, rate), video, texts=texts, tail_s=0.6, seed=seed)


def kept(told: list[events.Event]) -> list[tuple]:
    """All of a session's events that must repeat, the background's in an order of their own."""
    plain: list[tuple] = []
    for event in told:
        match event:
            case events.Turn():
                plain.append(("turn", event.turn, event.decision, event.silence_ms, event.input_level, event.frames))
                assert not event.lost_ms
            case events.Sound():
                plain.append(("sound", event.turn, event.start_ms, event.samples.tobytes()))
            case events.Words() | events.HeardWords():
                plain.append((type(event).__name__, *vars(event).values()))
            case events.Ended():
                plain.append(("ended", event.turns, event.silence_ms))
    return plain


class Holding:
    """A conversation under way."""

    def __init__(self, channel: Any, script: client.Script) -> None:
        self.told: list[events.Event] = []
        self.task = asyncio.create_task(
            client.converse(channel, script, real_time=False, observe=self.told.append, chunk_ms=37)
        )

    async def until(self, count: int) -> None:
        """Has been told so many events, or is over."""
        while len(self.told) < count and not self.task.done():
            await asyncio.sleep(0.001)

    async def all(self) -> list[events.Event]:
        await self.task
        return self.told


@pytest.fixture(scope="module")
def engine(bundle) -> Iterator[Engine]:
    """One for all servers of this file, which find nothing of each other's sessions in it."""
    engine = Engine(bundle, 4, faster_than_real_time=True)
    engine.start()
    yield engine
    assert engine.stats().compilations_after_warmup == 0
    engine.stop()


class OneServer:
    """A gRPC door and its sessions."""

    def __init__(self, engine: Engine, folder: pathlib.Path | None, **session: Any) -> None:
        settings = SessionSettings(**({"snapshot_turns": 6} | session))
        self.sessions = Sessions(engine, settings, None, folder)
        self.door = GrpcDoor(self.sessions)
        self.address = ""

    async def __aenter__(self) -> Self:
        self.address = f"127.0.0.1:{await self.door.open('127.0.0.1:0')}"
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.door.drain(0.0)

    async def die(self) -> None:
        """As a process that is killed: everything stops, and nothing is said or kept any more."""
        self.sessions._session_dir = None
        for session in tuple(self.sessions._live):
            session._over = True
            if session._slot is not None:
                session._engine.release(session._slot, session)
            for task in (session._watcher, session._pump):
                task.cancel()
            if session._log:
                session._log.close(forget=False)
        await self.door._server.stop(None)


async def uninterrupted(engine: Engine, script: client.Script) -> list[events.Event]:
    async with OneServer(engine, None) as server, client.connect(server.address) as channel:
        return await Holding(channel, script).all()


def moments(seed: int) -> list[int]:
    """Numbers of events, of some sixty."""
    return sorted(np.random.default_rng(seed).choice(np.arange(1, 50), 4, replace=False))


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_client_that_is_cut_off_again_and_again_loses_nothing(engine, run, rate: int) -> None:
    async def scenario() -> tuple:
        whole = await uninterrupted(engine, script(3, rate))
        way = Breakable()
        async with OneServer(engine, None) as server, way.listening() as there:
            way.target = server.address
            async with client.connect(there, resume=True) as channel:
                holding = Holding(channel, script(3, rate))
                for count in moments(rate):
                    await holding.until(count)
                    way.cut()
                return whole, await holding.all(), server.sessions.resumed

    whole, told, resumed = run(scenario())
    assert kept(told) == kept(whole)
    assert resumed >= 2


@pytest.mark.parametrize("rate", [16_000, 11_025])
def test_a_server_that_dies_again_and_again_loses_nothing(engine, run, tmp_path: pathlib.Path, rate: int) -> None:
    async def scenario() -> tuple:
        whole = await uninterrupted(engine, script(5, rate))
        way, resumed = Breakable(), 0
        async with way.listening() as there, client.connect(there, resume=True) as channel:
            holding = Holding(channel, script(5, rate))
            for count in (*moments(rate), 1000):
                async with OneServer(engine, tmp_path) as server:
                    way.target = server.address
                    await holding.until(count)
                    if count < 1000:
                        await server.die()
                    way.cut()
                    resumed += server.sessions.resumed
            return whole, await holding.all(), resumed

    whole, told, resumed = run(scenario())
    assert kept(told) == kept(whole)
    assert resumed >= 2
    assert not list(tmp_path.iterdir()), "nothing is kept of a session that is over"
