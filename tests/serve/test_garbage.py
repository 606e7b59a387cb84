"""What ends leaves no cycles: the collector, which stops all threads at once, would have to find them."""

import asyncio
import contextlib
import gc
import json
from collections.abc import Awaitable, Callable

import pytest

from tests.serve.conftest import RunningWeb, start_web
from tests.serve.hostile_clients import KEY, Answer, Doors, call, channel_to, frame, opened, reset
from tests.serve.hostile_messages import REQUEST
from tml_jax.serve.config import SessionSettings
from tml_jax.serve.server import ServerSettings
from tml_jax.serve.sessions import Session
from tml_jax.wire import protos

CONFIG = REQUEST(config=protos.SessionConfig(sends_audio=True, wants_audio=True)).SerializeToString()
SOUND = REQUEST(audio=protos.AudioChunk(pcm=bytes(6400))).SerializeToString()
ODD = REQUEST(audio=protos.AudioChunk(pcm=bytes(3))).SerializeToString()
CLOSE = REQUEST(close=protos.CloseInput()).SerializeToString()
START = {"live/sessions": {"type": "session.start", "session": {"model": "m"}}}
START |= {"realtime": {"type": "input_audio_buffer.append", "audio": "AAAA"}}


async def over_grpc(doors: Doors) -> None:
    async with channel_to(doors.grpc_port) as channel:
        for sent in ([CONFIG, SOUND, CLOSE], [CONFIG, SOUND, ODD], [CONFIG, SOUND, b"\xff"]):
            await call(channel, sent, Answer())
        await call(channel, [CONFIG, SOUND], Answer(), half_close=False, seconds=0.5)


async def over_stream(doors: Doors) -> None:
    for sent in ([CONFIG, SOUND, CLOSE], [CONFIG, SOUND, ODD], [CONFIG, SOUND, b"\xff"], [CONFIG, SOUND]):
        async with opened(doors, "/v1/stream") as one:
            for message in sent:
                await one.write(frame(message, 2))
            await one.hear(Answer(), seconds=0.5 if len(sent) == 2 else 5.0)
            reset(one.writer)


def over(name: str) -> Callable[[Doors], Awaitable[None]]:
    async def door(doors: Doors) -> None:
        closing = json.dumps({"type": "session.close"}).encode()
        for last, opcode in ((closing, 1), (b"{", 1), (b"\x03\xe8", 8), (b"\xc3\x28", 1), (b"", 0)):
            async with opened(doors, f"/v1/{name}") as one:
                await one.write(frame(json.dumps(START[name]).encode()))
                await one.hear(Answer(), ("session.started", "session.created"))
                await asyncio.sleep(0.3)
                await one.write(frame(last, opcode) if opcode else b"")
                await one.hear(Answer(), seconds=0.5)
                reset(one.writer)

    return door


DOORS = {"grpc": over_grpc, "stream": over_stream, "live": over("live/sessions"), "realtime": over("realtime")}


def sessions() -> list[Session]:
    return [one for one in gc.get_objects() if isinstance(one, Session)]


@pytest.mark.parametrize("door", DOORS)
def test_a_session_that_is_over_goes_without_the_collector(bundle, run, monkeypatch, door: str) -> None:
    """However it ends: by its client's wish, by a mistake of its client's, by a connection that is cut."""
    monkeypatch.setattr("tml_jax.serve.doors.web.GONE_S", 0.2)
    settings = ServerSettings(
        slots=4, http_address="127.0.0.1:0", api_keys=[KEY], session=SessionSettings(linger_ms=200, late_ms=100)
    )
    admitted = 0

    async def scenario(server: RunningWeb) -> int:
        nonlocal admitted
        made = Session.__init__

        def counted(self: Session, *arguments: object) -> None:
            nonlocal admitted
            admitted += 1
            made(self, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(Session, "__init__", counted)
        await DOORS[door](Doors(int(server.address.rpartition(":")[2]), server.server.web.port))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(10):
                while sessions():
                    await asyncio.sleep(0.1)
        return len(sessions())

    async def served() -> int:
        async with start_web(bundle, settings) as server:
            gc.collect()
            gc.disable()
            try:
                return await scenario(server)
            finally:
                gc.enable()

    assert run(served()) == 0
    assert admitted >= 4
