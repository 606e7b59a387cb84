"""The door of OpenAI's Realtime protocol: turns made up for a model that has none, by a plain WebSocket client."""

import asyncio
import base64
import contextlib
import io
import json
from typing import Any

import PIL.Image
import pytest
import websockets
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from tests.serve.conftest import bursts
from tests.serve.test_live_door import base64_of
from tests.serve.test_realtime_turns import ASK, check, kinds
from tml_jax.serve.config import SessionSettings
from tml_jax.serve.doors import conversation
from tml_jax.serve.doors.access import Access
from tml_jax.serve.doors.audio import AudioEncoder, AudioFormat
from tml_jax.serve.doors.grpc import GrpcDoor
from tml_jax.serve.doors.web import WebDoor
from tml_jax.serve.engine import Engine
from tml_jax.serve.sessions import Sessions
from tml_jax.wire import events

# The door itself.


async def send(socket: ClientConnection, *sent: dict) -> None:
    for event in sent:
        await socket.send(json.dumps(event))


async def receive(socket: ClientConnection, kind: str, told: list[dict] | None = None) -> dict:
    """The next event of a type; what else was told before goes to `told`."""
    while True:
        event = check(json.loads(await socket.recv()))
        if told is not None:
            told.append(event)
        if event["type"] == kind:
            return event


@contextlib.asynccontextmanager
async def joined(server, **session: object):
    async with connect(server.url.replace("live/sessions", "realtime?model=m"), max_size=None) as socket:
        created = await receive(socket, "session.created")
        assert created["session"]["model"] == "m"
        if session:
            await send(socket, {"type": "session.update", "session": {"type": "realtime"} | session})
            await receive(socket, "session.updated")
        yield socket


def typed(text: str, role: str = "user", **more: object) -> dict:
    content = [{"type": "output_text" if role == "assistant" else "input_text", "text": text}]
    item = {"type": "message", "role": role, "content": content} | more
    return {"type": "conversation.item.create", "item": item}


