"""The web door: what clients reach over HTTP and WebSockets, one Starlette app on uvicorn in the server's event loop.

Starlette and uvicorn, because both are small, kept well, and leave WebSockets to the `websockets` library.
"""

import asyncio
import contextlib
import functools
import pathlib
import socket
import ssl
import urllib.parse
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import h11
import uvicorn
from google.protobuf import json_format
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from tml_jax.serve import watch
from tml_jax.serve.doors import live, realtime, stream
from tml_jax.serve.doors.access import TOKEN_S, Access, AccessError, QuotaError
from tml_jax.serve.doors.address import Safety, check_address, is_loopback
from tml_jax.serve.doors.conversation import FAILURES
from tml_jax.serve.doors.grpc import GrpcDoor
from tml_jax.serve.sessions import Sessions
from tml_jax.wire import protos

PAGE = pathlib.Path(__file__).parent.parent / "page"
# The page takes nothing from elsewhere, and no other page may hold it in a frame.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
MAX_MESSAGE_BYTES = 4 << 20  # a longer one closes the socket with 1009
MAX_CONNECTIONS = 256  # more are told 503
# What a browser can send with a WebSocket: subprotocols. These bring a key, or a token.
_KEY, _TOKEN = "openai-insecure-api-key.", "token."
_SUBPROTOCOLS = (stream.PROTOCOL, "realtime")
REQUEST_S = 15.0  # for a request to come whole, as far as its body
MAX_PINGS = 50  # a second
READ_BYTES = 1 << 14  # that are read of a connection before it is another one's turn
GONE_S = 10.0  # how long a client may take to read what it was sent last


class _InTurns(asyncio.BufferedProtocol):
    """Reads `READ_BYTES` at a time, encrypted or not, whatever waits: asyncio by itself reads 16 times as much."""

    _read: bytearray

    def get_buffer(self, sizehint: int) -> bytearray:
        self._read = bytearray(READ_BYTES)
        return self._read

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(memoryview(self._read)[:nbytes]))

    def data_received(self, data: bytes) -> None:
        raise NotImplementedError


class _Protocol(WebSocketsSansIOProtocol, _InTurns):
    """A connection whose client does not read does not stay for ever, and one that was refused is no error."""

    async def send(self, message: Any) -> None:
        if self.close_sent:
            raise ClientDisconnected
        await super().send(message)
        self.handshake_complete |= self.close_sent  # or uvicorn logs an error for each that was refused

    async def run_asgi(self) -> None:
        await super().run_asgi()
        self.loop.call_later(GONE_S, self.transport.abort)

    _pings, _second = 0, 0

    def handle_ping(self) -> None:
        second = int(self.loop.time())
        self._pings, self._second = (self._pings if second == self._second else 0) + 1, second
        if self.close_sent:
            self.conn.data_to_send()
        elif self._pings > MAX_PINGS:  # a flood of them would keep everybody waiting
            self.conn.data_to_send()
            self.conn.send_close(1008, f"Send at most {MAX_PINGS} pings a second.")
            self.handle_parser_exception()
        elif self.writable.is_set():
            super().handle_ping()
        else:  # who reads nothing does not read pongs, which would wait without end
            self.conn.data_to_send()

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text" and not self.close_sent:
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:  # uvicorn would log an error
                self.conn.send_close(1007)
                self.handle_parser_exception()
                return
        super().send_receive_event_to_app()


