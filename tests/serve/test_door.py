"""The server's life: health, reflection, information, draining, slow and fast clients, real time."""

import asyncio
import threading
import time

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.serve.conftest import bursts, talk
from tml_jax import client
from tml_jax.serve.config import SessionConfig, SessionSettings
from tml_jax.serve.engine import Engine
from tml_jax.serve.errors import OverloadedError
from tml_jax.serve.pacing import AHEAD_S, DRIFT
from tml_jax.serve.session_input import Piece
from tml_jax.serve.sessions import Session, Sessions
from tml_jax.serve.subscription import SlowClientError
from tml_jax.wire import events, messages, protos
from tml_jax.wire.journal import read_journal


def test_health_reflection_and_information(serving, run) -> None:
    async def scenario() -> tuple:
        async with serving(slots=3) as server, client.connect(server.address) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            health = await check(health_pb2.HealthCheckRequest(service=protos.SERVICE))
            names = await asyncio.to_thread(_services, server.address)
            return health.status, names, await client.server_info(channel)

    status, names, info = run(scenario())
    assert status == health_pb2.HealthCheckResponse.SERVING
    assert protos.SERVICE in names
    assert (info.model, info.slots, info.live_sessions, info.draining) == ("fake", 3, 0, False)
    assert (info.stream.micro_turn_ms, info.stream.sample_rate, info.stream.max_text) == (200, 16_000, 8)


