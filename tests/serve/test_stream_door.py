"""Our own protocol over WebSocket, and what a page gets over HTTP: by a plain client."""

import asyncio
import contextlib
import json
import re
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import websockets
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from tests.serve.conftest import bursts, start_web, talk
from tml_jax import client
from tml_jax.serve.doors import grpc, stream
from tml_jax.serve.doors.web import PAGE
from tml_jax.serve.server import ServerSettings
from tml_jax.wire import events, messages, protos
from tml_jax.wire.pcm import to_pcm

HTTP = "127.0.0.1:0"


def request(**payload: Any) -> bytes:
    return protos.ConverseRequest(**payload).SerializeToString()


def config(**fields: Any) -> bytes:
    return request(config=protos.SessionConfig(sends_audio=True, wants_audio=True, **fields))


@contextlib.asynccontextmanager
async def opened(server: Any, **options: Any) -> AsyncIterator[ClientConnection]:
    url = f"ws://127.0.0.1:{server.server.web.port}{stream.PATH}"
    async with connect(url, subprotocols=[Subprotocol(stream.PROTOCOL)], **options) as socket:
        yield socket


async def read(socket: ClientConnection) -> tuple[list[events.Event], dict[str, str], int | None]:
    """Everything until the end: events, the error if there was one, and what the socket closed with."""
    told, error = [], {}
    with contextlib.suppress(websockets.ConnectionClosed):
        while True:
            message = await socket.recv()
            if isinstance(message, str):
                error = json.loads(message)
            else:
                told.append(messages.to_event(protos.ConverseResponse.FromString(message)))
    return told, error, socket.close_code


def fetch(url: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method, headers=headers)) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def plain(told: list[events.Event]) -> list[Any]:
    """What must repeat."""
    kept: list[Any] = [(e.turn, e.decision) for e in told if isinstance(e, events.Turn)]
    kept += [e for e in told if isinstance(e, events.Words | events.HeardWords)]
    return kept + [(e.start_ms, e.samples.tobytes()) for e in told if isinstance(e, events.Sound)]


def test_a_conversation_is_grpcs_message_for_message(bundle, run) -> None:
    sound = bursts(3.0, seed=4)

    async def scenario() -> tuple[list[events.Event], list[events.Event], dict[str, str], int | None]:
        settings = ServerSettings(slots=1, http_address=HTTP, faster_than_real_time=True)
        async with start_web(bundle, settings) as server:
            over_grpc: list[events.Event] = []
            await talk(server.address, client.Script(sound, tail_s=0.0), observe=over_grpc.append)
            async with opened(server) as socket:
                assert socket.subprotocol == stream.PROTOCOL
                await socket.send(config())
                for piece in np.split(to_pcm(sound.samples[:, 0]), 15):
                    await socket.send(request(audio=protos.AudioChunk(pcm=piece.tobytes())))
                await socket.send(request(close=protos.CloseInput()))
                return over_grpc, *await read(socket)

    over_grpc, told, error, code = run(scenario())
    assert (error, code) == ({}, 1000)
    assert isinstance(told[0], events.Started)
    assert isinstance(told[-1], events.Ended)
    assert len(plain(told)) > 15
    assert plain(told) == plain(over_grpc)


@pytest.mark.parametrize(
    ("sent", "sentence"),
    [
        ([b"\xff\xff"], "is no ConverseRequest"),
        ([request(text=protos.TextInput(text="hi"))], "must be its config, but text came"),
        (["hello"], "is no ConverseRequest"),
        ([config(), request(audio=protos.AudioChunk(pcm=b"123"))], "not a whole number of samples"),
        ([config(), config()], "a second one came"),
    ],
)
def test_what_is_wrong_is_told_and_then_the_socket_closed(serving_web, run, sent: list[Any], sentence: str) -> None:
    async def scenario() -> tuple[list[events.Event], dict[str, str], int | None]:
        async with serving_web(slots=1) as server, opened(server) as socket:
            for message in sent:
                await socket.send(message)
            return await read(socket)

    _, error, code = run(scenario())
    assert error["code"] == "INVALID_ARGUMENT"
    assert sentence in error["message"]
    assert code == 1008


def test_a_full_server_says_so_and_a_client_that_goes_gives_its_slot_back(serving_web, run) -> None:
    async def scenario() -> tuple[dict[str, str], int | None]:
        async with serving_web(slots=1) as server:
            async with opened(server) as first:
                await first.send(config())
                await first.recv()
                async with opened(server) as second:
                    await second.send(config())
                    _, error, code = await read(second)
                first.transport.abort()  # without a word
            async with asyncio.timeout(10):
                while len(server.server.sessions):
                    await asyncio.sleep(0.05)
            return error, code

    error, code = run(scenario())
    assert error["code"] == "RESOURCE_EXHAUSTED"
    assert "All 1 sessions" in error["message"]
    assert code == 1013


