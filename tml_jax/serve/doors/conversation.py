"""A client on a WebSocket and its session, whatever the protocol: events in, events out, sound that waits, the end."""

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, ClassVar

from absl import logging
from starlette.websockets import WebSocket, WebSocketDisconnect

from tml_jax.serve import intake
from tml_jax.serve.config import SessionConfig
from tml_jax.serve.doors import protocol
from tml_jax.serve.doors.audio import AudioFormat
from tml_jax.serve.doors.protocol import ProtocolError
from tml_jax.serve.doors.telling import Telling
from tml_jax.serve.engine import EngineDiedError, ServerFullError
from tml_jax.serve.errors import (
    BusyError,
    DrainedError,
    GoneError,
    JournalError,
    LimitError,
    OverloadedError,
    TimeLimitError,
)
from tml_jax.serve.sessions import Session, Sessions
from tml_jax.serve.subscription import SlowClientError, Subscription
from tml_jax.wire import events

LIFETIME_S = 24 * 3600
UNREAD_S = 5.0  # for what was told to be read once nothing more comes
MAX_EVENT = 2 << 20  # characters
MAX_HEARD_S = 60  # sound that waits because it came faster than time goes
MOST_TOGETHER = 10  # pieces of sound that are handed on at once
FAILURES = {  # error: its code, the code that the socket closes with
    ServerFullError: ("server_full", 1013),
    OverloadedError: ("server_overloaded", 1013),
    SlowClientError: ("client_too_slow", 1008),
    JournalError: ("journal_failed", 1011),
    EngineDiedError: ("engine_died", 1011),
    DrainedError: ("server_draining", 1012),
    BusyError: ("server_busy", 1013),
    LimitError: ("session_limit_exceeded", 1008),
    TimeLimitError: ("session_timed_out", 1008),
}


