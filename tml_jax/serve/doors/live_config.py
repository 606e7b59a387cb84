"""What clients of GPT-Live send, read and checked: events, the session's configuration, its updates."""

import base64
import dataclasses
import itertools
import json
from collections.abc import Collection
from typing import Any

from tml_jax.serve import intake
from tml_jax.serve.config import SessionConfig
from tml_jax.serve.doors.audio import AudioFormat

_APPEND = {"content", "delegation_id"}
EVENTS: dict[str, set[str]] = {
    "session.start": {"session"},
    "session.update": {"session"},
    "session.input_audio.append": {"audio"},
    "session.input_audio.mute": set(),
    "session.input_audio.unmute": set(),
    "session.output_audio.fixture.play": {"audio"},
    "session.instructions.append": _APPEND,
    "session.thinking.append": _APPEND,
    "session.commentary.append": _APPEND,
    "session.close": set(),
    "response.create": set(),
    "response.item.create": {"item"},
    "decision.create": set(),
    "decision.item.create": {"item", "previous_item_id"},
    "decision.item.delete": {"item_id"},
    "transport.dtmf.send": {"event"},
}
"""The client's events, and their fields beside type and event_id."""
VOICES = frozenset(
    ["alloy", "ash", "ballad", "beacon", "bossa", "cedar", "cinder", "coral", "delta", "echo", "gleam", "marin"]
).union(["meridian", "quartz", "ripple", "sage", "shida", "shimmer", "stone", "tempo", "verse", "vesper", "willow"])
MAX_MESSAGES = 128
_SESSION = {"model", "instructions", "input", "audio", "delegation", "triggers", "store", "client", "safety_identifier"}
_RESPONSES = {
    "model",
    "instructions",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "max_output_tokens",
    "reasoning",
    "text",
    "service_tier",
}


class ProtocolError(ValueError):
    """What a client sent cannot be taken: the protocol's `error`, in one sentence.

    Attributes:
      code: for programs. param: the field. event_id: of the client's event.
    """

    def __init__(self, code: str, message: str, param: str | None = None, event_id: str | None = None) -> None:
        super().__init__(message)
        self.code, self.param, self.event_id = code, param, event_id

    def details(self) -> dict[str, Any]:
        """The field `error` of the event."""
        details = {"type": "invalid_request_error", "code": self.code, "message": str(self)}
        return details | {k: v for k, v in (("param", self.param), ("client_event_id", self.event_id)) if v is not None}


@dataclasses.dataclass(frozen=True)
class LiveConfig:
    """What a client wants.

    Attributes:
      session: of ours. format: of the sound, in both directions.
      resource: the session's configuration as the client is shown it, with all defaults.
      left_out: the oldest messages of its input, for which there was no room.
    """

    session: SessionConfig
    format: AudioFormat
    resource: dict[str, Any]
    left_out: int = 0

    @property
    def background(self) -> bool:
        """Whether the server's background model works."""
        return self.session.background


def to_base64(data: bytes) -> str:
    """Bytes as JSON has them."""
    return base64.b64encode(data).decode()


def read_event(text: str) -> dict[str, Any]:
    """One event of a client, its type known to be a string, its fields known to be the type's.

    Raises:
      ProtocolError: it is no JSON object, has no type, or a field that its type does not have.
    """
    try:
        event = json.loads(text)
    except (ValueError, RecursionError):
        raise ProtocolError("invalid_json", "The message is not valid JSON.") from None
    if not isinstance(event, dict):
        raise ProtocolError("invalid_event", "An event must be a JSON object.")
    event_id = event.get("event_id")
    if event_id is not None and (not isinstance(event_id, str) or len(event_id) > 512):
        raise ProtocolError("invalid_type", "event_id must be a string of at most 512 characters.", "event_id")
    try:
        kind = string(event, "type", "")
        if kind in EVENTS:
            _only(event, EVENTS[kind] | {"type", "event_id"}, "")
    except ProtocolError as error:
        error.event_id = event_id
        raise
    return event


