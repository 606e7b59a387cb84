"""The door of OpenAI's Realtime protocol: turns made up for a model that has none, by a plain WebSocket client."""

import asyncio
import base64
import contextlib
import io
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import openai.types.realtime as types
import PIL.Image
import pydantic
import pytest
import websockets
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from tests.serve.conftest import bursts
from tests.serve.test_live_door import base64_of
from tml_jax.serve import intake
from tml_jax.serve.config import SessionSettings
from tml_jax.serve.doors import conversation, realtime_config
from tml_jax.serve.doors.access import Access
from tml_jax.serve.doors.audio import AudioEncoder, AudioFormat
from tml_jax.serve.doors.grpc import GrpcDoor
from tml_jax.serve.doors.protocol import ProtocolError
from tml_jax.serve.doors.realtime_items import Items
from tml_jax.serve.doors.realtime_telling import RealtimeTelling
from tml_jax.serve.doors.web import WebDoor
from tml_jax.serve.engine import Engine
from tml_jax.serve.sessions import Sessions
from tml_jax.wire import events

STREAM = events.Stream(200, 16_000, 40, 40, 8)
SERVER_EVENT: pydantic.TypeAdapter = pydantic.TypeAdapter(types.RealtimeServerEvent)
ASK = {
    "type": "function",
    "name": "ask",
    "parameters": {"type": "object", "properties": {"question": {"type": "string"}}, "required": ["question"]},
}
TWO = {
    "type": "function",
    "name": "two",
    "parameters": {"type": "object", "properties": {"a": {"type": "string"}, "b": {}}, "required": ["a", "b"]},
}


def check(event: dict) -> dict:
    """The event, known to be one that OpenAI's own types take."""
    read = SERVER_EVENT.validate_python({"event_id": "event_0"} | event)
    assert read.type == event["type"]
    return event


# Turns, made up.


def turn(number: int, level: float = 0.0, decision: events.Decision = events.Decision.LISTEN) -> list[events.Event]:
    return [events.Turn(number, decision, 1.0, False, 0, level, 0)]


def speaks(number: int, text: str = "", level: float = 0.0) -> list[events.Event]:
    start, end = 200 * (number + 1), 200 * (number + 2)
    said: list[events.Event] = [events.Words(number, text, start, end)] if text else []
    loud = np.full(3200, 0.5, np.float32)
    return [*turn(number, level, events.Decision.SPEAK), *said, events.Sound(number, start, end, loud, 0.5)]


def hears(number: int, text: str, level: float = 0.0) -> list[events.Event]:
    return [*turn(number, level), events.HeardWords(number, text, 200 * number, 200 * (number + 1))]


def teller(**session: Any) -> RealtimeTelling:
    before = realtime_config.default("sess_1", "m")
    config = realtime_config.read_update({"session": {"type": "realtime"} | session}, before, False)
    return RealtimeTelling(config, STREAM, Items())


def tell(telling: RealtimeTelling, told: Iterable[events.Event]) -> list[dict]:
    """Each micro-turn is told before the next one comes."""
    said: list[dict] = []
    told = list(told)
    for event, later in zip(told, [*told[1:], None], strict=True):
        said += telling.translate(event, later is None or isinstance(later, events.Turn))
    return [check(message) for message in said]


def detection(kind: str, **options: object) -> dict:
    return {"audio": {"input": {"turn_detection": {"type": kind} | options, "transcription": {"model": "own"}}}}


def kinds(told: list[dict], *without: str) -> list[str]:
    hidden = ("conversation.item.", "response.content_part", *without)
    return [m["type"] for m in told if not m["type"].startswith(hidden) or "transcription" in m["type"]]


def quiet(first: int, count: int) -> list[events.Event]:
    return [event for number in range(first, first + count) for event in turn(number)]


