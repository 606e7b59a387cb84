"""Hostile acts, drawn by a seed: conversations that would be good ones, and what is done to them."""

import asyncio
import base64
import collections
import contextlib
import copy
import io
import json
import struct
import sys
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import numpy as np
import PIL.Image

from tests.serve import hostile_clients as clients
from tests.serve.hostile_clients import KEY, Answer, Doors, frame
from tml_jax.wire import protos

Rng = np.random.Generator
Act = Callable[[Doors, Rng], Awaitable[Answer]]
REQUEST = protos.ConverseRequest
CONTAINERS = (b"RIFF", b"OggS", b"fLaC", b"ID3", b"\x1aE\xdf\xa3", b"caff", b".snd", b"FORM")
NUMBERS = (0, 1, 2, 3, 7, 255, 1 << 15, 1 << 31, (1 << 32) - 1, 800, 11_025, 44_100, 192_001)
METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "BREW", "get")


def pick(rng: Rng, among: Any) -> Any:
    """One of a sequence."""
    return among[int(rng.integers(len(among)))]


def junk(rng: Rng, most: int) -> bytes:
    """Random bytes, up to so many."""
    return rng.bytes(int(rng.integers(1, most)))


# Pictures.


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, data: bytes, *extra: bytes) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _good(form: str) -> bytes:
    file = io.BytesIO()
    PIL.Image.linear_gradient("L").convert("RGB").save(file, form)
    return file.getvalue()


_BOMB = zlib.compress(bytes(4096 * (1 + 3 * 4096)), 9)
GOOD = (_good("PNG"), _good("JPEG"))
PICTURES = (
    _png(4096, 4096, _BOMB),  # 50 MB of 49 kB
    _png(60_000, 60_000, _BOMB),
    _png(1, 1 << 24, _BOMB),
    _png(0, 0, b""),
    _png(64, 64, _BOMB),
    _png(8, 8, zlib.compress(bytes(200)), _chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1 << 26), 9))),
    _png(8, 8, zlib.compress(bytes(200)), _chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(1 << 26), 9))),
    b"\xff\xd8\xff\xe0" + bytes(100),
    b"GIF89a" + bytes(100),
    b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    b"",
)


def picture(rng: Rng) -> bytes:
    """A bomb, another kind of file, or a good one with wrong bytes in it."""
    if rng.random() < 0.5:
        return pick(rng, PICTURES)
    data = bytearray(pick(rng, GOOD))
    for _ in range(int(rng.integers(1, 20))):
        data[int(rng.integers(len(data)))] = int(rng.integers(256))
    return bytes(data[: int(rng.integers(1, len(data) + 1))])


# Our own protocol.


def conversation(rng: Rng) -> list[Any]:
    """Messages that a good client would send."""
    told = {"sends_video": True, "wants_audio": True, "resumable": bool(rng.random() < 0.2)}
    config = protos.SessionConfig(sends_audio=True, seed=int(rng.integers(9)), **told)
    sound = [REQUEST(audio=protos.AudioChunk(pcm=rng.bytes(6400))) for _ in range(3)]
    seen = REQUEST(frame=protos.VideoFrame(data=pick(rng, GOOD)))
    typed, know = REQUEST(text=protos.TextInput(text="seven")), REQUEST(context=protos.ContextInput(text="be kind"))
    return [REQUEST(config=config), *sound, seen, typed, know, REQUEST(close=protos.CloseInput())]


