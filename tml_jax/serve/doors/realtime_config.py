"""What clients of OpenAI's Realtime protocol send, read and checked: events, the session's configuration, its tools."""

import copy
import dataclasses
import json
from typing import Any

from tml_jax.serve.doors import protocol
from tml_jax.serve.doors.audio import AudioFormat
from tml_jax.serve.doors.protocol import ProtocolError, choice, number, obj, only, optional, string
from tml_jax.serve.reading import Reading

EVENTS: dict[str, set[str]] = {
    "session.update": {"session"},
    "input_audio_buffer.append": {"audio"},
    "input_audio_buffer.commit": set(),
    "input_audio_buffer.clear": set(),
    "conversation.item.create": {"item", "previous_item_id"},
    "conversation.item.retrieve": {"item_id"},
    "conversation.item.delete": {"item_id"},
    "conversation.item.truncate": {"item_id", "content_index", "audio_end_ms"},
    "response.create": {"response"},
    "response.cancel": {"response_id"},
    "output_audio_buffer.clear": set(),
}
"""The client's events, and their fields beside type and event_id."""
_SESSION = {
    "type",
    "object",
    "id",
    "expires_at",
    "model",
    "instructions",
    "output_modalities",
    "audio",
    "tools",
    "tool_choice",
    "max_output_tokens",
    "parallel_tool_calls",
    "reasoning",
    "truncation",
    "tracing",
    "prompt",
    "include",
}
_REFUSED = {  # a field, and why it may not be set
    "tracing": "This server traces nothing",
    "prompt": "This server keeps no prompts",
    "include": "This server has no log probabilities",
}
_SERVER_VAD = {
    "type": "server_vad",
    "threshold": 0.5,
    "prefix_padding_ms": 300,
    "silence_duration_ms": 500,
    "idle_timeout_ms": None,
    "create_response": True,
    "interrupt_response": True,
}
_SEMANTIC_VAD = {"type": "semantic_vad", "eagerness": "auto", "create_response": True, "interrupt_response": True}
SEMANTIC_SILENCE_MS = 600


@dataclasses.dataclass(frozen=True)
class Function:
    """The function of the client that the model's question goes to; `argument` takes it, if it has one."""

    name: str
    argument: str | None

    def arguments(self, question: str) -> str:
        """What it is called with, as JSON."""
        return json.dumps({self.argument: question} if self.argument else {}, ensure_ascii=False)


@dataclasses.dataclass(frozen=True)
class RealtimeConfig:
    """What a client wants now.

    Attributes:
      resource: the session's configuration as the client is shown it, with all defaults.
      hears, speaks: formats of the sound.
      function: what the model's questions go to; without one they go to the server's background model.
    """

    resource: dict[str, Any]
    hears: AudioFormat = AudioFormat()
    speaks: AudioFormat = AudioFormat()
    function: Function | None = None

    @property
    def detects(self) -> dict[str, Any] | None:
        """How speech is detected."""
        return self.resource["audio"]["input"]["turn_detection"]

    @property
    def transcribes(self) -> bool:
        """Whether the client is told what the user said."""
        return self.resource["audio"]["input"]["transcription"] is not None

    @property
    def text_alone(self) -> bool:
        """Whether the model's sound is not told."""
        return self.resource["output_modalities"] == ["text"]


def default(name: str, model: str) -> RealtimeConfig:
    """What a session is before its client has said anything."""
    spoken = protocol.describe(AudioFormat())
    hears = {"format": spoken, "noise_reduction": None, "transcription": None, "turn_detection": _SERVER_VAD}
    resource = {
        "type": "realtime",
        "object": "realtime.session",
        "id": name,
        "model": model,
        "instructions": "",
        "output_modalities": ["audio"],
        "audio": {"input": hears, "output": {"format": spoken, "voice": "marin", "speed": 1.0}},
        "tools": [],
        "tool_choice": "auto",
        "max_output_tokens": "inf",
        "truncation": "auto",
        "tracing": None,
        "prompt": None,
        "include": None,
    }
    return RealtimeConfig(copy.deepcopy(resource))


