"""What a client gets wrong ends its own session with one sentence, and nobody else's."""

import asyncio
import io
import threading
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import PIL.Image
import pytest

from tests.serve.conftest import bursts, talk
from tml_jax import client
from tml_jax.executor.live import LiveModel
from tml_jax.serve import sessions
from tml_jax.serve.config import SessionConfig, SessionSettings
from tml_jax.serve.engine import Engine, EngineDiedError, TurnResult
from tml_jax.serve.picture_decoder import PictureDecoder
from tml_jax.serve.server import ServerSettings, serve
from tml_jax.wire import protos

REQUEST = protos.ConverseRequest
CONFIG = protos.SessionConfig(sends_audio=True, sends_video=True, wants_audio=True)


def config(**fields: object) -> Any:
    return REQUEST(config=protos.SessionConfig(**({"sends_audio": True, "sends_video": True} | fields)))


def audio(samples: int) -> object:
    return REQUEST(audio=protos.AudioChunk(pcm=bytes(2 * samples)))


CASES = {
    "no config": (
        [audio(10)],
        "INVALID_ARGUMENT",
        "The first message of a session must be its config, but audio came.",
    ),
    "nothing": ([REQUEST()], "INVALID_ARGUMENT", "must be its config, but an empty message came."),
    "two configs": ([config(), config()], "INVALID_ARGUMENT", "a second one came."),
    "empty message": ([config(), REQUEST()], "INVALID_ARGUMENT", "holds nothing that this server knows."),
    "resumed": (
        [REQUEST(resume=protos.Resume(token="abc"))],
        "NOT_FOUND",
        "There is no session to be resumed with this token",
    ),
    "unknown encoding": ([config(encoding=7)], "INVALID_ARGUMENT", "Audio encoding 7 is not known here"),
    "low rate": ([config(sample_rate=800)], "INVALID_ARGUMENT", "A sample rate of 800 Hz cannot be taken"),
    "many channels": ([config(channels=60)], "INVALID_ARGUMENT", "Sound of 60 channels cannot be taken"),
    "half a sample": (
        [config(), REQUEST(audio=protos.AudioChunk(pcm=b"abc"))],
        "INVALID_ARGUMENT",
        "chunk of 3 bytes is not a whole number",
    ),
    "empty chunk": ([config(), audio(0)], "INVALID_ARGUMENT", "chunk of 0 bytes"),
    "over-long chunk": ([config(), audio(16_001)], "INVALID_ARGUMENT", "An audio chunk of 1000 ms is too long"),
    "not a number": (
        [config(encoding=2), REQUEST(audio=protos.AudioChunk(pcm=np.array([np.nan], np.float32).tobytes()))],
        "INVALID_ARGUMENT",
        "samples that are not finite numbers.",
    ),
    "no picture": (
        [config(), REQUEST(frame=protos.VideoFrame(data=b"\xff\xd8 no"))],
        "INVALID_ARGUMENT",
        "cannot be decoded",
    ),
    "unknown picture": (
        [config(), REQUEST(frame=protos.VideoFrame(data=b"x", encoding=9))],
        "INVALID_ARGUMENT",
        "Frame encoding 9",
    ),
    "raw picture of another size": (
        [config(), REQUEST(frame=protos.VideoFrame(data=bytes(10), encoding=3, width=2, height=2))],
        "INVALID_ARGUMENT",
        "An RGB24 frame of 10 bytes is not 2 x 2 pixels",
    ),
    "unannounced sound": ([config(sends_audio=False), audio(10)], "INVALID_ARGUMENT", "opened without sound"),
    "unannounced picture": (
        [config(sends_video=False), REQUEST(frame=protos.VideoFrame(data=b"x"))],
        "INVALID_ARGUMENT",
        "opened without video",
    ),
    "empty text": (
        [config(), REQUEST(text=protos.TextInput(text="  "))],
        "INVALID_ARGUMENT",
        "A text message is empty.",
    ),
    "sound after the end": (
        [config(), REQUEST(close=protos.CloseInput()), audio(10)],
        "INVALID_ARGUMENT",
        "This session's input was closed, but sound came after that.",
    ),
    "text after the end": (
        [config(), REQUEST(close=protos.CloseInput()), REQUEST(text=protos.TextInput(text="hello"))],
        "INVALID_ARGUMENT",
        "This session's input was closed, but text came after that.",
    ),
    "text of many tokens": (
        [config(), REQUEST(text=protos.TextInput(text="日" * 400))],
        "INVALID_ARGUMENT",
        "A text message of 1202 tokens is too long: send at most 800 at once.",
    ),
    "instructions of many tokens": (
        [config(instructions="日" * 400)],
        "INVALID_ARGUMENT",
        "Instructions of 1202 tokens are too long: send at most 800.",
    ),
    "long instructions": (
        [config(instructions="a" * 5000)],
        "INVALID_ARGUMENT",
        "Instructions of 5000 characters are too long: send at most 4096.",
    ),
    "long text": (
        [config(), REQUEST(text=protos.TextInput(text="a" * 5000))],
        "INVALID_ARGUMENT",
        "5000 characters is too long",
    ),
}


