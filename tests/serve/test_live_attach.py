"""Who watches a GPT-Live session and steers it, and what is an extension of that protocol."""

import base64
import collections
import io
import json

import openai
import PIL.Image
import pytest
import websockets
from websockets.asyncio.client import connect

from tests.serve.test_live_door import START, receive, send, started
from tml_jax.serve.doors import live_config
from tml_jax.wire import events


def test_a_session_is_watched_and_steered(serving_web, run) -> None:
    async def scenario() -> tuple[list[dict], list[dict], int]:
        async with serving_web(late_ms=100) as server, connect(server.url, max_size=None) as socket:
            mu = {"format": {"type": "audio/pcmu", "rate": 8000}}
            await send(socket, START | {"session": {"model": "m", "audio": mu}})
            session = (await receive(socket, "session.started"))["session"]
            client = openai.AsyncOpenAI(api_key="any", base_url=server.base_url)
            watched: list[dict] = []
            async with client.live.sideband.connect(session_id=session["id"]) as watcher:
                started = await watcher.recv()
                assert (started.type, started.session.id) == ("session.started", session["id"])
                quiet = base64.b64encode(b"\xff" * 800).decode()
                await send(socket, {"type": "session.input_audio.append", "audio": quiet})
                await watcher.session.commentary.append(content="seven", delegation_id=None)
                await watcher.send({"type": "session.input_audio.append", "audio": "AAAA"})
                async for event in watcher:
                    watched.append(event.to_dict())
                    if event.type == "session.output_transcript.delta":
                        await watcher.session.close()
                told = [json.loads(message) async for message in socket]
            with pytest.raises(websockets.InvalidStatus) as gone:
                async with connect(f"{server.url}/{session['id']}/attach"):
                    pass
            return watched, told, gone.value.response.status_code

    watched, told, gone = run(scenario())
    kinds = collections.Counter(event["type"] for event in watched)
    assert kinds["session.input_audio.append"] == kinds["session.commentary.appended"] == 1
    assert [event["error"]["code"] for event in watched if event["type"] == "error"] == ["unsupported_event"]
    reflected = next(event["audio"] for event in watched if event["type"] == "session.input_audio.append")
    assert len(base64.b64decode(reflected)) == 4800, "PCM16 at 24 kHz, whatever the session has"
    sound = [event for event in watched if event["type"] == "session.output_audio.delta"]
    assert {len(base64.b64decode(event["delta"])) for event in sound} == {4800}
    assert all(event["end_ms"] - event["start_ms"] == 100 for event in sound)
    assert [event["start_ms"] for event in sound] == list(range(sound[0]["start_ms"], sound[-1]["end_ms"], 100))
    said = [[e["delta"] for e in side if e["type"] == "session.output_transcript.delta"] for side in (watched, told)]
    assert said == [[" seven"]] * 2
    assert [side[-1]["type"] for side in (watched, told)] == ["session.closed"] * 2
    assert gone == 404


def test_a_watcher_that_goes_or_whose_session_is_lost(serving_web, run) -> None:
    async def scenario() -> str:
        async with serving_web() as server, started(server) as socket:
            name = next(iter(server.server.sessions._live)).id
            async with connect(f"{server.url}/{name}/attach") as passing:
                await receive(passing, "session.started")
            async with connect(f"{server.url}/{name}/attach") as watcher:
                await receive(watcher, "session.output_audio.delta")
                assert len(server.server.sessions) == 1, "it goes on without the one that left"
                socket.transport.abort()
                return (await receive(watcher, "session.closed"))["reason"]

    assert run(scenario()) == "connection_lost"


def test_pictures_are_an_extension_that_is_asked_for(serving_web, run) -> None:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (60, 40), "red").save(buffer, "JPEG")
    url = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    picture = {"type": live_config.IMAGE, "image_url": url}

    async def scenario() -> tuple[str, int]:
        async with serving_web() as server:
            async with started(server) as socket:
                await send(socket, picture)
                code = (await receive(socket, "error"))["error"]["code"]
            async with started(server, extensions=[live_config.IMAGE]) as socket:
                seen = next(s for s in server.server.sessions._live if s.config.sends_video).subscribe()
                await send(socket, picture, picture | {"image_url": "data:image/gif;base64,AAAA"})
                assert "PNG or JPEG" in (await receive(socket, "error"))["error"]["message"]
                async for event in seen:
                    if isinstance(event, events.Turn) and event.frames:
                        return code, event.frames
            raise AssertionError

    assert run(scenario()) == ("unsupported_event", 1)
