"""What OpenAI's protocols have in common: events in JSON, fields checked one by one, errors that name the field."""

import base64
import bisect
import dataclasses
import json
import math
from collections.abc import Collection, Mapping
from typing import Any

from tml_jax.serve import intake
from tml_jax.serve.doors.audio import AudioFormat
from tml_jax.serve.reading import Reading

VOICES = frozenset(
    ["alloy", "ash", "ballad", "beacon", "bossa", "cedar", "cinder", "coral", "delta", "echo", "gleam", "marin"]
).union(["meridian", "quartz", "ripple", "sage", "shida", "shimmer", "stone", "tempo", "verse", "vesper", "willow"])


MAX_DEPTH = 32  # of objects and lists in each other; what is echoed and merged is walked by recursion


class ProtocolError(ValueError):
    """What a client sent cannot be taken: the protocol's `error`, in one sentence.

    Attributes:
      code: for programs. param: the field. event_id: of the client's event. fatal: the connection ends with it.
    """

    def __init__(self, code: str, message: str, param: str | None = None, event_id: str | None = None) -> None:
        super().__init__(message)
        self.code, self.param, self.event_id, self.fatal = code, param, event_id, False


def to_base64(data: bytes) -> str:
    """Bytes as JSON has them."""
    return base64.b64encode(data).decode()


def read_event(text: str, events: Mapping[str, Collection[str]]) -> dict[str, Any]:
    """One event of a client, its type known to be a string, its fields known to be the type's.

    Args:
      text: as it came.
      events: the types, and their fields beside type and event_id.

    Raises:
      ProtocolError: it is no JSON object, is nested too deep, has no type, or a field that its type does not have.
    """
    try:
        event = json.loads(text, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError):
        raise ProtocolError("invalid_json", "The message is not valid JSON.") from None
    _check_depth(event)
    if not isinstance(event, dict):
        raise ProtocolError("invalid_event", "An event must be a JSON object.")
    event_id = event.get("event_id")
    if event_id is not None and (not isinstance(event_id, str) or len(event_id) > 512):
        raise ProtocolError("invalid_type", "event_id must be a string of at most 512 characters.", "event_id")
    try:
        kind = string(event, "type", "")
        if kind in events:
            only(event, {*events[kind], "type", "event_id"}, "")
    except ProtocolError as error:
        error.event_id = event_id
        raise
    return event


def _finite(text: str) -> float:
    """A number of JSON; ValueError for NaN and the infinities, which JSON does not have, and what would become one."""
    if not math.isfinite(value := float(text)):
        raise ValueError
    return value


def _check_depth(value: object) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = [one for values in inner for one in values if isinstance(one, dict | list)]
        if not level:
            return
    raise ProtocolError("invalid_json", f"The message is nested too deep: send at most {MAX_DEPTH} levels.")


def string(fields: dict[str, Any], name: str, where: str) -> str:
    """The field `name` of what is at `where`, which must be text."""
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


def optional(fields: dict[str, Any], name: str, where: str) -> str | None:
    """The field `name`, text or nothing."""
    return None if fields.get(name) is None else string(fields, name, where)


def number(fields: dict[str, Any], name: str, where: str, low: float, high: float) -> Any:
    """The field `name`, a number from `low` to `high`; a whole one where these are."""
    value: Any = fields.get(name)
    kinds = (int,) if isinstance(low, int) else (int, float)
    if type(value) not in kinds or not low <= value <= high:
        kind = "a whole number" if isinstance(low, int) else "a number"
        raise ProtocolError("invalid_value", f"{where}{name} must be {kind} from {low} to {high}.", where + name)
    return value


def choice(fields: dict[str, Any], name: str, where: str, known: Collection[object]) -> Any:
    """The field `name`, one of what is known."""
    value = fields.get(name)
    if not isinstance(value, str | bool | None) or value not in known:
        sentence = f"{where}{name} must be {' or '.join(sorted(json.dumps(one) for one in known))}."
        raise ProtocolError("invalid_value", sentence, where + name)
    return value


def obj(fields: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    """The field `name`, which must be an object."""
    value = fields.get(name)
    if not isinstance(value, dict):
        raise ProtocolError("invalid_type", f"{where}{name} must be an object.", where + name)
    return value


def only(fields: dict[str, Any], known: Collection[str], where: str) -> None:
    """No other fields than these."""
    for name in fields:
        if name not in known:
            raise ProtocolError("unknown_parameter", f"Unknown parameter: {where + name[:100]!r}.", where + name[:100])


def audio_format(given: dict[str, Any], where: str) -> AudioFormat:
    """A format of sound, its rate the type's own where none is given.

    Raises:
      ProtocolError, BadInputError: it is none that can be had.
    """
    only(given, {"type", "rate"}, where)
    kind = string(given, "type", where)
    rate = given.get("rate")
    if rate is None:
        rate = 24_000 if kind == "audio/pcm" else 8000
    if type(rate) is not int:
        raise ProtocolError("invalid_type", f"{where}rate must be an integer.", f"{where}rate")
    return AudioFormat(kind, rate)


def voice(given: dict[str, Any], where: str) -> str | None:
    """The voice, if one is named."""
    if isinstance(given.get("voice"), dict):
        sentence = "This server has no custom voices: name a built-in one."
        raise ProtocolError("unsupported_parameter", sentence, f"{where}voice")
    name = optional(given, "voice", where)
    if name is not None and name not in VOICES:
        sentence = f"There is no voice {name[:100]!r}: there are {', '.join(sorted(VOICES))}."
        raise ProtocolError("invalid_value", sentence, f"{where}voice")
    return name


def check_instructions(text: str, where: str, reading: Reading) -> None:
    """Raises ProtocolError where instructions are longer than may be read at once."""
    try:
        reading.check_instructions(text)
    except intake.BadInputError as error:
        raise ProtocolError("string_above_max_length", str(error), where) from None


def with_history(instructions: str, lines: list[str], reading: Reading) -> tuple[str, int]:
    """Instructions and the newest lines of what was said before, as many as fit; and how many were left out."""

    def without(count: int) -> str:
        return "\n".join([instructions, *lines[count:]]).strip("\n")

    left_out = bisect.bisect_left(range(len(lines)), True, key=lambda count: reading.fits(without(count)))
    return without(left_out), left_out


def describe(form: AudioFormat) -> dict[str, Any]:
    """A format, as the client is shown it."""
    return dataclasses.asdict(form)