def read_config(event: dict[str, Any]) -> LiveConfig:
    """The configuration of a `session.start`.

    Raises:
      ProtocolError: it asks for what this server does not have, or does not say what it means.
      BadInputError: the audio format, likewise.
    """
    given = _object(event, "session", "")
    _only(given, _SESSION, "session.")
    model = string(given, "model", "session.")
    instructions = _optional(given, "instructions", "session.") or ""
    if len(instructions) > intake.MAX_TEXT:
        sentence = f"Instructions of {len(instructions)} characters are too long: send at most {intake.MAX_TEXT}."
        raise ProtocolError("string_above_max_length", sentence, "session.instructions")
    history = _history(given.get("input") or [])
    sizes = itertools.accumulate((1 + len(line) for line in reversed(history)), initial=len(instructions))
    left_out = sum(size > intake.MAX_TEXT for size in sizes)
    for name, sentence in (
        ("store", "This server stores no session for later: leave store out."),
        ("triggers", "This server has no decisions: leave triggers out."),
        ("client", "This server has no WebRTC front ends: leave client out."),
    ):
        if given.get(name):
            raise ProtocolError("unsupported_parameter", sentence, f"session.{name}")
    form, voice = _audio(given)
    delegation = _delegation(given)
    resource = {
        "model": model,
        "instructions": instructions,
        "input": given.get("input") or [],
        "audio": {"format": dataclasses.asdict(form), "output": {"voice": voice}},
        "delegation": delegation,
        "triggers": [],
        "store": False,
        "safety_identifier": _optional(given, "safety_identifier", "session."),
    }
    session = SessionConfig(
        instructions="\n".join([instructions, *history[left_out:]]),
        sound=intake.SoundFormat(form.rate),
        background=delegation["type"] == "responses",
    )
    return LiveConfig(session, form, resource, left_out)


def read_update(event: dict[str, Any], resource: dict[str, Any]) -> dict[str, Any]:
    """The fields of `resource` that a `session.update` changes, as they become.

    Raises:
      ProtocolError: it changes what cannot be changed.
    """
    given = _object(event, "session", "")
    for name in given.keys() & (_SESSION - {"delegation", "triggers"}):
        raise ProtocolError("immutable_parameter", f"session.{name} cannot change in a session.", f"session.{name}")
    _only(given, {"delegation", "triggers"}, "session.")
    if given.get("triggers"):
        raise ProtocolError("unsupported_parameter", "This server has no decisions.", "session.triggers")
    if given.get("delegation") is None:
        return {}
    before = resource["delegation"]
    changes = _object(given, "delegation", "session.")
    if changes.get("type") != before["type"]:
        sentence = f"The type of delegation cannot change in a session: it is {before['type']}."
        raise ProtocolError("immutable_parameter", sentence, "session.delegation.type")
    if isinstance(changes.get("responses"), dict):
        changes = changes | {"responses": before["responses"] | changes["responses"]}
    return {"delegation": _delegation({"delegation": before | changes})}


def string(fields: dict[str, Any], name: str, where: str) -> str:
    """The field `name`, which must be text."""
    value = fields.get(name)
    if value is None:
        raise ProtocolError("missing_parameter", f"{where}{name} is missing.", where + name)
    if not isinstance(value, str):
        raise ProtocolError("invalid_type", f"{where}{name} must be a string.", where + name)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ProtocolError("invalid_value", f"{where}{name} holds half a character.", where + name) from None
    return value


def _optional(fields: dict[str, Any], name: str, where: str) -> str | None:
    return None if fields.get(name) is None else string(fields, name, where)