def test_a_response_begins_with_what_is_heard_and_ends_with_a_pause() -> None:
    telling = teller()
    told = tell(telling, [*turn(0), *speaks(1, " seven"), *turn(2), *speaks(3, " eight"), *quiet(4, 5)])
    assert [m["type"] for m in told] == [
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "response.content_part.added",
        "response.output_audio_transcript.delta",
        "response.output_audio.delta",
        "response.output_audio.delta",  # a pause sounds as long as it is
        "response.output_audio_transcript.delta",
        *["response.output_audio.delta"] * 5,
        "response.output_audio.done",
        "response.output_audio_transcript.done",
        "response.content_part.done",
        "response.output_item.done",
        "conversation.item.done",
        "response.done",
    ]
    sound = [np.frombuffer(base64.b64decode(m["delta"]), "<i2") for m in told if m["type"].endswith("audio.delta")]
    assert {len(piece) for piece in sound} == {4800}
    assert [bool(piece.any()) for piece in sound] == [True, True, True, True, False, False, False], "the filter rings"
    done = told[-1]["response"]
    assert (done["status"], done["status_details"]) == ("completed", None)
    assert done["output"][0]["content"] == [{"type": "output_audio", "transcript": "seven eight"}]
    assert len({m["item_id"] for m in told if "item_id" in m}) == 1
    assert not tell(telling, quiet(9, 3)), "silence between responses is not told"


def test_text_alone_has_no_sound() -> None:
    told = tell(teller(output_modalities=["text"]), [*speaks(0, " seven"), *quiet(1, 4)])
    assert kinds(told, "response.output_item") == [
        "response.created",
        "response.output_text.delta",
        "response.output_text.done",
        "response.done",
    ]
    assert told[-1]["response"]["output"][0]["content"] == [{"type": "output_text", "text": "seven"}]


def test_the_users_turn_is_told_with_its_words_also_those_that_come_late() -> None:
    telling = teller(**detection("server_vad", silence_duration_ms=400, prefix_padding_ms=100))
    heard = [*turn(0), *turn(1, 0.1), *hears(2, " repeat", 0.1), *turn(3), *turn(4), *hears(5, " six"), *quiet(6, 6)]
    told = tell(telling, heard)
    assert kinds(told) == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.input_audio_transcription.delta",
        "conversation.item.input_audio_transcription.delta",
        "conversation.item.input_audio_transcription.completed",
    ]
    assert told[0]["audio_start_ms"] == 100
    assert told[1]["audio_end_ms"] == 600
    assert told[-1]["transcript"] == "repeat six"
    assert told[-1]["usage"] == {"type": "duration", "seconds": 0.4}
    assert len({m["item_id"] for m in told if "item_id" in m}) == 1


def test_without_transcription_or_detection_nothing_of_the_user_is_told() -> None:
    loud = [*hears(0, " a", 0.1), *quiet(1, 9)]
    told = tell(teller(audio={"input": {"turn_detection": None, "transcription": {"model": "own"}}}), loud)
    assert not told
    assert not [kind for kind in kinds(tell(teller(), loud)) if "transcription" in kind]


def test_words_that_are_too_soft_for_the_detector_are_a_turn_all_the_same() -> None:
    told = tell(teller(**detection("semantic_vad")), [*hears(0, " hello", 0.001), *quiet(1, 9)])
    assert told[0]["type"] == "input_audio_buffer.speech_started"
    assert told[-1]["transcript"] == "hello"


@pytest.mark.parametrize(
    ("options", "statuses"),
    [
        (detection("server_vad"), ["cancelled", "completed"]),  # at the first loud moment; what follows is new
        (detection("server_vad", interrupt_response=False), ["completed"]),
        (detection("semantic_vad"), ["completed"]),  # the model spoke on, so it was not interrupted
    ],
)
def test_a_user_who_speaks_over_a_model_that_speaks_on(options: dict, statuses: list[str]) -> None:
    told = tell(teller(**options), [*speaks(0, " one"), *speaks(1, " two", 0.1), *speaks(2, " three"), *quiet(3, 8)])
    done = [m["response"] for m in told if m["type"] == "response.done"]
    assert [response["status"] for response in done] == statuses
    said = [response["output"][0]["content"][0]["transcript"] for response in done]
    assert " ".join(said) == "one two three", "nothing that the model says is lost"
    assert kinds(told).count("input_audio_buffer.speech_started") == 1, "also a model's own choice is told in the end"