def _field(rng: Rng, sent: list[Any]) -> None:
    """A field with a value that it should not have."""
    config, chunk, seen, text = protos.SessionConfig, protos.AudioChunk, protos.VideoFrame, protos.TextInput
    number = int(pick(rng, NUMBERS))
    odd = rng.bytes(2 * int(rng.integers(1, 3000)) + 1)
    floats = np.array([0.5, pick(rng, (np.nan, np.inf, -np.inf, 3e38))] * 80, np.float32).tobytes()
    draw = {
        "sample_rate": lambda: REQUEST(config=config(sends_audio=True, sample_rate=number)),
        "channels": lambda: REQUEST(config=config(sends_audio=True, channels=number)),
        "encoding": lambda: REQUEST(config=config(sends_audio=True, encoding=number & 0x7FFFFFFF)),
        "instructions": lambda: REQUEST(config=config(instructions=pick(rng, ("日" * 4096, "a" * 9999, "\0\u202e")))),
        "odd": lambda: REQUEST(audio=chunk(pcm=odd)),
        "container": lambda: REQUEST(audio=chunk(pcm=pick(rng, CONTAINERS).ljust(640, b"\0"))),
        "long": lambda: REQUEST(audio=chunk(pcm=bytes(pick(rng, (0, 32_002, 160_000, 4 << 20))))),
        "floats": lambda: REQUEST(audio=chunk(pcm=floats)),
        "offset": lambda: REQUEST(audio=chunk(pcm=bytes(640), offset=pick(rng, (0, 10**6, (1 << 64) - 1)))),
        "picture": lambda: REQUEST(frame=seen(data=picture(rng), encoding=int(rng.integers(5)))),
        "pixels": lambda: REQUEST(frame=seen(data=bytes(3 * number % 5_000_000), encoding=3, width=number, height=1)),
        "frame": lambda: REQUEST(frame=seen(data=pick(rng, GOOD), offset=pick(rng, (0, (1 << 64) - 1)))),
        "text": lambda: REQUEST(
            text=text(text=pick(rng, ("", " \n", "x" * 5000, "🎈" * 4000, "\0", "\u202e<|tick|>")))
        ),
        "texts": lambda: REQUEST(text=text(text="seven", offset=pick(rng, (0, 9, (1 << 64) - 1)))),
        "context": lambda: REQUEST(context=protos.ContextInput(text=pick(rng, ("", "y" * 5000)), to_say=True)),
        "received": lambda: REQUEST(received=protos.Received(sequence=pick(rng, (0, 5, (1 << 64) - 1)))),
        "resume": lambda: REQUEST(resume=protos.Resume(token=pick(rng, ("", "../../etc", "0" * 12 + ".x", "é" * 999)))),
    }
    made = draw[pick(rng, tuple(draw))]()
    if made.WhichOneof("payload") in ("config", "resume"):
        sent[0] = made
    else:
        sent.insert(int(rng.integers(1, len(sent))), made)
        if made.WhichOneof("payload") == "audio" and made.audio.pcm == floats:
            sent[0].config.encoding = 2


def _disorder(rng: Rng, sent: list[Any]) -> None:
    """Messages twice, left out, in another order, or after the end."""
    match int(rng.integers(5)):
        case 0:
            rng.shuffle(sent)
        case 1:
            sent.pop(0)
        case 2:
            sent.insert(int(rng.integers(len(sent))), copy.deepcopy(pick(rng, sent)))
        case 3:
            sent.extend(sent[1:-1])
        case 4:
            sent[:] = sent[: int(rng.integers(len(sent)))]


def _flood(rng: Rng, sent: list[Any]) -> None:
    """Very many small ones."""
    one = pick(rng, sent[1:4] + sent[5:7])
    if one.WhichOneof("payload") == "audio":
        one = REQUEST(audio=protos.AudioChunk(pcm=bytes(2)))
    sent[1:1] = [one] * int(rng.integers(50, 400))


def _spoil(rng: Rng, sent: list[Any]) -> None:
    """Bytes that are no message any more."""
    at = int(rng.integers(len(sent)))
    data = bytearray(sent[at].SerializeToString()) or bytearray(b"\0")
    match int(rng.integers(6)):
        case 0:
            data = data[: int(rng.integers(len(data)))]
        case 1:
            data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        case 2:
            data = bytearray(junk(rng, 300))
        case 3:
            data = bytearray(b"\x22\x04\x0a\x02\xc3\x28")  # a text that is no UTF-8
        case 4:
            data = bytearray(b"\x4b" * 4000)  # groups in groups
        case 5:
            data += b"\xfa\x7f\x03abc"  # a field that nobody knows
    sent[at] = bytes(data)


CHANGES = (_field, _field, _field, _disorder, _flood, _spoil)