class Conversation:
    """One client, from its first event to its last; each protocol has its own kind.

    Class attributes:
      takes: events of clients, and their fields. unnumbered: of the server, those without an event_id.
      start_s: how long a client may be connected and have no session, which then is `idle`.
      calm_s: how long a socket stays open after the server's failure, for clients that connect again at once.
    """

    takes: ClassVar[Mapping[str, Collection[str]]] = {}
    unnumbered: ClassVar[Collection[str]] = ()
    start_s: ClassVar[float] = 30.0
    idle: ClassVar[tuple[str, str]] = ("", "")
    calm_s: ClassVar[float] = 0.0

    def __init__(self, socket: WebSocket, sessions: Sessions, owner: str) -> None:
        """Makes the conversation of an accepted socket, which came with the key of this owner."""
        self._socket, self._sessions, self._owner = socket, sessions, owner
        self._numbers = itertools.count()
        self._telling_now = asyncio.Lock()
        self._heard: asyncio.Queue[bytes] = asyncio.Queue()
        self._heard_bytes = 0
        self._deaf = False
        self._session: Session | None = None
        self._told: Subscription
        self._telling: Telling
        self._stream: events.Stream
        self._form = AudioFormat()

    async def run(self) -> None:
        """Serves the client until one of the two has had enough; the socket is closed then."""
        tasks: list[asyncio.Task[Any]] = []
        try:
            async with asyncio.timeout(self.start_s):
                await self._greet()
                while self._session is None:
                    await self._read_one()
            tasks += map(asyncio.create_task, (self._tell(), self._told.over.wait(), self._read(), self._feed()))
            await asyncio.wait(tasks[:2], return_when=asyncio.FIRST_COMPLETED, timeout=LIFETIME_S)
            expired = not any(task.done() for task in tasks[:2])
            if expired:
                self._leave(None)
            async with asyncio.timeout(UNREAD_S):
                await tasks[0]
                await self._farewell(expired)
                await self._socket.close(1000)
        except (WebSocketDisconnect, GoneError):
            pass
        except TimeoutError:
            if self._session is None:
                code, sentence = self.idle
                await self._fail(ProtocolError(code, sentence), 1008)
        except ProtocolError as error:  # of the start
            await self._fail(error, 1008)
        except Exception as error:
            code, status = FAILURES.get(type(error), ("internal_error", 1011))
            sentence = str(error)
            if type(error) not in FAILURES:
                logging.error("A session failed.", exc_info=error)
                sentence = f"This session failed inside the server ({type(error).__name__}) and was ended."
            await self._fail(ProtocolError(code, sentence), status)
        finally:
            for task in tasks:
                task.cancel()
            tasks.clear()  # or they, their errors and this frame would hold each other
            if self._session is not None:
                self._leave(GoneError("The client that opened this session has gone."))
                self._told.forget()

    # What a protocol says of it.

    async def _greet(self) -> None:
        """Before anything has come."""

    async def _take(self, event: dict[str, Any], event_id: str | None) -> None:
        """One event of the client. Raises ProtocolError or BadInputError where it cannot be taken."""
        raise NotImplementedError

    async def _farewell(self, expired: bool) -> None:
        """The session ended well."""

    async def _send_error(self, error: ProtocolError, kind: str) -> None:
        raise NotImplementedError

    # The session.

    @property
    def session(self) -> Session:
        """The session, once there is one."""
        assert self._session is not None
        return self._session

    async def _enter(self, config: SessionConfig, form: AudioFormat) -> events.Started:
        """Opens the session, which hears sound of this format."""
        self._form, self._session = form, self._sessions.open(config, owner=self._owner)
        self._told = self._session.subscribe()
        begun = await anext(self._told)
        assert isinstance(begun, events.Started)
        self._stream = begun.stream
        return begun

    def _leave(self, error: Exception | None) -> None:
        self.session.end(error)

    # What the session tells.

    async def _tell(self) -> None:
        async for event in self._told:
            await self._say(self._telling.translate(event, last=not self._told.waiting))

    async def _say(self, messages: Iterable[dict[str, Any]]) -> None:
        """Sends what is told together, with nothing else in between."""
        async with self._telling_now:
            for message in messages:
                await self._send(message.pop("type"), **message)

    async def _send(self, kind: str, client_event_id: str | None = None, **fields: Any) -> None:
        event: dict[str, Any] = {"type": kind, **fields}
        if kind not in self.unnumbered:
            event["event_id"] = f"event_{next(self._numbers)}"
        if client_event_id is not None:
            event["client_event_id"] = client_event_id
        try:
            await self._socket.send_text(json.dumps(event))
        except RuntimeError as error:  # somebody else here has found out first
            raise WebSocketDisconnect(1006) from error

    async def _fail(self, error: ProtocolError, status: int) -> None:
        """Tells the error that ends the connection, if the client still listens."""
        with contextlib.suppress(TimeoutError, WebSocketDisconnect, RuntimeError):
            async with asyncio.timeout(UNREAD_S):
                await self._send_error(error, "invalid_request_error" if status == 1008 else "server_error")
                await asyncio.sleep(self.calm_s if status in (1011, 1013) else 0.0)
                await self._socket.close(status, error.code)

    # What the client sends.

    async def _read(self) -> None:
        try:
            while True:
                await self._read_one()
        except WebSocketDisconnect:
            self._leave(GoneError("The client that opened this session has gone."))
        except Exception as error:
            self._leave(error)

    async def _read_one(self) -> None:
        """Takes one event; what is wrong with it is told, and the session goes on."""
        event_id = None
        try:
            event = protocol.read_event(await self._receive(), self.takes)
            event_id = event.get("event_id")
            with naming_input():
                await self._take(event, event_id)
        except ProtocolError as error:
            error.event_id = error.event_id or event_id
            if error.fatal:
                raise
            await self._send_error(error, "invalid_request_error")

    async def _receive(self) -> str:
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1006))
        text = message.get("text")
        if text is None:
            raise ProtocolError("invalid_event", "A binary message came, but events are JSON in text messages.")
        if len(text) > MAX_EVENT:
            raise ProtocolError(
                "event_too_large", f"An event of {len(text)} characters came: send at most {MAX_EVENT}."
            )
        return text

    def _unknown(self, kind: str) -> ProtocolError:
        known = ", ".join(sorted(self.takes))
        return ProtocolError("unknown_event", f"Unknown event type {kind[:100]!r}; known are {known}.", "type")

    # Sound.

    def _hear(self, pcm: bytes) -> None:
        most = MAX_HEARD_S * 2 * self._form.rate
        if self._heard_bytes + len(pcm) > most:
            sentence = f"More than {MAX_HEARD_S} s of audio wait to be heard, so this was dropped: send it slower."
            raise ProtocolError("input_audio_buffer_full", sentence, "audio")
        self._heard_bytes += len(pcm)
        self._heard.put_nowait(pcm)

    async def _feed(self) -> None:
        """Hands on what was heard, as fast as the session takes it."""
        size = self._form.rate * 2 * self._stream.micro_turn_ms // 1000
        try:
            while True:
                pieces = [await self._heard.get()]
                while not self._heard.empty() and len(pieces) < MOST_TOGETHER:
                    pieces.append(self._heard.get_nowait())
                pcm = b"".join(pieces)
                for at in range(0, len(pcm), size):
                    if not self._deaf:
                        await self.session.push_audio((pcm[at : at + size], None))
                self._heard_bytes -= len(pcm)
                for _ in pieces:
                    self._heard.task_done()
        except Exception as error:
            self._leave(error)


def expires_at() -> int:
    """When a session that begins now ends at the latest, in unix seconds."""
    return int(time.time()) + LIFETIME_S


@contextlib.contextmanager
def naming_input() -> Iterator[None]:
    """What cannot be taken in, as the protocol's error."""
    try:
        yield
    except intake.BadInputError as error:
        raise ProtocolError("invalid_value", str(error)) from None
