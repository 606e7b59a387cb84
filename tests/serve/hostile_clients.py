"""Clients that keep to no rule: bare frames of WebSockets, bare requests of HTTP, gRPC calls whose wire can be cut."""

import asyncio
import base64
import contextlib
import dataclasses
import json
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc

from tml_jax.wire import protos

KEY = "s3cret"
ANSWER_S = 5.0  # for a server to say something


@dataclasses.dataclass(frozen=True)
class Doors:
    """Where a server listens."""

    grpc_port: int
    web_port: int
    tls: ssl.SSLContext | None = None


@dataclasses.dataclass
class Answer:
    """What became of an act.

    Attributes:
      codes: names of errors, and how it ended: a gRPC status, a WebSocket's close code, an HTTP status.
      sentences: what was said of each error.
    """

    codes: list[str] = dataclasses.field(default_factory=list)
    sentences: list[str] = dataclasses.field(default_factory=list)

    def add(self, code: str, sentence: str | None = None) -> None:
        self.codes.append(code)
        if sentence is not None:
            self.sentences.append(sentence)


def reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection with RST."""
    if (own := writer.get_extra_info("socket")) is not None:
        with contextlib.suppress(OSError):
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


# WebSockets.


def frame(payload: bytes, opcode: int = 1, *, fin: bool = True, masked: bool = True, reserved: int = 0) -> bytes:
    """A frame of RFC 6455, also one that it forbids."""
    head = bytes([fin << 7 | reserved << 4 | opcode])
    size = len(payload)
    if size < 126:
        head += bytes([masked << 7 | size])
    elif size < 1 << 16:
        head += bytes([masked << 7 | 126]) + struct.pack(">H", size)
    else:
        head += bytes([masked << 7 | 127]) + struct.pack(">Q", size)
    return head + (bytes(4) if masked else b"") + payload  # a mask of zeros changes nothing


class Socket:
    """A WebSocket of which every byte can be chosen."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.status = 0
        self.body = b""

    async def write(self, data: bytes) -> None:
        """Sends bytes, as far as the server takes them."""
        with contextlib.suppress(OSError, TimeoutError):
            self.writer.write(data)
            await asyncio.wait_for(self.writer.drain(), ANSWER_S)

    def pause(self) -> None:
        """Reads nothing more."""
        self.writer.transport.pause_reading()  # type: ignore[attr-defined]

    async def read(self) -> tuple[int, bytes]:
        """One frame: its opcode and payload; 8 and nothing at the end of the connection."""
        try:
            first, second = await self.reader.readexactly(2)
            size = second & 127
            if size > 125:
                size = int.from_bytes(await self.reader.readexactly(2 if size == 126 else 8), "big")
            return first & 15, await self.reader.readexactly(size)
        except (asyncio.IncompleteReadError, OSError):
            return 8, b""

    async def hear(self, answer: Answer, until: Sequence[str] = (), seconds: float = ANSWER_S) -> bool:
        """Notes what is told, until an event of a type or the end; whether that came in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    opcode, payload = await self.read()
                    if opcode == 8:
                        code = int.from_bytes(payload[:2], "big")
                        answer.add(f"close {code}" if code else "cut", None)
                        return True
                    if opcode != 1:
                        continue
                    event = json.loads(payload, parse_constant=_no_number)
                    if error := event if "code" in event and "message" in event else event.get("error"):
                        answer.add(error["code"], error["message"])
                    if event.get("type") in until:
                        return True
        return False


def _no_number(name: str) -> float:
    raise AssertionError(f"The server has sent {name}, which JSON does not have.")


HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode(),
}


@contextlib.asynccontextmanager
async def opened(doors: Doors, path: str, key: str = KEY, **headers: str) -> AsyncIterator[Socket]:
    """A WebSocket at a path; where it was refused its `status` is not 101, and `body` says why."""
    reader, writer = await asyncio.open_connection("127.0.0.1", doors.web_port, limit=1 << 24, ssl=doors.tls)
    sent = {"Host": f"127.0.0.1:{doors.web_port}", "Authorization": f"Bearer {key}"} | HANDSHAKE | headers
    one = Socket(reader, writer)
    try:
        head = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items()), "", ""]
        await one.write("\r\n".join(head).encode())
        one.status, one.body = await _response(reader)
        yield one
    finally:
        writer.transport.abort()


async def _response(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    try:
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), ANSWER_S)
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
        return 0, b""
    status = int(head.split()[1])
    sizes = [line.split(b":")[1] for line in head.lower().splitlines() if line.startswith(b"content-length:")]
    if status == 101:
        return status, b""
    if status == 503:
        assert b"retry-after:" in head.lower(), head
    return status, await reader.readexactly(int(sizes[0])) if sizes else await reader.read(1 << 16)


async def bare(doors: Doors, request: bytes, *, half_close: bool = False) -> tuple[int, bytes]:
    """Sends bytes to the web port and returns the status, 0 if there is none, and the body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", doors.web_port, limit=1 << 24)
    try:
        with contextlib.suppress(OSError):
            writer.write(request)
            await asyncio.wait_for(writer.drain(), ANSWER_S)
            if half_close:
                writer.write_eof()
        return await _response(reader)
    except (TimeoutError, OSError, asyncio.IncompleteReadError):  # the last: of a HEAD
        return 0, b""
    finally:
        writer.transport.abort()


# gRPC.


@contextlib.asynccontextmanager
async def relay(port: int) -> AsyncIterator[tuple[int, asyncio.Event]]:
    """A way to a server, and the event at which both ends of it are reset."""
    cut = asyncio.Event()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far, way = await asyncio.open_connection("127.0.0.1", port)
        pumps = [asyncio.create_task(pump(reader, way)), asyncio.create_task(pump(far, writer))]
        with contextlib.suppress(asyncio.CancelledError):
            await cut.wait()
        for task in pumps:
            task.cancel()
        reset(way)
        reset(writer)

    between = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield between.sockets[0].getsockname()[1], cut
    finally:
        cut.set()
        await asyncio.sleep(0)
        between.close()


def channel_to(port: int, compression: Any = None) -> grpc.aio.Channel:
    """A connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1), ("grpc.enable_retries", 0)]
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options, compression=compression)


async def call(
    channel: grpc.aio.Channel,
    sent: Sequence[bytes],
    answer: Answer,
    *,
    method: str = f"/{protos.SERVICE}/Converse",
    key: str = KEY,
    half_close: bool = True,
    seconds: float = ANSWER_S,
) -> None:
    """A call that says this, and notes how it ended: CANCELLED where that was the client's own doing."""
    one = channel.stream_stream(method)(metadata=(("authorization", f"Bearer {key}"),), timeout=60)

    async def write() -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            for message in sent:
                await one.write(message)
            if half_close:
                await one.done_writing()

    writing = asyncio.create_task(write())
    try:
        async with asyncio.timeout(seconds):
            async for _ in one:
                pass
            answer.add((await one.code()).name)
    except grpc.aio.AioRpcError as error:
        if error.details() == "Internal error from Core":  # the client's own: it wrote to a call that was over
            answer.add("over")
        else:
            answer.add(error.code().name, error.details())
    except TimeoutError:
        one.cancel()
        answer.add("CANCELLED")
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)


def resident_mib() -> float:
    """Memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