def messages(rng: Rng) -> list[bytes]:
    """A conversation with one to three things wrong in it."""
    sent: list[Any] = conversation(rng)
    for change in [pick(rng, CHANGES[:-1]) for _ in range(int(rng.integers(0, 3)))] + [pick(rng, CHANGES)]:
        if len(sent) < 8 or not sent[0].HasField("config"):
            break
        change(rng, sent)
    return [one if isinstance(one, bytes) else one.SerializeToString() for one in sent]


async def grpc_conversation(doors: Doors, rng: Rng) -> Answer:
    """A call, left in one of the ways in which one can be left."""
    answer, sent, way = Answer(), messages(rng), rng.random()
    if way < 0.7:
        async with clients.channel_to(doors.grpc_port) as channel:
            await clients.call(channel, sent, answer, half_close=way < 0.6, seconds=pick(rng, (1.0, 2.5)))
    elif way < 0.85:
        async with clients.relay(doors.grpc_port) as (port, cut), clients.channel_to(port) as channel:
            asyncio.get_running_loop().call_later(float(rng.uniform(0.01, 0.4)), cut.set)
            await clients.call(channel, sent, answer, half_close=False)
            if answer.codes[-1] == "UNAVAILABLE":  # of its own end
                answer = Answer(["cut"])
    else:
        async with clients.channel_to(doors.grpc_port) as channel:
            one = channel.stream_stream(f"/{protos.SERVICE}/Converse")(metadata=(("authorization", f"Bearer {KEY}"),))
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
                async with asyncio.timeout(float(rng.uniform(0.05, 0.5))):
                    for message in sent:
                        await one.write(message)  # and reads nothing
            one.cancel()
            answer.add("cut")
    return answer


async def grpc_other(doors: Doors, rng: Rng) -> Answer:
    """Other methods, wrong keys, messages of any size, bombs, and bytes that are no HTTP/2."""
    answer, kind = Answer(), int(rng.integers(6))
    sent = [message.SerializeToString() for message in conversation(rng)]
    if kind == 0:
        reader, writer = await asyncio.open_connection("127.0.0.1", doors.grpc_port)
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" if rng.random() < 0.5 else b""
        writer.write(preface + junk(rng, 5000))
        with contextlib.suppress(TimeoutError, OSError):
            await asyncio.wait_for(reader.read(1 << 16), 0.3)
        clients.reset(writer)
        return Answer(["cut"])
    compression = grpc.Compression.Gzip if kind == 3 else None
    async with clients.channel_to(doors.grpc_port, compression) as channel:
        match kind:
            case 1:
                await clients.call(channel, sent, answer, key=pick(rng, ("", "wrong", "s3cre", "x" * 3000)))
            case 2:
                await clients.call(channel, [sent[0], bytes((8 << 20) + 1)], answer)
            case 3:
                bomb = REQUEST(text=protos.TextInput(text="a" * (12 << 20))).SerializeToString()
                await clients.call(channel, [sent[0], bomb], answer)
            case 4:
                name = pick(rng, ("Converse2", "", "../Converse", "GetServerInfo/x"))
                await clients.call(channel, sent, answer, method=f"/{protos.SERVICE}/{name}")
            case 5:
                known = (
                    f"{protos.SERVICE}/GetServerInfo",
                    "grpc.health.v1.Health/Check",
                    "grpc.health.v1.Health/Watch",
                )
                known += ("grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",)
                data = pick(rng, (b"\xff\xff\xff", b"\x0a\x02\xc3\x28", b"\x0a\x7fabc"))
                await clients.call(channel, [data], answer, method="/" + pick(rng, known), seconds=1.0)
    return answer


async def own_websocket(doors: Doors, rng: Rng) -> Answer:
    """Our protocol over a WebSocket."""
    answer = Answer()
    async with clients.opened(doors, "/v1/stream") as one:
        for message in messages(rng):
            await one.write(frame(message, pick(rng, (2, 2, 2, 2, 2, 2, 2, 1))))
            if rng.random() < 0.01:
                break
        await _leave(one, rng, answer)
    return answer