@pytest.mark.parametrize("kind", ["server_vad", "semantic_vad"])
def test_a_model_that_yields_was_interrupted(kind: str) -> None:
    told = tell(teller(**detection(kind)), [*speaks(0, " one"), *speaks(1, "", 0.1), *turn(2, 0.1), *quiet(3, 5)])
    ends = [m for m in told if m["type"] == "response.done"]
    last = [m["response"]["status"] for m in ends]
    assert "cancelled" in last
    reason = next(m["response"]["status_details"] for m in ends if m["response"]["status"] == "cancelled")
    assert reason == {"type": "cancelled", "reason": "turn_detected"}
    assert kinds(told).index("input_audio_buffer.speech_started") < kinds(told).index("response.done")


def test_what_the_model_asks_is_a_call_of_the_clients_function() -> None:
    telling = teller(tools=[ASK, TWO])
    asks = [*hears(0, " six times seven"), *turn(1, 0.0, events.Decision.DELEGATE), *turn(2)]
    told = tell(telling, asks)
    assert kinds(told)[-6:] == [
        "response.created",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.done",
    ]
    (call,) = told[-1]["response"]["output"]
    assert (call["name"], call["arguments"]) == ("ask", '{"question": "six times seven"}')
    assert not [m for m in tell(teller(), asks) if m["type"] == "response.created"], "else the server's own works"


def test_a_response_that_was_asked_for_takes_what_the_model_says_already() -> None:
    telling = teller()
    told = tell(telling, speaks(0, " one"))
    told += [check(m) for m in telling.create({"k": "v"}, True)]
    with pytest.raises(ProtocolError, match="already has an active response"):
        telling.check_free()
    told += tell(telling, [*speaks(1, " two"), *quiet(2, 4)])
    done = [m["response"] for m in told if m["type"] == "response.done"]
    assert [(r["metadata"], r["output"][0]["content"][0]["transcript"]) for r in done] == [
        (None, "one"),
        ({"k": "v"}, "two"),
    ]
    list(telling.create(None, True))
    told = tell(telling, quiet(6, 25))
    assert (told[-1]["type"], told[-1]["response"]["output"]) == ("response.done", []), "the model chose to be silent"


