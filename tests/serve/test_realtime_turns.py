"""Turns, made up for a model that has none; and what a Realtime session can be."""

import base64
from collections.abc import Iterable
from typing import Any

import numpy as np
import openai.types.realtime as types
import pydantic
import pytest

from tests.serve.conftest import reading
from tml_jax.serve import intake
from tml_jax.serve.doors import realtime_config
from tml_jax.serve.doors.protocol import ProtocolError
from tml_jax.serve.doors.realtime_items import Items
from tml_jax.serve.doors.realtime_telling import RealtimeTelling
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
    config = realtime_config.read_update({"session": {"type": "realtime"} | session}, before, False, reading())
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
        ({"instructions": "日" * 400}, "string_above_max_length", "session.instructions"),
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
        ({"tools": [ASK | {"parameters": {"required": [["question"]]}}]}, "unsupported_parameter", "session.tools"),
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
    config = realtime_config.read_update(same, config, True, reading())
    assert (config.detects, config.function, config.transcribes) == (None, None, True)
    mu = {"session": {"audio": {"input": {"format": {"type": "audio/pcmu"}}}}}
    assert realtime_config.read_update(mu, config, False, reading()).hears.rate == 8000
    with pytest.raises(ProtocolError, match="cannot change once"):
        realtime_config.read_update(mu, config, True, reading())


def test_words_of_a_bad_format_are_the_clients_fault() -> None:
    with pytest.raises(intake.BadInputError, match="audio/opus"):
        teller(audio={"input": {"format": {"type": "audio/opus"}}})