async def _leave(one: clients.Socket, rng: Rng, answer: Answer) -> None:
    match int(rng.integers(7)):
        case 0:
            clients.reset(one.writer)
            answer.add("cut")
        case 3:  # asks for answers, and reads none
            one.pause()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(0.5):
                    while True:
                        one.writer.write(frame(bytes(125), 9) * 500)
                        await one.writer.drain()
            answer.add("cut")
        case 1:
            one.writer.write_eof()
            await one.hear(answer, seconds=1.0)
        case 2:
            await one.write(frame(struct.pack(">H", pick(rng, (1000, 999, 1005, 5000, 65_535))) + b"\xff", 8))
            await one.hear(answer, seconds=1.0)
        case _:
            await one.hear(answer, seconds=float(pick(rng, (0.5, 1.5))))
    if not answer.codes:
        answer.add("accepted")


# OpenAI's protocols.


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
    hears = {
        "format": {"type": "audio/pcm", "rate": 24_000},
        "turn_detection": {"type": "server_vad", "threshold": 0.5},
    }
    session = {"type": "realtime", "instructions": "be kind", "tools": tools, "tool_choice": "auto"}
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


async def live_door(doors: Doors, rng: Rng) -> Answer:
    """GPT-Live, and now and then somebody who watches."""
    return await _openai(doors, rng, "/v1/live/sessions", live(rng))


async def realtime_door(doors: Doors, rng: Rng) -> Answer:
    """Realtime."""
    query = pick(rng, ("?model=m", "", "?model=" + "x" * 5000, "?model=%00%ff", "?intent=transcription", "?call_id=1"))
    return await _openai(doors, rng, "/v1/realtime" + query, realtime(rng))


async def _openai(doors: Doors, rng: Rng, path: str, events: list[dict[str, Any]]) -> Answer:
    answer = Answer()
    async with clients.opened(doors, path) as one:
        if one.status != 101:
            error = json.loads(one.body)["error"]
            return Answer([f"{one.status} {error['code']}"], [error["message"]])
        for data in texts(rng, events):
            await one.write(data)
        await _leave(one, rng, answer)
    return answer


# HTTP.