def test_a_client_that_says_nothing_is_sent_away(serving_web, run, monkeypatch) -> None:
    monkeypatch.setattr(grpc, "FIRST_S", 0.2)

    async def scenario() -> tuple[list[events.Event], dict[str, str], int | None]:
        async with serving_web(slots=1) as server, opened(server) as socket:
            return await read(socket)

    _, error, code = run(scenario())
    assert "No first message came within 0.2 s" in error["message"]
    assert code == 1008


def test_what_a_background_model_found_reaches_the_model(serving_web, run) -> None:
    async def scenario() -> list[events.Event]:
        async with serving_web(slots=1) as server, opened(server) as socket:
            await socket.send(request(config=protos.SessionConfig()))
            await socket.send(request(context=protos.ContextInput(text="seven", to_say=True)))
            await socket.send(request(context=protos.ContextInput(text="be kind")))
            await socket.send(request(close=protos.CloseInput()))
            return (await read(socket))[0]

    told = run(scenario())
    assert [(e.task, e.state, e.text) for e in told if isinstance(e, events.Background)] == [
        (None, "finished", "seven")
    ]
    assert [e.text.strip() for e in told if isinstance(e, events.Words)] == ["seven"]


def test_a_token_is_had_for_a_key_and_opens_one_connection(serving_web, run) -> None:
    async def scenario() -> None:
        async with serving_web(slots=1, api_keys=["s3cret"]) as server:
            url = f"http://127.0.0.1:{server.server.web.port}"
            get = asyncio.to_thread

            async def enters(token: str) -> int | None:
                path = f"ws://127.0.0.1:{server.server.web.port}{stream.PATH}"
                try:
                    async with connect(
                        path, subprotocols=[Subprotocol(p) for p in (stream.PROTOCOL, f"token.{token}")]
                    ) as socket:
                        assert socket.subprotocol == stream.PROTOCOL
                        return None
                except websockets.InvalidStatus as refused:
                    return refused.response.status_code

            bearer = {"Authorization": "Bearer s3cret"}
            assert (await get(fetch, f"{url}/v1/tokens", "POST"))[0] == 401
            assert (await get(fetch, f"{url}/v1/info"))[0] == 401
            elsewhere = await get(
                lambda: fetch(f"{url}/v1/tokens", "POST", **bearer, Origin="http://elsewhere.example")
            )
            assert elsewhere[0] == 403
            status, _, body = await get(lambda: fetch(f"{url}/v1/tokens", "POST", **bearer))
            assert status == 200
            token = json.loads(body)["token"]
            assert await enters("made-up") == 401
            assert await enters(token) is None
            assert await enters(token) == 401, "a second time"
            info = json.loads((await get(lambda: fetch(f"{url}/v1/info", **bearer)))[2])
            assert info["model"] == "fake"
            assert info["slots"] == 1
            assert info["draining"] is False

    run(scenario())


def test_the_page_is_whole_and_takes_nothing_from_elsewhere(serving_web, run) -> None:
    async def scenario() -> None:
        async with serving_web(slots=1) as server:
            url = f"http://127.0.0.1:{server.server.web.port}"
            status, headers, body = await asyncio.to_thread(fetch, f"{url}/")
            assert status == 200
            assert "default-src 'self'" in headers["content-security-policy"]
            assert b"<title>tml_jax</title>" in body
            for path in PAGE.iterdir():
                status, headers, body = await asyncio.to_thread(fetch, f"{url}/page/{path.name}")
                assert (status, body) == (200, path.read_bytes())
                assert "frame-ancestors 'none'" in headers["content-security-policy"]
                if path.suffix == ".js":
                    assert headers["content-type"].startswith("text/javascript")
                assert not re.search(rb"(src|href|import|url\()[^;\n]*https?:", body)

    run(scenario())


def test_the_protocol_is_told_as_tables() -> None:
    tables = protos.tables()
    audio = {field["name"]: field for field in tables["messages"]["AudioOut"]}
    assert audio["pcm"] == {"number": 1, "name": "pcm", "type": "bytes", "of": None, "optional": False}
    assert tables["enums"]["Decision"]["3"] == "DECISION_DELEGATE"
    known = {"uint32", "uint64", "bool", "enum", "string", "bytes", "message", "double", "float"}
    assert {field["type"] for fields in tables["messages"].values() for field in fields} <= known, "what the page reads"