def read_update(event: dict[str, Any], before: RealtimeConfig, begun: bool, reading: Reading) -> RealtimeConfig:
    """The configuration after a `session.update`; once the conversation has `begun`, the formats stay.

    Its instructions are none that `reading` finds too long.

    Raises:
      ProtocolError, BadInputError: it asks for what this server does not have, or does not say what it means.
    """
    given, where = obj(event, "session", ""), "session."
    only(given, _SESSION, where)
    if given.get("type", "realtime") != "realtime":
        sentence = "A session of this server is of type realtime: transcription alone is not had here."
        raise ProtocolError("unsupported_parameter", sentence, "session.type")
    for name, sentence in _REFUSED.items():
        if given.get(name):
            raise ProtocolError("unsupported_parameter", f"{sentence}: leave {name} out.", where + name)
    resource = copy.deepcopy(before.resource)
    if given.get("model") is not None and string(given, "model", where) != resource["model"]:
        resource["model"] = given["model"]
    if given.get("instructions") is not None:
        instructions = string(given, "instructions", where)
        protocol.check_instructions(instructions, f"{where}instructions", reading)
        resource["instructions"] = instructions
    if given.get("output_modalities") is not None:
        resource["output_modalities"] = _modalities(given, where)
    for name in ("parallel_tool_calls", "reasoning"):
        if given.get(name) is not None:
            resource[name] = given[name]
    if given.get("truncation") is not None:
        if given["truncation"] == "disabled":
            sentence = "The oldest of a session is always forgotten here: truncation cannot be disabled."
            raise ProtocolError("unsupported_parameter", sentence, f"{where}truncation")
        resource["truncation"] = given["truncation"]
    check_length(given, where)
    hears, speaks = before.hears, before.speaks
    if given.get("audio") is not None:
        audio = obj(given, "audio", where)
        only(audio, {"input", "output"}, f"{where}audio.")
        hears = _input(audio, hears, resource["audio"]["input"])
        speaks = _output(audio, speaks, resource["audio"]["output"])
        for side, old, new in (("input", before.hears, hears), ("output", before.speaks, speaks)):
            if begun and old != new:
                param = f"session.audio.{side}.format"
                raise ProtocolError("immutable_parameter", f"{param} cannot change once audio or items came.", param)
    for name in ("tools", "tool_choice"):
        if given.get(name) is not None:
            resource[name] = given[name]
    function = read_function(resource, where)
    return RealtimeConfig(resource, hears, speaks, function)


def check_length(given: dict[str, Any], where: str) -> None:
    """The model ends when it likes.

    Raises:
      ProtocolError: it should end sooner.
    """
    if given.get("max_output_tokens") not in (None, "inf"):
        sentence = "The model says as much as it likes: max_output_tokens can only be inf."
        raise ProtocolError("unsupported_parameter", sentence, f"{where}max_output_tokens")


def _modalities(given: dict[str, Any], where: str) -> list[str]:
    wanted = given["output_modalities"]
    if wanted not in (["audio"], ["text"]):
        raise ProtocolError(
            "invalid_value", f'{where}output_modalities must be ["audio"] or ["text"].', f"{where}output_modalities"
        )
    return wanted


def _format(given: dict[str, Any], where: str, before: AudioFormat) -> AudioFormat:
    if given.get("format") is None:
        return before
    form = protocol.audio_format(obj(given, "format", where), f"{where}format.")
    if form.type == "audio/pcm" and form.rate != 24_000:
        raise ProtocolError("invalid_value", "audio/pcm has 24000 Hz in this protocol.", f"{where}format.rate")
    return form


def _input(audio: dict[str, Any], before: AudioFormat, resource: dict[str, Any]) -> AudioFormat:
    if audio.get("input") is None:
        return before
    given, where = obj(audio, "input", "session.audio."), "session.audio.input."
    only(given, {"format", "noise_reduction", "transcription", "turn_detection"}, where)
    form = _format(given, where, before)
    resource["format"] = protocol.describe(form)
    for name in ("noise_reduction", "transcription"):
        if name in given:
            resource[name] = None if given[name] is None else obj(given, name, where)
    if "turn_detection" in given:
        resource["turn_detection"] = _turn_detection(given, where)
    return form


def _turn_detection(given: dict[str, Any], where: str) -> dict[str, Any] | None:
    if given["turn_detection"] is None:
        return None
    wanted, where = obj(given, "turn_detection", where), f"{where}turn_detection."
    kind = choice({"type": "server_vad"} | wanted, "type", where, ("server_vad", "semantic_vad"))
    full = _SERVER_VAD if kind == "server_vad" else _SEMANTIC_VAD
    only(wanted, full, where)
    if wanted.get("idle_timeout_ms") is not None:
        sentence = "The model speaks when it likes, not after a time: leave idle_timeout_ms out."
        raise ProtocolError("unsupported_parameter", sentence, f"{where}idle_timeout_ms")
    full = full | {name: value for name, value in wanted.items() if value is not None}
    for name in ("create_response", "interrupt_response"):
        choice(full, name, where, (True, False))
    if kind == "server_vad":
        number(full, "threshold", where, 0.0, 1.0)
        number(full, "prefix_padding_ms", where, 0, 10_000)
        number(full, "silence_duration_ms", where, 0, 10_000)
    else:
        choice(full, "eagerness", where, ("low", "medium", "high", "auto"))
    return full


def _output(audio: dict[str, Any], before: AudioFormat, resource: dict[str, Any]) -> AudioFormat:
    if audio.get("output") is None:
        return before
    given, where = obj(audio, "output", "session.audio."), "session.audio.output."
    only(given, {"format", "voice", "speed"}, where)
    form = _format(given, where, before)
    resource["format"] = protocol.describe(form)
    resource["voice"] = protocol.voice(given, where) or resource["voice"]
    if given.get("speed") not in (None, 1, 1.0):
        raise ProtocolError("unsupported_parameter", "The voice has one speed: 1.", f"{where}speed")
    return form