async def http(doors: Doors, rng: Rng) -> Answer:
    """Requests that are none, paths that lead out, names and origins of others, handshakes that are wrong."""
    paths = ("/", "/page/app.js", "/page/../web.py", "/page/%2e%2e/%2e%2e/web.py", "/page/%00", "/page/" + "a" * 5000)
    paths += ("/metrics", "/v1/info", "/v1/tokens", "/v1/protocol", "/healthz", "/v1/live/sessions/x/attach", "//", "*")
    paths += ("/v1/stream", "/v1/realtime", "/v1/live/sessions", "/%ff%fe", "/?" + "a=b&" * 3000, "http://[::1")
    here = f"127.0.0.1:{doors.web_port}"
    hosts = (here, here, here, "evil.example", "", "[::1", "[", "127.0.0.1:99999999", "a@b", "\xff\xfe", "x" * 9000)
    headers = {"Host": pick(rng, hosts), "Authorization": f"Bearer {KEY}"}
    more = (
        {"Origin": pick(rng, ("http://evil.example", "null", "http://[", "http://[::1", "\xff", f"http://{here}"))},
        {
            "Authorization": pick(
                rng, ("Bearer", "Bearer ", "Basic x", "Bearer wrong", "\xff\xfe", "Bearer " + "k" * 9000)
            )
        },
        {
            "Sec-WebSocket-Protocol": pick(
                rng, ("token.made-up", "openai-insecure-api-key.wrong", "realtime, ,", "\xff")
            )
        },
        {"Content-Length": pick(rng, ("-1", "99999999999", "x", "5, 6")), "Expect": "100-continue"},
        {"Transfer-Encoding": "chunked", "Content-Length": "3"},
        {"X": "y" * int(pick(rng, (100, 70_000)))},
        {f"X{k}": "y" for k in range(500)},
        {"Range": "bytes=" + ",".join(["0-"] * 200), "If-Modified-Since": "never", "If-None-Match": "*"},
        clients.HANDSHAKE,
        clients.HANDSHAKE | {"Sec-WebSocket-Version": pick(rng, ("12", "x", ""))},
        clients.HANDSHAKE | {"Sec-WebSocket-Key": pick(rng, ("", "short", "é"))},
        clients.HANDSHAKE | {"Sec-WebSocket-Protocol": f"token.{'x' * 200}", "Authorization": ""},
        {"Upgrade": "h2c", "Connection": "Upgrade, HTTP2-Settings", "HTTP2-Settings": "x"},
    )
    for one in rng.choice(len(more), int(rng.integers(0, 3)), replace=False):
        headers |= more[int(one)]
    line = f"{pick(rng, METHODS)} {pick(rng, paths)} HTTP/{pick(rng, ('1.1', '1.1', '1.1', '1.0', '2.0', '9'))}"
    if rng.random() < 0.1:
        line = pick(
            rng, ("", "GET", "\0" * 100, "PRI * HTTP/2.0", "\x16\x03\x01\x02\x00\x01\x00", "GET / HTTP/1.1\r\nX")
        )
    head = "\r\n".join([line, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode("latin-1")
    body = pick(rng, (b"", b"", b"{}", bytes(200_000), b"5\r\nhello\r\n0\r\n\r\n", b"zz\r\n", head))
    status, text = await clients.bare(doors, head + body, half_close=rng.random() < 0.5)
    if not status:
        return Answer(["no answer"])
    code, sentence = f"HTTP {status}", None
    if text.startswith(b'{"error"'):
        error = json.loads(text)["error"]
        code, sentence = f"{status} {error['code']}", error["message"]
    return Answer([code], [] if sentence is None else [sentence])


DOORS: dict[str, tuple[Act, int]] = {
    "grpc": (grpc_conversation, 5),
    "grpc, other": (grpc_other, 1),
    "stream": (own_websocket, 4),
    "live": (live_door, 4),
    "realtime": (realtime_door, 4),
    "http": (http, 4),
}
"""The doors, what is done to them, and how often beside the others."""


def draw(rng: Rng) -> tuple[str, Act]:
    """A door, and an act at it."""
    name = pick(rng, [name for name, (_, often) in DOORS.items() for _ in range(often)])
    return name, DOORS[name][0]


AT_ONCE = 10
# How nothing may end: by a fault of the server's own.
FAULTS = {"INTERNAL", "UNKNOWN", "DATA_LOSS", "internal_error", "close 1011", "HTTP 500", "no words", "stuck"}


class Thrower:
    """Throws acts at a server, some at once, and counts what became of them."""

    def __init__(self, doors: Doors, seed: int) -> None:
        self._doors, self._seed, self._next = doors, seed, 0
        self.answers: collections.Counter[str] = collections.Counter()
        self.faults: list[str] = []

    async def throw(self, first: int, last: int) -> None:
        """Does the acts of these numbers."""
        self._next = first

        async def on() -> None:
            while self._next < last:
                number, self._next = self._next, self._next + 1
                await self._one(number)

        await asyncio.gather(*(on() for _ in range(AT_ONCE)))

    async def _one(self, number: int) -> None:
        rng = np.random.default_rng((self._seed, number))
        name, act = draw(rng)
        try:
            async with asyncio.timeout(60):
                answer = await act(self._doors, rng)
        except Exception as error:
            answer = Answer(["stuck"], [f"{type(error).__name__}: {error}"])
        for sentence in answer.sentences:
            if not sentence or "\n" in sentence or len(sentence) > 1000:
                answer.codes.append("no words")
        for code in answer.codes:
            self.answers[f"{name}: {code}"] += 1
        if FAULTS.intersection(answer.codes) or not answer.codes:
            self.faults.append(f"{number} {name}: {answer.codes[-5:]} {[s[:200] for s in answer.sentences[-3:]]}")


def main() -> None:
    """Acts from the first to before the last, at two ports; what became of them is the last line, as JSON."""
    grpc_port, web_port, seed, first, last = map(int, sys.argv[1:])
    thrower = Thrower(Doors(grpc_port, web_port), seed)
    asyncio.run(thrower.throw(first, last))
    print(json.dumps({"answers": thrower.answers, "faults": thrower.faults}))


if __name__ == "__main__":
    main()
