"""Sessions that outlive their connections and their servers: nothing is lost, told twice, or another bit."""

import asyncio
import contextlib
import pathlib
from collections.abc import AsyncIterator, Iterator
from typing import Any, Self

import grpc
import numpy as np
import pytest

from tests.serve.background_rig import Scripted
from tests.serve.conftest import bursts
from tml_jax import client
from tml_jax.client import media
from tml_jax.serve.background.backend import Answer, Delivery, Desk
from tml_jax.serve.background.mind import Mind
from tml_jax.serve.config import SessionSettings
from tml_jax.serve.doors.grpc import GrpcDoor
from tml_jax.serve.engine import Engine
from tml_jax.serve.sessions import Sessions
from tml_jax.wire import events, protos

RATES = (16_000, 16_000, 44_100, 48_000)
TEXTS = ((0.7, "seven please"), (2.1, "nine"))


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


def script(seed: int, rate: int = 16_000, texts: Any = TEXTS) -> client.Script:
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
    engine.start(identify=True)
    yield engine
    assert engine.stats().compilations_after_warmup == 0
    engine.stop()


async def _never(*asked: object) -> None:
    await asyncio.get_running_loop().create_future()


class OneServer:
    """A gRPC door and its sessions."""

    def __init__(self, engine: Engine, folder: pathlib.Path | None = None, **session: Any) -> None:
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
        setattr(self.sessions, "resume", _never)  # noqa: B010
        self.sessions._session_dir = None
        for session in tuple(self.sessions._live):
            session._over = True
            if session._slot is not None:
                session._engine.release(session._slot, session)
            for task in (session._watcher, session._pump):
                task.cancel()
            session._actor.close()
            if session._log:
                session._log.close(forget=False)
        await self.door._server.stop(None)


async def uninterrupted(engine: Engine, script: client.Script) -> list[events.Event]:
    async with OneServer(engine, None) as server, client.connect(server.address) as channel:
        return await Holding(channel, script).all()


def moments(seed: int) -> list[int]:
    """Numbers of events, of some sixty."""
    return sorted(np.random.default_rng(seed).choice(np.arange(1, 36), 4, replace=False))


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


@pytest.mark.slow
def test_four_sessions_through_fifty_deaths(engine, run, tmp_path: pathlib.Path) -> None:
    talks = [client.Script(bursts(40.0, seed, rate), tail_s=0.6, seed=seed) for seed, rate in enumerate(RATES)]

    async def scenario() -> tuple:
        whole = [await uninterrupted(engine, talk) for talk in talks]
        way, deaths = Breakable(), 0
        async with way.listening() as there, client.connect(there, resume=True) as channel:
            holdings = [Holding(channel, talk) for talk in talks]
            rng = np.random.default_rng(0)
            while not all(holding.task.done() for holding in holdings):
                async with OneServer(engine, tmp_path) as server:
                    way.target = server.address
                    one = next(holding for holding in holdings if not holding.task.done())
                    await one.until(len(one.told) + rng.integers(1, 12) if deaths < 50 else 10_000)
                    if deaths < 50:
                        await server.die()
                        deaths += 1
                    else:
                        await asyncio.gather(*(holding.task for holding in holdings))
                    way.cut()
            return whole, [await holding.all() for holding in holdings], deaths

    whole, told, deaths = run(scenario())
    assert deaths == 50
    assert [kept(one) for one in told] == [kept(one) for one in whole]


def test_a_server_that_goes_leaves_its_sessions_to_another(engine, run, tmp_path: pathlib.Path) -> None:
    async def scenario() -> tuple:
        whole = await uninterrupted(engine, script(7))
        async with (
            OneServer(engine, tmp_path) as first,
            OneServer(engine, tmp_path) as second,
            client.connect(first.address, second.address, resume=True) as channel,
        ):
            holding = Holding(channel, script(7))
            await holding.until(20)
            await first.door.drain(60.0)
            return whole, await holding.all(), second.sessions.resumed

    whole, told, resumed = run(scenario())
    assert kept(told) == kept(whole)
    assert resumed == 1


