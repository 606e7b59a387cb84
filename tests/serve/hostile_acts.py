"""Hostile acts at every door, drawn by a seed; as a program it does some of them and tells what became of each."""

import asyncio
import collections
import contextlib
import json
import struct
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import numpy as np

from tests.serve import hostile_clients as clients
from tests.serve.hostile_clients import KEY, Answer, Doors, frame
from tests.serve.hostile_events import live, realtime, texts
from tests.serve.hostile_messages import REQUEST, Rng, conversation, junk, messages, pick
from tml_jax.wire import protos

Act = Callable[[Doors, Rng], Awaitable[Answer]]
METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "BREW", "get")
AT_ONCE = 10
# How nothing may end: by a fault of the server's own.
FAULTS = {"INTERNAL", "UNKNOWN", "DATA_LOSS", "internal_error", "close 1011", "HTTP 500", "no words", "stuck"}


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
                known: tuple[str, ...] = (
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
            with contextlib.suppress(OSError):  # the server may have closed it
                one.writer.write_eof()
            await one.hear(answer, seconds=1.0)
        case 2:
            await one.write(frame(struct.pack(">H", pick(rng, (1000, 999, 1005, 5000, 65_535))) + b"\xff", 8))
            await one.hear(answer, seconds=1.0)
        case _:
            await one.hear(answer, seconds=float(pick(rng, (0.5, 1.5))))
    if not answer.codes:
        answer.add("accepted")


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
    paths: tuple[str, ...] = (
        "/",
        "/page/app.js",
        "/page/../web.py",
        "/page/%2e%2e/%2e%2e/web.py",
        "/page/%00",
        "/page/" + "a" * 5000,
    )
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