def _object(fields: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    value = fields.get(name)
    if not isinstance(value, dict):
        raise ProtocolError("invalid_type", f"{where}{name} must be an object.", where + name)
    return value


def _only(fields: dict[str, Any], known: Collection[str], where: str) -> None:
    for name in fields:
        if name not in known:
            raise ProtocolError("unknown_parameter", f"Unknown parameter: {where + name[:100]!r}.", where + name[:100])


def _history(messages: Any) -> list[str]:
    """Messages from before the session, as the model is told them with its instructions, each a line."""
    where = "session.input"
    if not isinstance(messages, list) or len(messages) > MAX_MESSAGES:
        raise ProtocolError("invalid_value", f"{where} must be a list of at most {MAX_MESSAGES} messages.", where)
    lines = []
    for number, message in enumerate(messages):
        here = f"{where}[{number}]"
        if not isinstance(message, dict) or message.get("role") not in ("developer", "user", "assistant"):
            raise ProtocolError("invalid_value", f"{here} must be a message of developer, user or assistant.", here)
        content = message.get("content")
        kinds = ("text", "output_text") if message["role"] == "assistant" else ("input_text",)
        part = content[0] if isinstance(content, list) and len(content) == 1 else None
        if not isinstance(part, dict) or part.get("type", kinds[0]) not in kinds:
            raise ProtocolError("invalid_value", f"{here} must have one part of {' or '.join(kinds)}.", here)
        lines.append(f"{message['role']}: {string(part, 'text', here + '.content[0].')}")
    return lines


def _audio(given: dict[str, Any]) -> tuple[AudioFormat, str]:
    if given.get("audio") is None:
        return AudioFormat(), "marin"
    audio = _object(given, "audio", "session.")
    _only(audio, {"format", "output"}, "session.audio.")
    form, voice = AudioFormat(), None
    if audio.get("format") is not None:
        wanted, where = _object(audio, "format", "session.audio."), "session.audio.format."
        _only(wanted, {"type", "rate"}, where)
        kind = string(wanted, "type", where)
        rate = wanted.get("rate", 24_000 if kind == "audio/pcm" else 8000)
        if type(rate) is not int:
            raise ProtocolError("invalid_type", f"{where}rate must be an integer.", f"{where}rate")
        form = AudioFormat(kind, rate)
    if audio.get("output") is not None:
        output = _object(audio, "output", "session.audio.")
        _only(output, {"voice"}, "session.audio.output.")
        if isinstance(output.get("voice"), dict):
            sentence = "This server has no custom voices: name a built-in one."
            raise ProtocolError("unsupported_parameter", sentence, "session.audio.output.voice")
        voice = _optional(output, "voice", "session.audio.output.")
        if voice is not None and voice not in VOICES:
            sentence = f"There is no voice {voice[:100]!r}: there are {', '.join(sorted(VOICES))}."
            raise ProtocolError("invalid_value", sentence, "session.audio.output.voice")
    return form, voice or "marin"


def _delegation(given: dict[str, Any]) -> dict[str, Any]:
    if given.get("delegation") is None:
        return {"type": "client", "acknowledgement_delay_ms": 0}
    where = "session.delegation."
    delegation = _object(given, "delegation", "session.")
    kind = string(delegation, "type", where)
    if kind not in ("client", "responses"):
        sentence = f"Delegation of type {kind[:100]!r} is not had here: client and responses are."
        raise ProtocolError("unsupported_parameter", sentence, f"{where}type")
    _only(delegation, {"type", "acknowledgement_delay_ms"} | ({"responses"} if kind == "responses" else set()), where)
    delay = delegation.get("acknowledgement_delay_ms", 0)
    if type(delay) is not int or delay < 0:
        sentence = "acknowledgement_delay_ms must be a whole number of milliseconds."
        raise ProtocolError("invalid_value", sentence, f"{where}acknowledgement_delay_ms")
    full = {"type": kind, "acknowledgement_delay_ms": delay}
    if kind == "responses":
        responses = _object(delegation, "responses", where)
        _only(responses, _RESPONSES, f"{where}responses.")
        string(responses, "model", f"{where}responses.")
        if responses.get("tools"):
            sentence = (
                "The background model of this server has its own tools and calls no others: use client delegation."
            )
            raise ProtocolError("unsupported_parameter", sentence, f"{where}responses.tools")
        full["responses"] = responses
    return full