def test_a_cancelled_response_is_heard_no_more_until_the_model_pauses() -> None:
    telling = teller()
    with pytest.raises(ProtocolError, match="Cancellation failed"):
        list(telling.cancel(None))
    told = tell(telling, speaks(0, " one"))
    told += [check(m) for m in telling.cancel(None)]
    assert told[-1]["response"]["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
    assert not tell(telling, [*speaks(1, " two"), *quiet(2, 4)])
    assert tell(telling, speaks(6, " three"))[0]["type"] == "response.created"


# What a session can be.


@pytest.mark.parametrize(
    ("session", "code", "param"),
    [
        ({"type": "transcription"}, "unsupported_parameter", "session.type"),
        ({"voice": "marin"}, "unknown_parameter", "session.voice"),
        ({"output_modalities": ["text", "audio"]}, "invalid_value", "session.output_modalities"),
        ({"instructions": "a" * 5000}, "string_above_max_length", "session.instructions"),
        ({"max_output_tokens": 5}, "unsupported_parameter", "session.max_output_tokens"),
        ({"tracing": "auto"}, "unsupported_parameter", "session.tracing"),
        ({"truncation": "disabled"}, "unsupported_parameter", "session.truncation"),
        ({"audio": {"output": {"speed": 1.2}}}, "unsupported_parameter", "session.audio.output.speed"),
        ({"audio": {"output": {"voice": "bob"}}}, "invalid_value", "session.audio.output.voice"),
        (
            {"audio": {"input": {"format": {"type": "audio/pcm", "rate": 16_000}}}},
            "invalid_value",
            "session.audio.input.format.rate",
        ),
        (detection("loud_vad"), "invalid_value", "session.audio.input.turn_detection.type"),
        (detection("server_vad", eagerness="low"), "unknown_parameter", None),
        (detection("server_vad", threshold=2), "invalid_value", "session.audio.input.turn_detection.threshold"),
        (detection("server_vad", idle_timeout_ms=6000), "unsupported_parameter", None),
        ({"tools": [{"type": "mcp"}]}, "unsupported_parameter", "session.tools[0].type"),
        ({"tools": [TWO]}, "unsupported_parameter", "session.tools"),
        ({"tools": [TWO, TWO | {"name": "three"}]}, "unsupported_parameter", "session.tools"),
        ({"tools": [ASK], "tool_choice": {"type": "function", "name": "b"}}, "invalid_value", "session.tool_choice"),
    ],
)
def test_what_a_session_cannot_be_is_named(session: dict, code: str, param: str | None) -> None:
    with pytest.raises(ProtocolError, match=r"^[^\n]+\.$") as error:
        teller(**session)
    assert error.value.code == code
    assert param is None or error.value.param == param


def test_what_a_session_can_be_is_echoed() -> None:
    one = {"type": "function", "name": "now", "parameters": {"type": "object", "properties": {}}}
    config = teller(tools=[one], **detection("semantic_vad", eagerness="low")).config
    assert config.function == realtime_config.Function("now", None)
    assert config.function.arguments("what") == "{}"
    assert config.detects == {
        "type": "semantic_vad",
        "eagerness": "low",
        "create_response": True,
        "interrupt_response": True,
    }
    same = {"session": {"type": "realtime", "audio": {"input": {"turn_detection": None}}, "tool_choice": "none"}}
    config = realtime_config.read_update(same, config, True)
    assert (config.detects, config.function, config.transcribes) == (None, None, True)
    mu = {"session": {"audio": {"input": {"format": {"type": "audio/pcmu"}}}}}
    assert realtime_config.read_update(mu, config, False).hears.rate == 8000
    with pytest.raises(ProtocolError, match="cannot change once"):
        realtime_config.read_update(mu, config, True)


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
            await send(socket, {"type": "conversation.item.truncate", "audio_end_ms": 0} | item)
            await receive(socket, "conversation.item.truncated")
            await send(socket, {"type": "conversation.item.retrieve", "item_id": item["item_id"]})
            kept = (await receive(socket, "conversation.item.retrieved"))["item"]
            await send(socket, {"type": "conversation.item.delete", "item_id": "u1"})
            await receive(socket, "conversation.item.deleted")
            session = next(iter(server.server.sessions._live))
            assert session.config.instructions == "user: one\nassistant: two"
            assert kept["content"][0]["transcript"] == ""
            return told, done["response"], too_long

    told, response, too_long = run(scenario())
    assert response["output"][0]["content"][0]["transcript"] == "six", "only the newest is answered"
    assert response["metadata"] == {"k": "v"}
    assert kinds(told, "response.output_item", "response.output_audio.delta")[0] == "response.created"
    assert too_long.startswith("Audio content of ") and "already shorter than 99000ms" in too_long


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


def test_a_server_that_is_full_or_drains_says_so_before_it_lets_a_client_in(serving_web, run) -> None:
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


def test_words_of_a_bad_format_are_the_clients_fault() -> None:
    with pytest.raises(intake.BadInputError, match="audio/opus"):
        teller(audio={"input": {"format": {"type": "audio/opus"}}})