CONFIG = protos.ConverseRequest(config=protos.SessionConfig(sends_audio=True, wants_audio=True, resumable=True))


def sound(offset: int | None, samples: int = 3200) -> Any:
    pcm = (9000 * np.sin(np.arange(samples))).astype("<i2").tobytes()
    return protos.ConverseRequest(audio=protos.AudioChunk(pcm=pcm, offset=offset))


def resume(token: str, sequence: int = 0) -> Any:
    return protos.ConverseRequest(resume=protos.Resume(token=token, sequence=sequence))


async def call(channel: grpc.aio.Channel, *requests: Any) -> Any:
    call = protos.converse_method(channel)()
    for request in requests:
        await call.write(request)
    return call


async def turns(call: Any, count: int) -> list[Any]:
    """So many micro-turns, and all that comes between."""
    found: list[Any] = []
    while sum(message.WhichOneof("payload") == "turn" for message in found) < count:
        found.append(await call.read())
    return found


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        while await call.read() is not grpc.aio.EOF:
            pass
    return error.value.code(), error.value.details()


def test_who_resumes_is_told_what_followed_and_takes_over(engine, run) -> None:
    async def scenario() -> tuple:
        async with OneServer(engine) as server, client.connect(server.address) as channel:
            old = await call(channel, CONFIG, sound(0), sound(3200))
            started = (await old.read()).started
            told = await turns(old, 2)
            new = await call(channel, resume(started.resume_token, told[0].sequence))
            again = (await new.read()).started
            retold = await turns(new, 1)
            taken_over = await refusal(old)
            await new.write(sound(3200))  # is there already
            await new.write(sound(6400))
            (after,) = await turns(new, 1)
            return started, told, again, retold, taken_over, after

    started, told, again, retold, taken_over, after = run(scenario())
    assert [message.sequence for message in told] == list(range(1, len(told) + 1))
    assert [m.SerializeToString() for m in retold] == [m.SerializeToString() for m in told[1 : 1 + len(retold)]]
    assert (again.session_id, again.resume_token) == (started.session_id, started.resume_token)
    assert (started.received.sound, again.received.sound) == (0, 6400)
    assert taken_over == (grpc.StatusCode.ABORTED, "Another connection has taken this session over.")
    assert (after.turn.turn, after.turn.received.sound, after.turn.lost_ms) == (2, 9600, 0)