RESPOND: dict[str, Any] = {"type": "response.create"}
HOSTILE = [
    ("{", "invalid_json"),
    (b"\x00", "invalid_event"),
    ('{"type": "session.dance"}', "unknown_event"),
    ('{"type": "response.cancel", "why": 1}', "unknown_parameter"),
    ('{"type": "session.update"}', "invalid_type"),
    ('{"type": "session.update", "session": {"type": "realtime", "modalities": ["text"]}}', "unknown_parameter"),
    ('{"type": "input_audio_buffer.append", "audio": "UklGRiQAAABXQVZF"}', "invalid_value"),
    (
        json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(bytes(1323)).decode()}),
        "invalid_value",
    ),
    ('{"type": "input_audio_buffer.append", "audio": ""}', "invalid_value"),
    ('{"type": "input_audio_buffer.commit"}', "input_audio_buffer_commit_empty"),
    ('{"type": "conversation.item.create", "item": {"type": "dance"}}', "unsupported_parameter"),
    (json.dumps(typed("x", "judge")), "invalid_value"),
    (json.dumps(typed("x" * 5000)), "string_above_max_length"),
    (
        json.dumps(typed("", type="function_call_output", call_id="c", output="x" * 5000)),
        "string_above_max_length",
    ),
    (json.dumps(typed("x") | {"previous_item_id": "nowhere"}), "item_not_found"),
    (
        json.dumps(
            typed("x", content=[{"type": "input_image", "image_url": "https://example.com/a.png"}]),
        ),
        "invalid_value",
    ),
    (
        json.dumps(
            typed("x", content=[{"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]),
        ),
        "invalid_value",
    ),
    ('{"type": "conversation.item.retrieve", "item_id": "nothing"}', "item_not_found"),
    ('{"type": "conversation.item.truncate", "item_id": "nothing"}', "item_not_found"),
    ('{"type": "response.cancel"}', "response_cancel_not_active"),
    ('{"type": "response.create", "response": {"conversation": "none"}}', "unsupported_parameter"),
    ('{"type": "response.create", "response": {"input": []}}', "unsupported_parameter"),
    ('{"type": "output_audio_buffer.clear"}', "unsupported_event"),
    (json.dumps({"type": "response.cancel", "event_id": "a" * (conversation.MAX_EVENT + 1)}), "event_too_large"),
]


def test_hostile_events_are_answered_and_the_session_lives(serving_web, run) -> None:
    async def scenario() -> tuple[list[dict], str]:
        async with serving_web() as server, joined(server) as socket:
            errors = []
            for text, _ in HOSTILE:
                await socket.send(text)
                errors.append((await receive(socket, "error"))["error"])
            await send(socket, typed("seven", id="mine"), typed("seven", id="mine") | {"event_id": "twice"})
            duplicate = (await receive(socket, "error"))["error"]
            assert (duplicate["code"], duplicate["event_id"]) == ("item_create_duplicate_item_id", "twice")
            await send(socket, RESPOND)
            done = await receive(socket, "response.output_audio_transcript.done")
            return errors, done["transcript"]

    errors, said = run(scenario())
    assert [error["code"] for error in errors] == [code for _, code in HOSTILE]
    assert all(error["message"].endswith(".") and "\n" not in error["message"] for error in errors)
    assert said == "seven"


def test_history_is_no_question_and_a_typed_message_waits_for_its_response(serving_web, run) -> None:
    async def scenario() -> tuple[list[dict], dict, str]:
        async with serving_web() as server, joined(server) as socket:
            told: list[dict] = []
            await send(socket, typed("one", id="u1"), typed("two", "assistant"), typed("six", id="u2"))
            await asyncio.sleep(0.5)
            assert not len(server.server.sessions), "no slot is held before there is something to hear"
            await send(socket, {"type": "input_audio_buffer.clear"})  # begins it
            await receive(socket, "input_audio_buffer.cleared")
            await asyncio.sleep(2.5)  # the history is read
            await send(socket, RESPOND | {"response": {"metadata": {"k": "v"}}})
            done = await receive(socket, "response.done", told)
            await send(socket, {"type": "conversation.item.truncate", "item_id": done["response"]["output"][0]["id"]})
            assert (await receive(socket, "error"))["error"]["param"] == "content_index"
            item = {"item_id": done["response"]["output"][0]["id"], "content_index": 0}
            await send(socket, {"type": "conversation.item.truncate", "audio_end_ms": 99_000} | item)
            too_long = (await receive(socket, "error"))["error"]["message"]
            session = next(iter(server.server.sessions._live))
            assert " six" in [one.text for one in session._said if one.who == "model"]
            await send(socket, {"type": "conversation.item.truncate", "audio_end_ms": 0} | item)
            await receive(socket, "conversation.item.truncated")
            assert " six" not in [one.text for one in session._said if one.who == "model"], "nor is anybody told so"
            await send(socket, {"type": "conversation.item.retrieve", "item_id": item["item_id"]})
            kept = (await receive(socket, "conversation.item.retrieved"))["item"]
            await send(socket, {"type": "conversation.item.delete", "item_id": "u1"})
            await receive(socket, "conversation.item.deleted")
            assert session.config.instructions == "user: one\nassistant: two"
            assert kept["content"][0]["transcript"] == ""
            return told, done["response"], too_long

    told, response, too_long = run(scenario())
    assert response["output"][0]["content"][0]["transcript"] == "six", "only the newest is answered"
    assert response["metadata"] == {"k": "v"}
    assert kinds(told, "response.output_item", "response.output_audio.delta")[0] == "response.created"
    assert too_long.startswith("Audio content of ") and "already shorter than 99000ms" in too_long


def test_instructions_that_take_too_long_to_read_change_nothing(serving_web, run) -> None:
    async def scenario() -> tuple[list[dict], dict]:
        async with serving_web() as server, joined(server) as socket:
            errors = []

            async def refused(instructions: str) -> None:
                update = {"type": "realtime", "instructions": instructions}
                await send(socket, {"type": "session.update", "session": update})
                errors.append((await receive(socket, "error"))["error"])

            await refused("日" * 400)
            await send(socket, {"type": "input_audio_buffer.clear"})  # begins it
            await send(socket, *[typed("日" * 200, "system"), RESPOND])  # is read for 15 s
            await receive(socket, "response.created")
            await refused("日" * 100)
            await send(socket, {"type": "session.update", "session": {"type": "realtime"}})
            return errors, (await receive(socket, "session.updated"))["session"]

    (long, late), session = run(scenario())
    assert (long["code"], long["param"]) == ("string_above_max_length", "session.instructions")
    assert long["message"] == "Instructions of 1202 tokens are too long: send at most 800."
    assert late["message"] == "The model would have more than 20 s of text to read: send less, or later."
    assert session["instructions"] == ""


def test_a_spoken_turn_is_answered_and_the_function_of_the_client_works(serving_web, run) -> None:
    async def scenario() -> list[dict]:
        async with serving_web(late_ms=100) as server, joined(server, tools=[ASK]) as socket:
            told: list[dict] = []
            burst = bursts(1.0, 1, 24_000).samples[:, 0]
            await send(socket, {"type": "input_audio_buffer.append", "audio": base64_of(burst)})
            await receive(socket, "response.done", told)
            await send(socket, typed("what is it"), RESPOND)
            call = (await receive(socket, "response.function_call_arguments.done", told))["call_id"]
            await receive(socket, "response.done", told)
            output = {"type": "function_call_output", "call_id": call, "output": "four"}
            await send(socket, {"type": "conversation.item.create", "item": output}, RESPOND)
            await receive(socket, "response.done", told)
            return told

    told = run(scenario())
    said = [m["transcript"] for m in told if m["type"] == "response.output_audio_transcript.done"]
    assert len(said) == 2 and said[1] == "four"
    order = kinds(told, "response.output_item", "response.output_audio")
    assert order[:4] == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "response.created",
    ]
    arguments = next(m["arguments"] for m in told if m["type"] == "response.function_call_arguments.done")
    assert json.loads(arguments)["question"].startswith("what is it")


@pytest.mark.parametrize(("kind", "rate"), [("audio/pcmu", 8000), ("audio/pcma", 8000)])
def test_push_to_talk_in_g711(serving_web, run, kind: str, rate: int) -> None:
    form = AudioEncoder(AudioFormat(kind, 8000), 16_000)

    async def scenario() -> tuple[list[dict], bytes]:
        audio = {"input": {"format": {"type": kind}, "turn_detection": None}, "output": {"format": {"type": kind}}}
        async with serving_web(late_ms=100) as server, joined(server, audio=audio) as socket:
            told: list[dict] = []
            sound = form.push(bursts(1.0, 1, 16_000).samples[:, 0])
            half = len(sound) // 2
            for piece in (sound[:half], sound[half:]):
                audio_event = {"type": "input_audio_buffer.append", "audio": base64.b64encode(piece).decode()}
                await send(socket, audio_event)
            await send(socket, {"type": "input_audio_buffer.commit"}, RESPOND)
            await receive(socket, "response.done", told)
            deltas = [base64.b64decode(m["delta"]) for m in told if m["type"] == "response.output_audio.delta"]
            return told, b"".join(deltas)

    told, sound = run(scenario())
    assert kinds(told)[:2] == ["input_audio_buffer.committed", "response.created"]
    assert len(sound) % (rate // 5) == 0 and len(sound) >= rate
    assert set(sound[-1600:]) == {0xFF if kind == "audio/pcmu" else 0xD5}, "the pause that ends it is exact silence"


def test_a_picture_is_seen(serving_web, run) -> None:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (60, 40), "red").save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

    async def scenario() -> tuple[dict, int]:
        async with serving_web() as server, joined(server) as socket:
            await send(socket, typed("", content=[{"type": "input_image", "image_url": url}]))
            done = await receive(socket, "conversation.item.done")
            seen = next(iter(server.server.sessions._live)).subscribe()
            async for event in seen:
                if isinstance(event, events.Turn) and event.frames:
                    return done["item"], event.frames
            raise AssertionError

    item, frames = run(scenario())
    assert item["content"] == [{"type": "input_image"}], "a picture does not come back"
    assert frames == 1


def test_a_server_that_is_full_or_drains_says_so_before_it_lets_a_client_in(serving_web, run, caplog) -> None:
    async def refused(url: str) -> tuple[int, str, str | None]:
        with pytest.raises(websockets.InvalidStatus) as error:
            async with connect(url):
                pass
        response = error.value.response
        return (
            response.status_code,
            json.loads(response.body)["error"]["code"],
            response.headers.get("retry-after"),
        )

    async def scenario() -> list[tuple]:
        async with serving_web(slots=1) as server:
            url = server.url.replace("live/sessions", "realtime")
            told: list[tuple] = [await refused(f"{url}?call_id=c"), await refused(f"{url}?intent=transcription")]
            async with joined(server) as early, joined(server) as socket:
                await send(socket, typed("one"), RESPOND)
                await receive(socket, "response.created")
                told.append(await refused(url))
                await send(early, RESPOND)  # the slot has gone meanwhile
                code = (await receive(early, "error"))["error"]["code"]
                before = asyncio.get_running_loop().time()
                with pytest.raises(websockets.ConnectionClosed) as closed:
                    await early.recv()
                assert asyncio.get_running_loop().time() - before > 1, "who connects again at once does so slowly"
                told.append((code, closed.value.rcvd.code))
                server.server.web.drain()
                return [*told, await refused(url)]

    assert run(scenario()) == [
        (400, "unsupported_parameter", None),
        (400, "unsupported_parameter", None),
        (503, "server_full", "10"),
        ("server_full", 1013),
        (503, "server_draining", "10"),
    ]
    assert not caplog.records, "who is refused is no error of the server's"


def test_the_key_of_a_browser_is_a_subprotocol(bundle, run) -> None:
    def protocols(key: str) -> list[Subprotocol]:
        return [Subprotocol("realtime"), Subprotocol(f"openai-insecure-api-key.{key}")]

    async def scenario() -> tuple[str | None, int]:
        sessions = Sessions(Engine(bundle, 1), SessionSettings(), None)
        door = WebDoor(sessions, GrpcDoor(sessions), Access(["s3cret"]))
        url = f"ws://127.0.0.1:{await door.open('127.0.0.1', 0)}/v1/realtime"
        async with connect(url, subprotocols=protocols("s3cret")) as socket:
            chosen = socket.subprotocol
        with pytest.raises(websockets.InvalidStatus) as error:
            async with connect(url, subprotocols=protocols("wrong")):
                pass
        await door.close()
        return chosen, error.value.response.status_code

    assert run(scenario()) == ("realtime", 401)