def _services(address: str) -> list[str]:
    with grpc.insecure_channel(address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        service = descriptor_pool.DescriptorPool(database).FindServiceByName(protos.SERVICE)
        assert [method.name for method in service.methods] == ["Converse", "GetServerInfo"]
        return list(database.get_services())


def test_draining_refuses_the_new_and_lets_the_live_finish(serving, run) -> None:
    async def scenario() -> tuple:
        async with serving(slots=2, real_time=True, linger_ms=200) as server, client.connect(server.address) as channel:
            live = protos.converse_method(channel)()
            await live.write(protos.ConverseRequest(config=protos.SessionConfig(sends_audio=True)))
            await live.read()
            drain = asyncio.create_task(server.server.door.drain(60.0))
            await asyncio.sleep(0.05)
            health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            with pytest.raises(client.SessionError) as refused:
                await talk(server.address, client.Script(bursts(0.2, 1)))
            await live.write(protos.ConverseRequest(close=protos.CloseInput()))
            told = []
            while (message := await live.read()) is not grpc.aio.EOF:
                told.append(messages.to_event(message))
            await drain
            return health.status, refused.value, told

    status, refused, told = run(scenario())
    assert status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert refused.code is grpc.StatusCode.UNAVAILABLE
    assert str(refused) == "The server is going down and takes no new session: use another one."
    assert isinstance(told[-1], events.Ended)


def test_draining_ends_what_is_live_after_the_grace_period(serving, run) -> None:
    async def scenario() -> client.SessionError:
        async with serving(real_time=True) as server:
            # In long pieces: of a call that ends just while a client sends, gRPC loses the server's sentence.
            script = client.Script(bursts(60.0, 1))
            endless = asyncio.create_task(talk(server.address, script, real_time=True, chunk_ms=1000))
            while not server.server.engine.stats().steps:
                await asyncio.sleep(0.02)
            await server.server.door.drain(0.3)
            with pytest.raises(client.SessionError) as ended:
                await endless
            return ended.value

    ended = run(scenario())
    assert ended.code is grpc.StatusCode.UNAVAILABLE
    assert str(ended) == "The server is going down and the grace period for this session is over."


def test_in_real_time_a_fast_client_is_slowed_down_to_the_pace_of_time(serving, run) -> None:
    async def scenario() -> tuple:
        async with serving(real_time=True, max_queue_ms=400) as server, client.connect(server.address) as channel:
            call = protos.converse_method(channel)()
            await call.write(protos.ConverseRequest(config=protos.SessionConfig(sends_audio=True)))
            await call.read()
            (session,) = server.server.sessions._live
            send = asyncio.create_task(_pour(call, 3.0))
            longest, start = 0, time.monotonic()
            while not send.done() or session._turn < 9:
                longest = max(longest, session._inbox.queued)
                await asyncio.sleep(0.005)
            elapsed, stats = time.monotonic() - start, server.server.engine.stats()
            call.cancel()
            return longest, elapsed, stats

    longest, elapsed, stats = run(scenario())
    assert longest <= 3, "at most max_queue_ms and the micro-turn that went over it wait"
    assert elapsed > 10 * 0.2 * (1 - DRIFT) - AHEAD_S, "ten micro-turns were not stepped faster than time"
    assert stats.deadline_misses == 0 or stats.step_p99_ms > 200


async def _pour(call: grpc.aio.StreamStreamCall, seconds: float) -> None:
    for _ in range(round(seconds * 50)):
        await call.write(protos.ConverseRequest(audio=protos.AudioChunk(pcm=bytes(640))))


def test_sound_that_comes_while_sound_is_taken_is_taken_together(serving, run, monkeypatch) -> None:
    """Where each piece waited for the last one, whoever sends many fell behind as soon as the server was busy."""
    take, taken = Session._take_sound, list[int]()

    def slow(session: Session, pieces: list[Piece]) -> list[Piece]:
        time.sleep(0.05)  # longer than a piece is
        taken.append(len(pieces))
        return take(session, pieces)

    monkeypatch.setattr(Session, "_take_sound", slow)

    async def scenario() -> client.Recording:
        async with serving(real_time=True) as server:
            return await talk(server.address, client.Script(bursts(3.0, seed=1), tail_s=0.2), real_time=True)

    recording = run(scenario())
    assert sum(taken) == 160
    assert len(taken) < 100
    assert not [event for event in recording.events if event["type"] == "silence"]


def test_a_reader_that_does_not_read_is_dropped_and_delays_nothing(bundle, run) -> None:
    async def scenario() -> tuple:
        engine = Engine(bundle, 1)
        engine.start()
        sessions = Sessions(engine, SessionSettings(max_unsent_ms=400), None)
        session = sessions.open(SessionConfig(sends_audio=False))
        silent, reads = session.subscribe(), session.subscribe()
        await session.push_text("what is six times seven")
        told: list[events.Event] = []
        async for event in reads:
            told.append(event)
            if isinstance(event, events.Turn) and event.turn == 4:
                await session.close_input()
        with pytest.raises(SlowClientError) as slow:
            await anext(silent)
        live = len(sessions), engine.stats().live
        await asyncio.to_thread(engine.stop)
        return slow.value, told, live

    slow, told, live = run(scenario())
    assert str(slow) == "The client is 0.4 s behind in reading its replies, so it is told no more."
    assert isinstance(told[0], events.Started) and isinstance(told[-1], events.Ended)
    assert [event.turn for event in told if isinstance(event, events.Turn)] == list(range(told[-1].turns))
    assert [event.state for event in told if isinstance(event, events.Background)] == ["started", "finished"]
    assert live == (0, 0)


def test_a_session_that_nobody_reads_delegates_is_recorded_and_ends(bundle, run, tmp_path) -> None:
    async def scenario() -> None:
        engine = Engine(bundle, 1)
        engine.start()
        sessions = Sessions(engine, SessionSettings(linger_ms=400), tmp_path)
        session = sessions.open(SessionConfig(sends_audio=False))
        await session.push_text("what is six times seven")
        await session.close_input()
        while len(sessions):
            await asyncio.sleep(0.02)
        assert engine.stats().live == 0
        with pytest.raises(StopAsyncIteration):  # late, and told so
            late = session.subscribe()
            assert isinstance(await anext(late), events.Started)
            await anext(late)
        await asyncio.to_thread(engine.stop)

    run(scenario())
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    journal = read_journal(path)
    assert [event["state"] for event in journal if event["type"] == "background"] == ["started", "finished"]
    assert [event["text"] for event in journal if event["type"] == "word"] == [" forty"]
    assert journal[-1]["type"] == "end"


def test_a_client_that_never_reads_loses_its_session_and_finds_out_why(serving, run, monkeypatch) -> None:
    monkeypatch.setattr("tml_jax.serve.doors.grpc.UNREAD_S", 0.2)
    narrow = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 4096))  # or megabytes would be on their way

    async def scenario() -> tuple[grpc.StatusCode, str]:
        async with (
            serving(real_time=True, max_unsent_ms=400) as server,
            grpc.aio.insecure_channel(server.address, options=narrow) as channel,
        ):
            call = protos.converse_method(channel)()
            await call.write(protos.ConverseRequest(config=protos.SessionConfig(wants_audio=True)))
            chatter = asyncio.create_task(_type(call))  # and reads nothing of the answers
            for live in (1, 0):
                while server.server.engine.stats().live != live:
                    await asyncio.sleep(0.02)
            chatter.cancel()
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                while await call.read() is not grpc.aio.EOF:
                    pass
            return ended.value.code(), ended.value.details()

    code, sentence = run(scenario())
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert sentence == "The client reads nothing, so its call was ended."