async def refused(address: str, requests: list) -> grpc.aio.AioRpcError:
    async with client.connect(address) as channel:
        call = protos.converse_method(channel)(iter(requests))
        with pytest.raises(grpc.aio.AioRpcError) as error:
            async for _ in call:
                pass
        return error.value


def test_each_mistake_has_its_status_and_sentence_and_its_neighbour_loses_nothing(serving, run) -> None:
    script = client.Script(bursts(2.0, seed=5), tail_s=0.0, seed=3)

    async def scenario() -> tuple:
        async with serving(slots=4) as server:
            alone = await talk(server.address, script)
            neighbour = asyncio.create_task(talk(server.address, script))
            errors = {name: await refused(server.address, requests) for name, (requests, _, _) in CASES.items()}
            beside = await neighbour
            assert server.server.engine.stats().live == 0, "every slot was given back"
            return errors, alone, beside

    errors, alone, beside = run(scenario())
    for name, (_, code, sentence) in CASES.items():
        error = errors[name]
        assert error.code().name == code, name
        assert sentence in error.details(), f"{name}: {error.details()}"
        assert "\n" not in error.details(), name
    assert np.array_equal(alone.reply, beside.reply) and alone.reply.any()


def test_a_failure_inside_a_session_is_its_own(serving, run, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = sessions.Session._decode

    def fragile(session: sessions.Session, result: TurnResult) -> list:
        if session.config.seed == 6 and result.turn == 2:
            raise KeyError("broken")
        return decode(session, result)

    monkeypatch.setattr(sessions.Session, "_decode", fragile)

    async def scenario() -> tuple:
        async with serving(slots=2) as server:
            good, bad = (client.Script(bursts(s, seed), tail_s=0.0, seed=seed) for s, seed in ((2.0, 5), (20.0, 6)))
            alone = await talk(server.address, good)
            results = await asyncio.gather(
                talk(server.address, bad), talk(server.address, good), return_exceptions=True
            )
            return alone, *results, server.server.engine.stats().live

    alone, error, beside, live = run(scenario())
    assert isinstance(error, client.SessionError), error
    assert error.code is grpc.StatusCode.INTERNAL
    assert "failed inside the server (KeyError)" in str(error)
    assert np.array_equal(alone.reply, beside.reply)
    assert alone.reply.any()
    assert live == 0


def test_what_is_no_message_at_all_is_told(serving, run) -> None:
    async def scenario() -> list[grpc.aio.AioRpcError]:
        async with serving() as server, client.connect(server.address) as channel:
            method = channel.stream_stream(f"/{protos.SERVICE}/Converse")
            errors = []
            for messages in ([b"\xff\xff"], [config().SerializeToString(), b"\x0a"]):
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    async for _ in method(iter(messages)):
                        pass
                errors.append(error.value)
            assert server.server.engine.stats().live == 0
            return errors

    errors = run(scenario())
    assert [error.code() for error in errors] == [grpc.StatusCode.INVALID_ARGUMENT] * 2
    assert [error.details() for error in errors] == [
        "A message of 2 bytes is no ConverseRequest.",
        "A message of 1 bytes is no ConverseRequest.",
    ]


def test_a_journal_that_cannot_be_written_takes_no_slot(serving, run, tmp_path) -> None:
    (tmp_path / "journals").write_text("in the way")

    async def scenario() -> tuple:
        async with serving(slots=1, journal_dir=tmp_path / "journals") as server:
            refusals = [await refused(server.address, [config()]) for _ in range(3)]
            (tmp_path / "journals").unlink()
            return refusals, await talk(server.address, client.Script(bursts(0.4, seed=1), tail_s=0.0))

    refusals, after = run(scenario())
    for error in refusals:
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert error.details() == "The journal of this session cannot be written: File exists."
    assert after.events[-1]["type"] == "end"


def test_an_engine_that_cannot_go_on_ends_the_server(bundle, run, monkeypatch) -> None:
    broken: list[bool] = []
    make, step = LiveModel.__init__, LiveModel.step

    def fragile(works: Callable[..., Any]) -> Callable[..., Any]:
        def method(*arguments: Any) -> Any:
            if broken:
                raise RuntimeError("the device is lost")
            return works(*arguments)

        return method

    def made(model: LiveModel, *arguments: Any) -> None:
        make(model, *arguments)
        model.init = fragile(model.init)  # type: ignore[assignment]

    monkeypatch.setattr(LiveModel, "step", fragile(step))
    monkeypatch.setattr(LiveModel, "__init__", made)

    async def scenario() -> tuple:
        ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(serve(bundle, ServerSettings(slots=2), lambda port, _: ready.set_result(port)))
        address = f"127.0.0.1:{await ready}"
        talking = asyncio.create_task(talk(address, client.Script(bursts(9.0, seed=1)), real_time=True))
        await asyncio.sleep(0.5)
        broken.append(True)
        with pytest.raises(client.SessionError) as ended:
            await talking
        with pytest.raises(EngineDiedError) as died:
            await serving
        return ended.value, died.value

    ended, died = run(scenario())
    assert "failed inside the server (RuntimeError)" in str(ended)
    assert str(died) == "The engine has failed; the log has the reason."
    assert str(died.__cause__) == "the device is lost"


def test_typed_text_waits_at_its_client_and_a_picture_keeps_no_sound_waiting(serving, run, monkeypatch) -> None:
    looking = threading.Event()
    monkeypatch.setattr(sessions.intake, "decode_frame", lambda *arguments: looking.wait(30))

    async def scenario() -> tuple[int, client.Recording]:
        async with (
            serving(slots=3, real_time=True, max_text_ms=1000) as server,
            client.connect(server.address) as channel,
        ):
            heavy, typist = protos.converse_method(channel)(), protos.converse_method(channel)()
            await heavy.write(config())
            await heavy.write(REQUEST(frame=protos.VideoFrame(data=b"heavy")))
            await typist.write(config(sends_audio=False))
            flood = asyncio.create_task(_flood(typist))
            beside = await talk(server.address, client.Script(bursts(2.0, seed=5), tail_s=0.4), real_time=True)
            waiting = max(session._inbox.waiting_text for session in server.server.sessions._live)
            looking.set()
            for task in (flood, heavy, typist):
                task.cancel()
            return waiting, beside

    waiting, beside = run(scenario())
    assert 8 <= waiting <= 40, "at most a second's: 8 tokens are read in a micro-turn"
    assert not [event for event in beside.events if event["type"] == "silence"]


def test_large_pictures_keep_no_other_session_s_small_ones_waiting(bundle, run, monkeypatch) -> None:
    def png(side: int) -> bytes:
        file = io.BytesIO()
        PIL.Image.new("RGB", (side, side)).save(file, "PNG")
        return file.getvalue()

    large, small, decode, looking = png(2000), png(40), sessions.intake.decode_frame, threading.Event()

    def slow(decoder: PictureDecoder, data: bytes, form: Any, *arguments: Any) -> np.ndarray:
        assert data != large or len(arguments) == 4 or looking.wait(60)
        return decode(decoder, data, form, *arguments)

    monkeypatch.setattr(sessions.intake, "decode_frame", slow)

    async def scenario() -> list[int]:
        every = sessions.Sessions(Engine(bundle, 4), SessionSettings(), None)
        opened = [every.open(SessionConfig(sends_video=True)) for _ in range(4)]
        form = sessions.intake.FrameFormat.FILE
        heavy = [asyncio.create_task(session.push_frame(large, form)) for session in opened[:3]]
        await asyncio.sleep(0.1)
        await opened[3].push_frame(small, form)
        waiting = [len(session._assembler._frames) for session in opened]
        looking.set()
        await asyncio.gather(*heavy)
        every.end_all(RuntimeError("over"))
        every.close()
        return waiting

    assert run(scenario()) == [0, 0, 0, 1]


async def _flood(call: grpc.aio.StreamStreamCall) -> None:
    while True:
        await call.write(REQUEST(text=protos.TextInput(text="seven " * 4)))
