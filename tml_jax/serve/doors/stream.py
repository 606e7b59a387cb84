"""Our own protocol over WebSocket, for pages, which cannot speak gRPC: `/v1/stream`.

The conversation is gRPC's, message for message: a binary message is a `ConverseRequest` or a `ConverseResponse` as
protobuf writes it. Where gRPC ends with a status, the last message is a text, ``{"code": "RESOURCE_EXHAUSTED",
"message": ...}``, and then the socket is closed.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from starlette.websockets import WebSocket, WebSocketDisconnect

PATH = "/v1/stream"
PROTOCOL = "tml.interaction.v1"
UNREAD_S = 5.0  # for the last message to be read
_CLOSES = {  # what the socket closes with: nobody should try again at once, or try the same again
    grpc.StatusCode.INVALID_ARGUMENT: 1008,
    grpc.StatusCode.NOT_FOUND: 1008,
    grpc.StatusCode.OUT_OF_RANGE: 1008,
    grpc.StatusCode.FAILED_PRECONDITION: 1008,
    grpc.StatusCode.ABORTED: 1008,
    grpc.StatusCode.DEADLINE_EXCEEDED: 1008,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 1013,
    grpc.StatusCode.UNAVAILABLE: 1012,
}


class _Status(Exception):
    """What a call ends with."""

    def __init__(self, code: grpc.StatusCode, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class _Call:
    """As much of a gRPC call as a conversation uses."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket, self.gone = socket, asyncio.Event()

    async def requests(self) -> AsyncIterator[bytes]:
        """What the client sends; when it has gone nothing more comes, and `gone` is set."""
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                self.gone.set()
                await asyncio.Event().wait()
            yield message.get("bytes") or (message.get("text") or "").encode()

    async def write(self, message: Any) -> None:
        await self._socket.send_bytes(message.SerializeToString())

    async def abort(self, code: grpc.StatusCode, details: str = "") -> None:
        raise _Status(code, details)


async def serve(socket: WebSocket, converse: Callable[[AsyncIterator[bytes], Any], Awaitable[None]]) -> None:
    """Serves an accepted socket to its end; `converse` is the conversation, as gRPC's door has it."""
    call = _Call(socket)
    talk = asyncio.ensure_future(converse(call.requests(), call))
    gone = asyncio.create_task(call.gone.wait())
    try:
        await asyncio.wait((talk, gone), return_when=asyncio.FIRST_COMPLETED)
        if talk.done():
            await talk
            await socket.close(1000)
    except _Status as status:
        with contextlib.suppress(TimeoutError, WebSocketDisconnect, RuntimeError):
            async with asyncio.timeout(UNREAD_S):
                await socket.send_text(json.dumps({"code": status.code.name, "message": str(status)}))
                await socket.close(_CLOSES.get(status.code, 1011), status.code.name)
    except (WebSocketDisconnect, RuntimeError):
        pass  # it went while something was being sent
    finally:
        gone.cancel()
        talk.cancel()
        await asyncio.gather(talk, return_exceptions=True)
        del talk  # or it, its error and this frame would hold each other