async def _type(call: grpc.aio.StreamStreamCall) -> None:
    """The fake model says each text."""
    while True:
        await call.write(protos.ConverseRequest(text=protos.TextInput(text="seven")))
        await asyncio.sleep(0.1)


def test_sound_that_stays_away_is_replaced_by_silence_and_time_goes_on(serving, run) -> None:
    async def scenario() -> tuple:
        async with serving(real_time=True, late_ms=200) as server, client.connect(server.address) as channel:
            call = protos.converse_method(channel)()
            await call.write(protos.ConverseRequest(config=protos.SessionConfig(sends_audio=True)))
            await call.write(protos.ConverseRequest(audio=protos.AudioChunk(pcm=bytes(2 * 4800))))  # one and a half
            told: list[events.Turn] = []
            start = time.monotonic()
            while len(told) < 6:
                event = messages.to_event(await call.read())
                told += [event] if isinstance(event, events.Turn) else []
            call.cancel()
            return told, time.monotonic() - start

    turns, elapsed = run(scenario())
    assert [turn.turn for turn in turns] == list(range(6))
    assert [turn.silence_ms for turn in turns] == [0, 100, 200, 200, 200, 200], "the half micro-turn is filled up first"
    assert elapsed > 1.0, "200 ms late at first, then one micro-turn every 200 ms"


def test_typed_text_alone_makes_a_session(serving, run) -> None:
    async def scenario() -> client.Recording:
        async with serving(real_time=True) as server:
            return await talk(server.address, client.Script(None, texts=[(0.5, "seven")], tail_s=0.5), real_time=True)

    said = [event for event in run(scenario()).events if event["type"] == "word"]
    assert [event["text"] for event in said] == [" seven"]
    assert 1 <= said[0]["turn"] <= 5


def test_who_could_speak_and_only_types_is_answered(serving, run) -> None:
    """Public case P10."""

    async def scenario() -> list[events.Event]:
        async with serving(real_time=True) as server, client.connect(server.address) as channel:
            call, told = protos.converse_method(channel)(), list[events.Event]()
            await call.write(protos.ConverseRequest(config=protos.SessionConfig(sends_audio=True)))
            await asyncio.sleep(0.5)
            await call.write(protos.ConverseRequest(text=protos.TextInput(text="seven")))
            async with asyncio.timeout(10):
                while not any(isinstance(event, events.Words) for event in told):
                    told.append(messages.to_event(await call.read()))
            call.cancel()
            return told

    told = run(scenario())
    silences = [event.silence_ms for event in told if isinstance(event, events.Turn)]
    assert silences[0] == 200, "what was put in is told"


@pytest.mark.parametrize("seconds", [0, 2])
def test_half_of_a_call_that_is_closed_is_input_that_is_closed(serving, run, seconds: int) -> None:
    """Public case P7: an iterator that ends closes the input, and the model finishes."""

    async def scenario() -> tuple[list[events.Event], grpc.StatusCode]:
        async with serving(real_time=True) as server, client.connect(server.address) as channel:
            sound = np.split(bursts(2.0, seed=1).pcm(), 2)[:seconds]
            sent = [protos.ConverseRequest(audio=protos.AudioChunk(pcm=piece.tobytes())) for piece in sound]
            opened = protos.ConverseRequest(config=protos.SessionConfig(sends_audio=True, wants_audio=True))
            call = protos.converse_method(channel)(iter([opened, *sent]))
            told = [messages.to_event(message) async for message in call]
            return told, await call.code()

    told, code = run(scenario())
    assert code is grpc.StatusCode.OK
    assert isinstance(told[-1], events.Ended)
    assert sum(isinstance(event, events.Words) for event in told) == (seconds and 2), "after each burst"


def test_a_session_whose_sound_cannot_be_made_in_time_is_ended(bundle, run, monkeypatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(Session, "_decode", lambda session, result: release.wait(60) and [])

    async def scenario() -> tuple[Exception, int]:
        engine = Engine(bundle, 1)
        engine.start()
        reader = Sessions(engine, SessionSettings(max_unsent_ms=400), None).open(SessionConfig(False)).subscribe()
        with pytest.raises(OverloadedError) as ended:
            async for event in reader:
                assert isinstance(event, events.Started)
        live = engine.stats().live
        release.set()
        await asyncio.to_thread(engine.stop)
        return ended.value, live

    ended, live = run(scenario())
    assert str(ended) == "The server is 0.4 s behind in making this session's sound, so the session was ended."
    assert live == 0