class _Http(H11Protocol, _InTurns):
    """A connection that asks for nothing does not stay, and what is no request is no error."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._stop_waiting()
        if not all(value.isascii() for name, value in self.headers if name.startswith(b"sec-websocket-")):
            self.send_400_response("Invalid HTTP request received.")  # websockets would say 500
            return
        super().handle_websocket_upgrade(event)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._await_request()

    def send_400_response(self, msg: str) -> None:
        if self.cycle is not None:
            self.cycle.disconnected = True  # what is answered already, or will be, is not told after this
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:  # it comes after an answer, or in the middle of one
            self.transport.close()

    def _await_request(self) -> None:
        self._stop_waiting()
        self._late = self.loop.call_later(REQUEST_S, self._give_up)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()

    def _give_up(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()


class _Uvicorn(uvicorn.Server):
    """Signals are the whole server's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class WebDoor:
    """Serves `Sessions` to a page of its own and to the clients of OpenAI's protocols.

    Attributes:
      port: where it listens, once `open` has returned.
    """

    def __init__(self, sessions: Sessions, rpc: GrpcDoor, access: Access = Access(), safety: Safety = Safety()) -> None:
        """Makes a door that is not open; `rpc` has the conversation of our own protocol."""
        self._sessions, self._rpc, self._access, self._safety = sessions, rpc, access, safety
        self._watchable: live.Directory = {}
        self._here = False
        self._server: _Uvicorn | None = None
        self.port = 0

    async def open(self, host: str, port: int) -> int:
        """Listens (port 0: on any free one) and returns the port.

        Raises:
          ValueError: the address cannot be listened on, or is open to others and not guarded.
        """
        check_address(host, self._safety)
        self._here = is_loopback(host)
        try:
            listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except OSError as error:
            raise ValueError(f"The server cannot listen on {host}:{port}: {error.strerror}.") from error
        self.port = listener.getsockname()[1]
        tls = self._safety.tls
        config = uvicorn.Config(
            Starlette(routes=self._routes()),
            http=_Http,
            ws=_Protocol,
            ws_max_size=MAX_MESSAGE_BYTES,
            ws_per_message_deflate=False,  # sound in base64 hardly shrinks, and a bomb would unfold
            timeout_graceful_shutdown=2,
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            ssl_certfile=tls and tls.cert,
            ssl_keyfile=tls and tls.key,
            ssl_ca_certs=tls and tls.client_ca and str(tls.client_ca),
            ssl_cert_reqs=ssl.CERT_REQUIRED if tls and tls.client_ca else ssl.CERT_NONE,
        )
        self._server = _Uvicorn(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        while not self._server.started and not self._serving.done():
            await asyncio.sleep(0.01)
        await run_in_threadpool(int)  # imports what Starlette's files need, before anybody waits for it
        return self.port

    def drain(self) -> None:
        """No new session from now on."""
        self._sessions.draining = True

    async def close(self) -> None:
        """Closes the port and what is still connected."""
        if self._server is not None:
            self._server.should_exit = True
            await self._serving

    def _routes(self) -> list[BaseRoute]:
        return [
            WebSocketRoute(live.PATH, self._live),
            WebSocketRoute(live.PATH + "/{id}/attach", self._attach),
            WebSocketRoute(realtime.PATH, self._realtime),
            WebSocketRoute(stream.PATH, self._stream),
            Route("/v1/tokens", self._token, methods=["POST"]),
            Route("/v1/info", self._info),
            Route("/v1/protocol", self._protocol),
            Route("/metrics", self._metrics),
            Route("/healthz", self._health),
            Route("/readyz", self._ready),
            Route("/", self._page),
            Mount("/page", _Page(directory=PAGE)),
        ]

    # Conversations.

    async def _live(self, socket: WebSocket) -> None:
        async with self._entered(socket) as owner:
            if owner is not None:
                await live.LiveConversation(socket, self._sessions, owner, self._watchable).run()

    async def _attach(self, socket: WebSocket) -> None:
        name = socket.path_params["id"]
        main = self._watchable.get(name)
        denied = None if main else _error(404, "session_not_found", f"There is no live session {name[:100]!r} here.")
        async with self._entered(socket, denied) as owner:
            if owner is not None and main:
                await live.Watcher(socket, self._sessions, owner, main).run()

    async def _realtime(self, socket: WebSocket) -> None:
        denied = None
        if socket.query_params.get("call_id") or socket.query_params.get("intent", "conversation") != "conversation":
            denied = _error(400, "unsupported_parameter", "This server has no calls and no transcription sessions.")
        # Clients of this protocol would connect again at once for ever, had they been let in.
        async with self._entered(socket, denied, room=True) as owner:
            if owner is not None:
                model = socket.query_params.get("model") or self._sessions.engine.bundle.name
                await realtime.RealtimeConversation(socket, self._sessions, owner, model).run()

    async def _stream(self, socket: WebSocket) -> None:
        async with self._entered(socket) as owner:
            if owner is not None:
                await stream.serve(socket, functools.partial(self._rpc.converse, owner=owner))

    @contextlib.asynccontextmanager
    async def _entered(
        self, socket: WebSocket, denied: JSONResponse | None = None, *, room: bool = False
    ) -> AsyncIterator[str | None]:
        """Opens the socket, counts a session of whoever comes and says who; or None, and tells the client why not.

        It is also told where there would be no `room` for a session now.
        """
        with contextlib.ExitStack() as stack:
            owner = ""
            try:
                owner = self._owner(socket)
                stack.enter_context(self._access.session(owner))
                if room and not denied:
                    with watch.refusals():
                        self._sessions.check_room()
            except _REFUSED as error:
                denied = _denial(error)
            if denied:
                await socket.send_denial_response(denied)
            else:
                offered = socket.scope.get("subprotocols", ())
                await socket.accept(next((name for name in _SUBPROTOCOLS if name in offered), None))
            yield None if denied else owner

    # What those who run the server ask for.

    async def _metrics(self, request: Request) -> Response:
        try:
            self._owner(request)
        except _REFUSED as error:
            return _denial(error)
        text, kind = watch.scrape(self._sessions.engine)
        return Response(text, headers={"Content-Type": kind, "Cache-Control": "no-store"})

    async def _health(self, request: Request) -> Response:
        """Whether this process should live on; nobody is asked for a key."""
        died = self._sessions.engine.died.done()
        return PlainTextResponse("The engine has failed.\n" if died else "ok\n", 503 if died else 200)

    async def _ready(self, request: Request) -> Response:
        """Whether new sessions should come here; nobody is asked for a key."""
        stats = self._sessions.engine.stats()
        why = "draining" if self._sessions.draining else "full" if stats.live >= stats.slots else ""
        if self._sessions.engine.died.done():
            why = "failed"
        return PlainTextResponse(f"{why or 'ok'}\n", 503 if why else 200)

    # What a page asks for.

    async def _token(self, request: Request) -> Response:
        """A token for one connection, in exchange for a key: a page cannot send one with a WebSocket."""

        def issue(owner: str) -> dict[str, Any]:
            self._access.check(owner)
            return {"token": self._access.issue(owner), "expires_in": TOKEN_S}

        return self._answer(request, issue)

    async def _info(self, request: Request) -> Response:
        info = await self._rpc.server_info()
        fields = json_format.MessageToDict(
            info, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        return self._answer(request, lambda _: fields)

    async def _protocol(self, request: Request) -> Response:
        return JSONResponse(protos.tables(), headers={"Cache-Control": "no-cache"})

    async def _page(self, request: Request) -> Response:
        return FileResponse(PAGE / "index.html", headers=PAGE_HEADERS)

    def _answer(self, request: Request, answer: Callable[[str], dict[str, Any]]) -> Response:
        """What `answer` makes of whoever asks, or why it is not told."""
        try:
            return JSONResponse(answer(self._owner(request)), headers={"Cache-Control": "no-store"})
        except _REFUSED as error:
            return _denial(error)

    def _owner(self, request: HTTPConnection) -> str:
        """Who comes.

        Raises:
          AccessError: who may not enter: pages of other sites, names that were bent to this machine, wrong keys.
        """
        if self._server is not None and len(self._server.server_state.connections) > MAX_CONNECTIONS:
            raise AccessError("server_full", "Too many clients are connected: try again later.")
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if self._here and not is_loopback(_split(f"//{host}").hostname or ""):
            raise AccessError("forbidden", f"This server is not {host[:100]!r}: use the name that it listens on.")
        if origin is not None and _split(origin).netloc != host:
            raise AccessError("forbidden", f"Pages of {origin[:100]} may not use this server.")
        key = request.headers.get("api-key", "")
        for offered in request.scope.get("subprotocols", ()):
            if offered.startswith(_TOKEN):
                return self._access.redeem(offered.removeprefix(_TOKEN))
            key = offered.removeprefix(_KEY) if offered.startswith(_KEY) else key
        return self._access.owner(request.headers.get("authorization", ""), key)


def _split(address: str) -> urllib.parse.SplitResult:
    """Its parts, none of what is no address."""
    try:
        return urllib.parse.urlsplit(address)
    except ValueError:
        return urllib.parse.urlsplit("")


class _Page(StaticFiles):
    """The page's files."""

    def file_response(self, *arguments: Any, **options: Any) -> Response:
        response = super().file_response(*arguments, **options)
        response.headers.update(PAGE_HEADERS)
        return response


_CODES = {QuotaError: "insufficient_quota"} | {kind: code for kind, (code, _) in FAILURES.items()}
_REFUSED = (AccessError, *_CODES)
_STATUS = {code: 503 for code, _ in FAILURES.values()} | {"forbidden": 403, "insufficient_quota": 429}


def _denial(error: Exception) -> JSONResponse:
    code = error.code if isinstance(error, AccessError) else _CODES[type(error)]
    return _error(_STATUS.get(code, 401), code, str(error))


def _error(status: int, code: str, sentence: str) -> JSONResponse:
    error = {"type": "invalid_request_error", "code": code, "message": sentence, "param": None}
    return JSONResponse({"error": error}, status, {"Retry-After": "10"} if status == 503 else None)
