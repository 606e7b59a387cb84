"""What clients of GPT-Live send, read and checked: events, the session's configuration, its updates."""

import dataclasses
from typing import Any

from tml_jax.serve import intake
from tml_jax.serve.config import SessionConfig
from tml_jax.serve.doors import protocol
from tml_jax.serve.doors.audio import AudioFormat
from tml_jax.serve.doors.protocol import ProtocolError, obj, only, optional, string
from tml_jax.serve.reading import Reading

IMAGE = "tml.input_image.append"  # our own extension
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
    IMAGE: {"image_url"},
}
"""The client's events, and their fields beside type and event_id."""
MAX_MESSAGES = 128
_SESSION = {"model", "instructions", "input", "audio", "delegation", "triggers", "store", "client", "safety_identifier"}
_SESSION |= {"extensions"}
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


def read_config(event: dict[str, Any], reading: Reading) -> LiveConfig:
    """The configuration of a `session.start`, with as much of its history as `reading` has time for.

    Raises:
      ProtocolError, BadInputError: it asks for what this server does not have, or does not say what it means.
    """
    given = obj(event, "session", "")
    only(given, _SESSION, "session.")
    model = string(given, "model", "session.")
    instructions = optional(given, "instructions", "session.") or ""
    protocol.check_instructions(instructions, "session.instructions", reading)
    told, left_out = protocol.with_history(instructions, _history(given.get("input") or []), reading)
    for name, sentence in (
        ("store", "This server stores no session for later: leave store out."),
        ("triggers", "This server has no decisions: leave triggers out."),
        ("client", "This server has no WebRTC front ends: leave client out."),
    ):
        if given.get(name):
            raise ProtocolError("unsupported_parameter", sentence, f"session.{name}")
    form, voice = _audio(given)
    delegation = _delegation(given)
    extensions = given.get("extensions") or []
    if not isinstance(extensions, list) or any(name != IMAGE for name in extensions):
        raise ProtocolError("invalid_value", f"session.extensions may hold {IMAGE} alone.", "session.extensions")
    resource = {
        "model": model,
        "instructions": instructions,
        "input": given.get("input") or [],
        "audio": {"format": protocol.describe(form), "output": {"voice": voice}},
        "delegation": delegation,
        "triggers": [],
        "store": False,
        "extensions": extensions,
        "safety_identifier": optional(given, "safety_identifier", "session."),
    }
    session = SessionConfig(
        sends_video=bool(extensions),
        instructions=told,
        sound=intake.SoundFormat(form.rate),
        background=delegation["type"] == "responses",
    )
    return LiveConfig(session, form, resource, left_out)


def read_update(event: dict[str, Any], resource: dict[str, Any]) -> dict[str, Any]:
    """The fields of `resource` that a `session.update` changes, as they become.

    Raises:
      ProtocolError: it changes what cannot be changed.
    """
    given = obj(event, "session", "")
    for name in given.keys() & (_SESSION - {"delegation", "triggers"}):
        raise ProtocolError("immutable_parameter", f"session.{name} cannot change in a session.", f"session.{name}")
    only(given, {"delegation", "triggers"}, "session.")
    if given.get("triggers"):
        raise ProtocolError("unsupported_parameter", "This server has no decisions.", "session.triggers")
    if given.get("delegation") is None:
        return {}
    before = resource["delegation"]
    changes = obj(given, "delegation", "session.")
    if changes.get("type") != before["type"]:
        sentence = f"The type of delegation cannot change in a session: it is {before['type']}."
        raise ProtocolError("immutable_parameter", sentence, "session.delegation.type")
    if isinstance(changes.get("responses"), dict):
        changes = changes | {"responses": before.get("responses", {}) | changes["responses"]}
    return {"delegation": _delegation({"delegation": before | changes})}


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
    audio = obj(given, "audio", "session.")
    only(audio, {"format", "output"}, "session.audio.")
    form, voice = AudioFormat(), None
    if audio.get("format") is not None:
        form = protocol.audio_format(obj(audio, "format", "session.audio."), "session.audio.format.")
    if audio.get("output") is not None:
        output = obj(audio, "output", "session.audio.")
        only(output, {"voice"}, "session.audio.output.")
        voice = protocol.voice(output, "session.audio.output.")
    return form, voice or "marin"


def _delegation(given: dict[str, Any]) -> dict[str, Any]:
    if given.get("delegation") is None:
        return {"type": "client", "acknowledgement_delay_ms": 0}
    where = "session.delegation."
    delegation = obj(given, "delegation", "session.")
    kind = string(delegation, "type", where)
    if kind not in ("client", "responses"):
        sentence = f"Delegation of type {kind[:100]!r} is not had here: client and responses are."
        raise ProtocolError("unsupported_parameter", sentence, f"{where}type")
    only(delegation, {"type", "acknowledgement_delay_ms"} | ({"responses"} if kind == "responses" else set()), where)
    delay = delegation.get("acknowledgement_delay_ms", 0)
    if type(delay) is not int or delay < 0:
        sentence = "acknowledgement_delay_ms must be a whole number of milliseconds."
        raise ProtocolError("invalid_value", sentence, f"{where}acknowledgement_delay_ms")
    full = {"type": kind, "acknowledgement_delay_ms": delay}
    if kind == "responses":
        responses = obj(delegation, "responses", where)
        only(responses, _RESPONSES, f"{where}responses.")
        string(responses, "model", f"{where}responses.")
        if responses.get("tools"):
            sentence = (
                "The background model of this server has its own tools and calls no others: use client delegation."
            )
            raise ProtocolError("unsupported_parameter", sentence, f"{where}responses.tools")
        full["responses"] = responses
    return full
