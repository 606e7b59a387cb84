"""What hostile clients send of OpenAI's protocols: events that would be good ones, with something wrong in them."""

import base64
import copy
import json
from typing import Any

from tests.serve.hostile_clients import frame
from tests.serve.hostile_messages import CONTAINERS, Rng, junk, pick, picture


def _sound(rng: Rng) -> str:
    data = rng.bytes(9600)
    match int(rng.integers(8)):
        case 0:
            data = pick(rng, CONTAINERS) + data
        case 1:
            data = data[:1323]
        case 2:
            data = b""
        case 3:
            return pick(rng, ("====", "é", "AAA", "A A A A", "\ud800", "data:audio/wav;base64,AAAA", "%00"))
        case 4:
            data = bytes(1_400_000)
    return base64.b64encode(data).decode()


def _url(rng: Rng) -> str:
    data = picture(rng)
    head = pick(rng, ("data:image/png;base64,", "data:image/jpeg;base64,", "data:image/gif;base64,", "https://a/b.png"))
    return head + base64.b64encode(data[: 1 << 20]).decode()


def live(rng: Rng) -> list[dict[str, Any]]:
    """Events of a good client of GPT-Live, its sound and pictures excepted."""
    session: dict[str, Any] = {"model": "m", "instructions": "be kind", "extensions": ["tml.input_image.append"]}
    session["audio"] = {"format": {"type": "audio/pcm", "rate": 24_000}, "output": {"voice": "marin"}}
    session["input"] = [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}]
    kind = pick(rng, ("client", "responses"))
    session["delegation"] = {"type": kind} | ({"responses": {"model": "x"}} if kind == "responses" else {})
    append = {"content": "seven", "delegation_id": None}
    return [
        {"type": "session.start", "event_id": "a", "session": session},
        {"type": "session.input_audio.append", "audio": _sound(rng)},
        {"type": "session.commentary.append", **append},
        {"type": "session.thinking.append", **append},
        {"type": "session.update", "session": {"delegation": copy.deepcopy(session["delegation"])}},
        {"type": "tml.input_image.append", "image_url": _url(rng)},
        {"type": "session.input_audio.mute"},
        {"type": "response.item.create", "item": {}},
    ]


def realtime(rng: Rng) -> list[dict[str, Any]]:
    """Events of a good client of Realtime, its sound and pictures excepted."""
    schema = {"type": "object", "properties": {"question": {"type": "string"}}, "required": ["question"]}
    tools = [{"type": "function", "name": "ask", "parameters": schema}]
    hears: dict[str, Any] = {
        "format": {"type": "audio/pcm", "rate": 24_000},
        "turn_detection": {"type": "server_vad", "threshold": 0.5},
    }
    session: dict[str, Any] = {"type": "realtime", "instructions": "be kind", "tools": tools, "tool_choice": "auto"}
    session |= {"audio": {"input": hears, "output": {"voice": "marin"}}, "output_modalities": ["audio"]}
    session |= {"reasoning": {"effort": "low"}, "truncation": "auto", "max_output_tokens": "inf"}
    text = [{"type": "input_text", "text": "seven"}]
    seen = [{"type": "input_image", "image_url": _url(rng)}, {"type": "input_audio", "audio": _sound(rng)}]
    create = "conversation.item.create"
    return [
        {"type": "session.update", "event_id": "a", "session": session},
        {"type": "input_audio_buffer.append", "audio": _sound(rng)},
        {"type": create, "item": {"type": "message", "id": "mine", "role": "user", "content": text}},
        {"type": create, "item": {"type": "message", "role": "user", "content": seen}, "previous_item_id": "mine"},
        {"type": create, "item": {"type": "function_call_output", "call_id": "c", "output": "x"}},
        {"type": "response.create", "response": {"metadata": {"a": "b"}, "instructions": "say seven"}},
        {"type": "input_audio_buffer.commit"},
        {"type": "conversation.item.truncate", "item_id": "mine", "content_index": 0, "audio_end_ms": 10},
        {"type": "conversation.item.retrieve", "item_id": "mine"},
        {"type": "response.cancel"},
        {"type": "conversation.item.delete", "item_id": "mine"},
    ]


def _deep(rng: Rng) -> Any:
    value: Any = 1
    for _ in range(int(pick(rng, (50, 200, 400, 900)))):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


def _leaves(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        found.append((value, key))
        _leaves(value[key], found)
    return found


def _distort(rng: Rng, event: dict[str, Any]) -> None:
    """One value, anywhere, is another, or gone, or has a neighbour."""
    if not (found := _leaves(event, [])):
        return
    holder, key = pick(rng, found)
    values: tuple[Any, ...] = (None, True, -1, 0.5, 1 << 70, float("nan"), float("inf"), 10**300, "", "x", "\ud800")
    values += ("x" * 5000, "x" * 1_500_000, [], {}, [[1]], [None], ["x"] * 300, {"type": "x"}, {"": {}}, _deep)
    match int(rng.integers(6)):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[pick(rng, ("colour", "", "\ud800", "responses", "required", "type", "id"))] = pick(rng, values[:-1])
        case _:
            value = pick(rng, values)
            holder[key] = _deep(rng) if value is _deep else value


def texts(rng: Rng, events: list[dict[str, Any]]) -> list[bytes]:
    """Frames of a conversation with a few things wrong in it."""
    for _ in range(int(rng.integers(1, 4))):
        _distort(rng, pick(rng, events))
    if rng.random() < 0.2:
        rng.shuffle(events)  # type: ignore[arg-type]
    if rng.random() < 0.1:
        events[1:1] = [pick(rng, events[1:])] * int(rng.integers(20, 200))
    sent = [frame(json.dumps(event).encode()) for event in events]
    if rng.random() < 0.6:
        sent.insert(int(rng.integers(len(sent) + 1)), _bad_frame(rng, json.dumps(pick(rng, events)).encode()))
    return sent


def _bad_frame(rng: Rng, good: bytes) -> bytes:
    return pick(
        rng,
        (
            lambda: frame(good[: int(rng.integers(len(good)))]),
            lambda: frame(junk(rng, 200)),
            lambda: frame(b'{"type": "\xc3\x28"}'),
            lambda: frame(b"\xef\xbb\xbf" + good),
            lambda: frame(b"[" * 100_000),
            lambda: frame(b'{"type": ' * 5000),
            lambda: frame(b'{"type": "session.close", "event_id": 1e999}'),
            lambda: frame(b'{"type": ' + b"9" * 5000 + b"}"),
            lambda: frame(b"null"),
            lambda: frame(good, 2),
            lambda: frame(b'{"type": "x", "y": "' + b"a" * (2 << 20) + b'"}'),
            lambda: frame(bytes((4 << 20) + 1)),
            lambda: frame(good, masked=False),
            lambda: frame(good, reserved=int(rng.integers(1, 8))),
            lambda: frame(good, int(rng.integers(3, 16))),
            lambda: frame(good, 0),
            lambda: frame(good[:5], fin=False) + frame(good[:5]),
            lambda: frame(b"", fin=False) + frame(b"", 0, fin=False) * 3000 + frame(good, 0),
            lambda: frame(bytes(126), 9),
            lambda: frame(b"hi", 9) * 3000,
            lambda: frame(b"hi", 10) * 3000,
            lambda: b"\x81\xff\xff\xff\xff\xff\xff\xff\xff\xff" + bytes(40),
            lambda: junk(rng, 1000),
        ),
    )()