def test_sound_that_is_there_is_dropped_and_what_is_missing_is_told(engine, run) -> None:
    async def scenario() -> tuple:
        async with OneServer(engine) as server, client.connect(server.address) as channel:
            one = await call(channel, CONFIG, sound(0, 4800), sound(1600, 4800), sound(8000, 4800))
            await one.read()
            found = [m.turn for m in await turns(one, 4) if m.WhichOneof("payload") == "turn"]
            far = await call(channel, CONFIG, sound(0), sound(1_000_000))
            return found, await refusal(far)

    found, far = run(scenario())
    assert [turn.lost_ms for turn in found] == [0, 0, 100, 0]
    assert [turn.received.sound for turn in found] == [3200, 6400, 9600, 12_800]
    assert far[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert "at most 10 s may be missing" in far[1]


def text(offset: int, words: str) -> Any:
    return protos.ConverseRequest(text=protos.TextInput(text=words, offset=offset))


def context(offset: int | None, words: str) -> Any:
    return protos.ConverseRequest(context=protos.ContextInput(text=words, to_say=True, offset=offset))


def test_context_that_is_there_is_dropped_as_text_is(engine, run) -> None:
    async def scenario() -> tuple:
        async with OneServer(engine) as server, client.connect(server.address) as channel:
            old = await call(
                channel, CONFIG, text(0, "one"), sound(0), context(1, "two"), context(None, "three"), sound(3200)
            )
            token = (await old.read()).started.resume_token
            told = await turns(old, 2)
            new = await call(channel, resume(token, told[-1].sequence))
            received = (await new.read()).started.received.texts
            for number, again in enumerate((text(0, "one"), context(1, "two"), context(2, "four"), text(3, "five"))):
                await new.write(again)
                await new.write(sound(6400 + 3200 * number))
            await new.write(sound(6400 + 3200 * 4))
            return received, told + await turns(new, 5)

    received, told = run(scenario())
    assert received == 2, "what has no offset is not counted"
    said = "".join(message.text.text for message in told if message.WhichOneof("payload") == "text")
    assert [said.count(word) for word in ("one", "two", "four", "five")] == [1, 1, 1, 1], said


def test_a_token_that_is_wrong_or_too_old_opens_nothing(engine, run, tmp_path: pathlib.Path) -> None:
    async def scenario() -> tuple:
        found: list[tuple] = []
        async with (
            OneServer(engine, tmp_path, resume_s=0.2) as server,
            OneServer(engine, tmp_path, resume_s=0.2) as other,
            client.connect(server.address) as channel,
            client.connect(other.address) as elsewhere,
        ):
            old = await call(channel, CONFIG, sound(0))
            token = (await old.read()).started.resume_token
            assert len(token) > 32 and not any(token.encode() in p.read_bytes() for p in tmp_path.glob("*/*"))
            assert {p.stat().st_mode & 0o777 for p in tmp_path.glob("*/*")} == {0o600}
            for wrong in (token[:-1] + ("x" if token[-1] != "x" else "y"), "../../etc.x", "", token.partition(".")[0]):
                found += [await refusal(await call(channel, resume(wrong)))]
                found += [await refusal(await call(elsewhere, resume(wrong)))]
            held = await refusal(await call(elsewhere, resume(token)))
            old.cancel()
            while server.sessions.parked != 1:
                await asyncio.sleep(0.01)
            assert engine.stats().live == 0, "one who is away has no slot"
            while len(server.sessions):
                await asyncio.sleep(0.01)
            found += [await refusal(await call(elsewhere, resume(token)))]
            found += [await refusal(await call(channel, resume(token)))]
        return found, held, list(tmp_path.iterdir())

    found, held, left = run(scenario())
    assert {code for code, _ in found} == {grpc.StatusCode.NOT_FOUND}
    assert len({sentence for _, sentence in found}) == 1
    assert held[0] is grpc.StatusCode.UNAVAILABLE and "Another server runs this session" in held[1]
    assert not left


def test_a_task_is_answered_once_whatever_process_answers(engine, run, tmp_path: pathlib.Path) -> None:
    async def answer(desk: Desk) -> Answer:
        if len(backend.asked) == 1:
            await asyncio.sleep(60)  # the process dies before
        return Answer("forty two", Delivery.INTERRUPT)

    backend = Scripted(answer)
    mind = Mind(backend)

    async def scenario() -> list[events.Event]:
        way = Breakable()
        # So long that there is time to answer, and silent, so that the answer need not wait.
        silence = media.SoundFile(np.zeros((30 * 16_000, 1), np.float32), 16_000)
        talk = client.Script(silence, texts=[(0.5, "what is six times seven")], tail_s=0.4)
        async with way.listening() as there, client.connect(there, resume=True) as channel:
            holding = Holding(channel, talk)
            for count in (12, 60, 10_000):  # while it is asked, and once it is answered
                async with OneServer(engine, tmp_path, mind=mind) as server:
                    way.target = server.address
                    await holding.until(count)
                    if count < 10_000:
                        await server.die()
                    way.cut()
            return await holding.all()

    told = run(scenario())
    mind.close()
    background = [(event.task, event.state, event.text) for event in told if isinstance(event, events.Background)]
    assert len(backend.asked) == 2, "once for each process that did not see it answered"
    assert background == [(0, "started", backend.asked[0]), (0, "finished", "forty two")]
    assert [event.text for event in told if isinstance(event, events.Words)].count(" forty") == 1
