"""The web door: what clients reach over HTTP and WebSockets, one Starlette app on uvicorn in the server's event loop.

Starlette and uvicorn, because both are small, kept well, and leave WebSockets to the `websockets` library.
"""

import asyncio
import contextlib
import hmac
import ipaddress
import pathlib
import socket
import urllib.parse
from collections.abc import Iterator, Sequence

import uvicorn
from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from tml_jax.serve.doors import live, realtime
from tml_jax.serve.errors import DrainedError
from tml_jax.serve.sessions import Sessions

MAX_MESSAGE_BYTES = 4 << 20  # a longer one closes the socket with 1009
MAX_CONNECTIONS = 256  # more are told 503
_SUBPROTOCOL = "openai-insecure-api-key."
GONE_S = 10.0  # how long a client may take to read what it was sent last


class _Protocol(WebSocketsSansIOProtocol):
    """A connection whose client does not read does not stay for ever."""

    async def run_asgi(self) -> None:
        await super().run_asgi()
        self.loop.call_later(GONE_S, self.transport.abort)


class _Uvicorn(uvicorn.Server):
    """Signals are the whole server's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def read_keys(path: pathlib.Path) -> tuple[str, ...]:
    """The API keys of a file, one a line.

    Raises:
      ValueError: it cannot be read, or holds none.
    """
    try:
        keys = tuple(filter(None, map(str.strip, path.read_text().splitlines())))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The API keys in {path} cannot be read: {error}.") from error
    if not keys:
        raise ValueError(f"There is no API key in {path}: write one a line.")
    return keys


class WebDoor:
    """Serves `Sessions` to the clients of OpenAI's protocols.

    Attributes:
      port: where it listens, once `open` has returned.
    """

    def __init__(self, sessions: Sessions, keys: Sequence[str] = ()) -> None:
        """Makes a door that is not open; without `keys` everybody on this machine may enter."""
        self._sessions, self._keys = sessions, tuple(key.encode() for key in keys)
        self._watchable: live.Directory = {}
        self._draining = False
        self._here = False
        self._server: _Uvicorn | None = None
        self.port = 0

    async def open(self, host: str, port: int) -> int:
        """Listens (port 0: on any free one) and returns the port.

        Raises:
          ValueError: the address cannot be listened on, or is open to others while no key is asked for.
        """
        check_address(host, self._keys)
        self._here = is_loopback(host)
        try:
            listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except OSError as error:
            raise ValueError(f"The server cannot listen on {host}:{port}: {error.strerror}.") from error
        self.port = listener.getsockname()[1]
        app = Starlette(
            routes=[
                WebSocketRoute(live.PATH, self._live),
                WebSocketRoute(live.PATH + "/{id}/attach", self._attach),
                WebSocketRoute(realtime.PATH, self._realtime),
            ]
        )
        config = uvicorn.Config(
            app,
            ws=_Protocol,
            ws_max_size=MAX_MESSAGE_BYTES,
            ws_per_message_deflate=False,  # sound in base64 hardly shrinks, and a bomb would unfold
            timeout_graceful_shutdown=2,
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
        )
        self._server = _Uvicorn(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        while not self._server.started and not self._serving.done():
            await asyncio.sleep(0.01)
        return self.port

    def drain(self) -> None:
        """No new session from now on."""
        self._draining = True

    async def close(self) -> None:
        """Closes the port and what is still connected."""
        if self._server is not None:
            self._server.should_exit = True
            await self._serving

    def _refusal(self) -> Exception | None:
        return DrainedError("The server is going down and takes no new session.") if self._draining else None

    async def _live(self, socket: WebSocket) -> None:
        if await self._accept(socket):
            await live.LiveConversation(socket, self._sessions, self._refusal, self._watchable).run()

    async def _attach(self, socket: WebSocket) -> None:
        name = socket.path_params["id"]
        main = self._watchable.get(name)
        denied = None if main else _error(404, "session_not_found", f"There is no live session {name[:100]!r} here.")
        if await self._accept(socket, denied) and main:
            await live.Watcher(socket, self._sessions, main).run()

    async def _realtime(self, socket: WebSocket) -> None:
        denied = None
        if refused := self._refusal():  # clients of this protocol would connect again at once, had they been let in
            denied = _error(503, "server_draining", str(refused))
        elif len(self._sessions) >= self._sessions.engine.num_slots:
            denied = _error(503, "server_full", "All sessions of this server are taken: try again when one has ended.")
        elif socket.query_params.get("call_id") or socket.query_params.get("intent", "conversation") != "conversation":
            denied = _error(400, "unsupported_parameter", "This server has no calls and no transcription sessions.")
        if await self._accept(socket, denied):
            model = socket.query_params.get("model") or self._sessions.engine.bundle.name
            await realtime.RealtimeConversation(socket, self._sessions, self._refusal, model).run()

    async def _accept(self, socket: WebSocket, denied: JSONResponse | None = None) -> bool:
        """Opens the socket, or says why not."""
        if denied := self._denied(socket) or denied:
            await socket.send_denial_response(denied)
            return False
        await socket.accept("realtime" if "realtime" in socket.scope["subprotocols"] else None)
        return True

    def _denied(self, request: HTTPConnection) -> JSONResponse | None:
        """Why a client may not enter: pages of other sites, names that were bent to this machine, wrong keys."""
        if self._server is not None and len(self._server.server_state.connections) > MAX_CONNECTIONS:
            return _error(503, "server_full", "Too many clients are connected: try again later.")
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if self._here and not is_loopback(urllib.parse.urlsplit(f"//{host}").hostname or ""):
            return _error(403, "forbidden", f"This server is not {host!r}: use the name that it listens on.")
        if origin is not None and urllib.parse.urlsplit(origin).netloc != host:
            return _error(403, "forbidden", f"Pages of {origin} may not use this server.")
        if not self._keys:
            return None
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        given = key.strip() if scheme.lower() == "bearer" else request.headers.get("api-key", "")
        for protocol in request.scope.get("subprotocols", ()) if not given else ():  # what a browser can send
            given = protocol.removeprefix(_SUBPROTOCOL) if protocol.startswith(_SUBPROTOCOL) else given
        if not given:
            return _error(401, "missing_authorization", "Send an API key as Authorization: Bearer KEY.")
        # Every key is compared, so that the time tells nothing.
        if not sum(hmac.compare_digest(given.encode(), key) for key in self._keys):
            return _error(401, "invalid_api_key", "This API key is not known here.")
        return None


def check_address(host: str, keys: Sequence[object]) -> None:
    """Whether a web door may be opened on `host`.

    Raises:
      ValueError: others reach it, and there is no key to ask them for.
    """
    if not keys and not is_loopback(host):
        raise ValueError(f"Others reach {host}, so the web door needs API keys there: give --api_key_file.")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _error(status: int, code: str, sentence: str) -> JSONResponse:
    error = {"type": "invalid_request_error", "code": code, "message": sentence, "param": None}
    return JSONResponse({"error": error}, status, {"Retry-After": "10"} if status == 503 else None)
