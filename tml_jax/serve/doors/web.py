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

from tml_jax.serve.doors import live
from tml_jax.serve.errors import DrainedError
from tml_jax.serve.sessions import Sessions

MAX_MESSAGE_BYTES = 4 << 20  # a longer one closes the socket with 1009
MAX_CONNECTIONS = 256  # more are told 503
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
        app = Starlette(routes=[WebSocketRoute(live.PATH, self._live)])
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
        if denied := self._denied(socket):
            await socket.send_denial_response(denied)
            return
        await socket.accept()
        await live.Conversation(socket, self._sessions, self._refusal).run()

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