def read_function(resource: dict[str, Any], where: str) -> Function | None:
    """What the model's questions go to: the function chosen, or the only one, or the only one that takes a `question`.

    Raises:
      ProtocolError: the tools are none, or it cannot be told which of them is meant, or what it should be called with.
    """
    tools, chosen = resource["tools"], resource["tool_choice"]
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ProtocolError("invalid_type", f"{where}tools must be a list of functions.", f"{where}tools")
    functions: dict[str, str | None] = {}
    unfit: dict[str, str] = {}
    for at, tool in enumerate(tools):
        here = f"{where}tools[{at}]."
        if tool.get("type") != "function":
            sentence = f"Tools of type {str(tool.get('type'))[:100]!r} are not had here: functions are."
            raise ProtocolError("unsupported_parameter", sentence, f"{here}type")
        called = string(tool, "name", here)
        parameters = obj(tool, "parameters", here) if tool.get("parameters") is not None else {}
        try:
            functions[called] = _argument(parameters)
        except ValueError as error:
            unfit[called] = str(error)
    name: str | None = None
    if isinstance(chosen, dict):
        name = string(chosen, "name", f"{where}tool_choice.")
        if name not in functions and name not in unfit:
            raise ProtocolError("invalid_value", f"There is no function {name[:100]!r}.", f"{where}tool_choice")
    elif chosen not in ("auto", "none", "required"):
        sentence = "tool_choice must be auto, none, required or a function."
        raise ProtocolError("invalid_value", sentence, f"{where}tool_choice")
    if chosen == "none" or not tools:
        return None
    if name is None:
        asked = [name for name, argument in functions.items() if argument == "question"]
        candidates = asked if len(tools) > 1 else [*functions, *unfit]
        if len(candidates) != 1:
            sentence = (
                "This model hands over a question, but does not choose among functions: give one function, "
                "or one with an argument `question`, or name one as tool_choice."
            )
            raise ProtocolError("unsupported_parameter", sentence, f"{where}tools")
        name = candidates[0]
    if name in unfit:
        raise ProtocolError("unsupported_parameter", f"Function {name[:100]} {unfit[name]}.", f"{where}tools")
    return Function(name, functions[name])


def _argument(parameters: dict[str, Any]) -> str | None:
    """The one that takes a question. Raises ValueError where there must be more, or others."""
    properties, required = parameters.get("properties") or {}, parameters.get("required") or []
    if not (isinstance(properties, dict) and isinstance(required, list) and all(isinstance(n, str) for n in required)):
        raise ValueError("has parameters that are no JSON schema of an object")
    strings = [name for name, schema in properties.items() if isinstance(schema, dict) and _is_string(schema)]
    needed = [name for name in strings if name in required]
    for name in ("question", *needed, *strings):
        if name in strings:
            if set(required) - {name}:
                break
            return name
    if required:
        raise ValueError("needs more than one question, but this model hands over nothing else")
    return None


def _is_string(schema: dict[str, Any]) -> bool:
    kind = schema.get("type")
    return kind == "string" or (isinstance(kind, list) and "string" in kind)


def read_response(event: dict[str, Any], config: RealtimeConfig, reading: Reading) -> dict[str, Any]:
    """What a `response.create` asks for, checked: its `metadata` and `instructions` can be had, and not much more.

    Raises:
      ProtocolError: it asks for something else than this session's next response.
    """
    if event.get("response") is None:
        return {}
    given, where = obj(event, "response", ""), "response."
    known = {"instructions", "metadata", "conversation", "output_modalities", "tools", "tool_choice", "input", "audio"}
    only(given, known | {"max_output_tokens", "parallel_tool_calls", "reasoning", "prompt"}, where)
    for name in ("input", "prompt"):
        if given.get(name) is not None:
            sentence = "There is one conversation here, whose responses are of all that was said: leave it out."
            raise ProtocolError("unsupported_parameter", f"response.{name}: {sentence}", where + name)
    if given.get("conversation", "auto") not in ("auto", None):
        sentence = "This server has no responses out of band: response.conversation can only be auto."
        raise ProtocolError("unsupported_parameter", sentence, f"{where}conversation")
    check_length(given, where)
    calls = given.get("tool_choice") != "none"
    for name in ("output_modalities", "tools", "tool_choice"):
        if name == "tool_choice" and given.get(name) in ("auto", "none", "required"):
            continue
        if given.get(name) is not None and given[name] != config.resource[name]:
            sentence = f"{where}{name} differs from the session's: change it by session.update."
            raise ProtocolError("unsupported_parameter", sentence, where + name)
    metadata = given.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        raise ProtocolError("invalid_type", "response.metadata must be an object.", "response.metadata")
    instructions = optional(given, "instructions", where)
    protocol.check_instructions(instructions or "", f"{where}instructions", reading)
    return {"metadata": metadata, "instructions": instructions, "calls": calls}
