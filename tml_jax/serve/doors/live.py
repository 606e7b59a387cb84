"""OpenAI's GPT-Live protocol over WebSocket, on our sessions: `/v1/live/sessions`.

Both sides are full duplex, so nearly everything maps onto itself: sound goes in and comes out all the time, texts are
fragments with their times, and there are no turns to begin, end or cut. ``docs/doors.md`` says what means nothing here.
"""

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from absl import logging
from starlette.websockets import WebSocket, WebSocketDisconnect

from tml_jax.serve import intake
from tml_jax.serve.doors import live_config
from tml_jax.serve.doors.audio import AudioEncoder
from tml_jax.serve.doors.live_config import ProtocolError
from tml_jax.serve.engine import EngineDiedError, ServerFullError
from tml_jax.serve.errors import DrainedError, GoneError, JournalError, OverloadedError
from tml_jax.serve.sessions import Session, Sessions
from tml_jax.serve.subscription import SlowClientError, Subscription
from tml_jax.wire import events

PATH = "/v1/live/sessions"
START_S = 30.0  # for a client to send `session.start`
LIFETIME_S = 24 * 3600
CLOSE_S = 4.5  # clients wait for 5 s
FED_S, LINGER_MS = 1.0, 1500  # parts of it: what is heard already is still read, what is being said still said
UNREAD_S = 5.0  # for what was told to be read once nothing more comes
MAX_EVENT = 2 << 20  # characters
MAX_HEARD_S = 60  # sound that waits because it came faster than time goes
MAX_APPEND = 500  # tokens
FRAME_MS, USAGE_MS = 100, 15_000
_FAILURES = {  # error: its code, the code that the socket closes with
    ServerFullError: ("server_full", 1013),
    OverloadedError: ("server_overloaded", 1013),
    SlowClientError: ("client_too_slow", 1008),
    JournalError: ("journal_failed", 1011),
    EngineDiedError: ("engine_died", 1011),
    DrainedError: ("server_draining", 1012),
}
_ELSEWHERE = {
    "session.output_audio.fixture.play": "plays no fixtures",
    "decision.create": "has no decisions",
    "decision.item.create": "has no decisions",
    "decision.item.delete": "has no decisions",
    "transport.dtmf.send": "has no telephone",
}


class Telling:
    """What a session tells, as the protocol's events; knows no socket."""

    def __init__(self, config: live_config.LiveConfig, stream: events.Stream) -> None:
        """Makes the teller of one session."""
        self._config, self._stream = config, stream
        self._encoder = AudioEncoder(config.format, stream.sample_rate)
        self._silence = np.zeros(stream.sample_rate * stream.micro_turn_ms // 1000, np.float32)
        self._silent = False  # a micro-turn began whose sound was not told
        self._numbers = itertools.count()
        self.turns = 0
        self.delegations: dict[str, int | None] = {}  # the newest: id -> the server's own task, if it is one

    @property
    def now_ms(self) -> int:
        """Where the session is."""
        return self.turns * self._stream.micro_turn_ms

    def usage(self) -> dict[str, Any]:
        """Seconds of the session so far."""
        return {"seconds": self.now_ms / 1000}

    def translate(self, event: events.Event, last: bool) -> Iterator[dict[str, Any]]:
        """An event as the protocol's. `last`: nothing was told after it, so a micro-turn without sound is silent."""
        match event:
            case events.Turn(turn=turn, decision=decision):
                yield from self._sound(self._silence) if self._silent else ()
                self.turns, self._silent = turn + 1, True
                if decision is events.Decision.DELEGATE and not self._config.background:
                    yield self._delegation("client", None)
                if self.now_ms // USAGE_MS > turn * self._stream.micro_turn_ms // USAGE_MS:
                    yield {"type": "session.usage.updated", "usage": self.usage()}
            case events.HeardWords():
                yield _transcript("input", event)
            case events.Words():
                yield _transcript("output", event)
            case events.Sound(samples=samples):
                self._silent = False
                yield from self._sound(samples)
            case events.Background(task=task, state=state, text=text) if task is not None and state != "progress":
                yield from self._response(task, state, text)
        if last and self._silent:
            self._silent = False
            yield from self._sound(self._silence)

    def _sound(self, samples: np.ndarray) -> Iterator[dict[str, Any]]:
        for frame in np.split(samples, self._stream.micro_turn_ms // FRAME_MS):
            yield {"type": "session.output_audio.delta", "delta": live_config.to_base64(self._encoder.push(frame))}

    def _delegation(self, target: str, response: str | None, task: int | None = None) -> dict[str, Any]:
        name = f"delegation_{next(self._numbers)}"
        self.delegations = dict([*self.delegations.items(), (name, task)][-64:])
        delegation = {"id": name, "type": "delegation", "target": target}
        if response:
            delegation["response_id"] = response
        return {"type": "session.delegation.created", "delegation": delegation, "offset_ms": self.now_ms}

    def _response(self, task: int, state: str, text: str) -> Iterator[dict[str, Any]]:
        """A task of the server's background model, as the stream of a response."""
        response, message = f"resp_{task}", f"msg_{task}"
        if state == "started":
            yield self._delegation("responses", response, task)
        name = next((name for name, number in self.delegations.items() if number == task), None)
        snapshot: dict[str, Any] = {"id": response, "object": "response", "created_at": int(time.time())}
        snapshot |= {"model": self._config.resource["delegation"]["responses"]["model"], "output": [], "tools": []}
        inner: list[dict[str, Any]] = []
        if state == "started":
            inner = [{"type": "response.created", "response": snapshot | {"status": "in_progress"}}]
        elif state == "finished":
            part = {"type": "output_text", "text": text, "annotations": []}
            item = {"id": message, "type": "message", "role": "assistant", "status": "completed", "content": [part]}
            done = snapshot | {"status": "completed", "usage": _NO_TOKENS}
            inner = [{"type": "response.output_item.done", "output_index": 0, "item": item}]
            inner += [{"type": "response.completed", "response": done}]
        else:
            error = {"code": "server_error", "message": text}
            inner = [{"type": "response.failed", "response": snapshot | {"status": "failed", "error": error}}]
        for number, event in enumerate(inner, start=state != "started"):
            yield {"type": "response.event", "delegation_id": name, "event": event | {"sequence_number": number}}


_NO_TOKENS = {
    "input_tokens": 0,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 0,
}


def _transcript(side: str, event: events.Words | events.HeardWords) -> dict[str, Any]:
    times = {"start_ms": event.start_ms, "end_ms": event.end_ms}
    return {"type": f"session.{side}_transcript.delta", "delta": event.text, **times}


class Conversation:
    """One client of the door, from its first event to its last."""

    def __init__(self, socket: WebSocket, sessions: Sessions, refusal: Callable[[], Exception | None]) -> None:
        """Makes the conversation of an accepted socket; `refusal` says why no session can be had now."""
        self._socket, self._sessions, self._refusal = socket, sessions, refusal
        self._numbers = itertools.count()
        self._heard: asyncio.Queue[bytes] = asyncio.Queue()
        self._heard_bytes = 0
        self._muted = self._closing = self._deaf = False
        self._close_id: str | None = None
        self._session: Session | None = None

    async def run(self) -> None:
        """Serves the client until one of the two has had enough; the socket is closed then."""
        tasks: list[asyncio.Task[None]] = []
        try:
            async with asyncio.timeout(START_S):
                config, event_id = await self._start()
            await self._started(config, event_id)
            told = self._told
            writer = asyncio.create_task(self._tell(told))
            tasks = [writer, asyncio.create_task(self._read()), asyncio.create_task(self._feed())]
            over = asyncio.create_task(told.over.wait())
            tasks.append(over)
            await asyncio.wait((writer, over), return_when=asyncio.FIRST_COMPLETED, timeout=LIFETIME_S)
            expired = not over.done() and not writer.done()
            if expired:
                self._live.end(None)
            async with asyncio.timeout(UNREAD_S):
                await writer
                reason = "expired" if expired else "close_requested"
                closed = {"reason": reason, "session": self._resource, "usage": self._telling.usage()}
                await self._send("session.closed", self._close_id, **closed)
                await self._socket.close(1000)
        except (WebSocketDisconnect, GoneError):
            pass
        except TimeoutError:
            if self._session is None:
                await self._fail("session_not_started", f"No session.start came within {START_S:g} s.", 1008)
        except ProtocolError as error:  # of the start
            await self._fail(error.code, str(error), 1008, error)
        except Exception as error:
            code, status = _FAILURES.get(type(error), ("internal_error", 1011))
            sentence = str(error)
            if type(error) not in _FAILURES:
                logging.error("A session failed.", exc_info=error)
                sentence = f"This session failed inside the server ({type(error).__name__}) and was ended."
            await self._fail(code, sentence, status)
        finally:
            for task in tasks:
                task.cancel()
            if self._session is not None:
                self._session.end(GoneError("The client that opened this session has gone."))

    @property
    def _live(self) -> Session:
        assert self._session is not None
        return self._session

    async def _start(self) -> tuple[live_config.LiveConfig, str | None]:
        """Waits for `session.start`; nothing is told before it but what is wrong."""
        while True:
            with self._complaining() as complaint:
                event = live_config.read_event(await self._receive())
                complaint.event_id = event.get("event_id")
                if event["type"] != "session.start":
                    sentence = f"The first event of a connection must be session.start, but {event['type']} came."
                    raise ProtocolError("session_not_started", sentence, "type")
                complaint.fatal = True
                return live_config.read_config(event), event.get("event_id")
            await self._tell_complaint(complaint)

    async def _started(self, config: live_config.LiveConfig, event_id: str | None) -> None:
        if refused := self._refusal():
            raise refused
        self._config = config
        self._session = self._sessions.open(config.session)
        self._told = self._session.subscribe()
        begun = await anext(self._told)
        assert isinstance(begun, events.Started)
        self._stream, self._telling = begun.stream, Telling(config, begun.stream)
        self._resource = {"id": begun.session_id, "expires_at": int(time.time()) + LIFETIME_S, "status": "active"}
        self._resource |= config.resource
        await self._send("session.started", event_id, session=self._resource)
        if config.left_out:
            sentence = (
                f"There is no room for the first {config.left_out} messages of input: the model is not told them."
            )
            await self._send("info", code="input_left_out", message=sentence)
        self._session.begin()

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

    async def _send(self, kind: str, client_event_id: str | None = None, **fields: Any) -> None:
        event: dict[str, Any] = {"type": kind, **fields}
        if kind != "session.output_audio.delta":
            event["event_id"] = f"event_{next(self._numbers)}"
        if client_event_id is not None:
            event["client_event_id"] = client_event_id
        await self._socket.send_text(json.dumps(event))

    async def _fail(self, code: str, sentence: str, status: int, error: ProtocolError | None = None) -> None:
        """Tells the error that ends the connection, if the client still listens."""
        with contextlib.suppress(TimeoutError, WebSocketDisconnect, RuntimeError):
            async with asyncio.timeout(UNREAD_S):
                details = error.details() if error else {"type": "server_error", "code": code, "message": sentence}
                await self._send("error", error.event_id if error else None, error=details)
                await self._socket.close(status, code)

    @contextlib.contextmanager
    def _complaining(self) -> Iterator["_Complaint"]:
        """What is wrong with an event is kept for the client, and the session goes on."""
        complaint = _Complaint()
        try:
            yield complaint
        except ProtocolError as error:
            error.event_id = complaint.event_id
            if complaint.fatal:
                raise
            complaint.error = error
        except intake.BadInputError as error:
            complaint.error = ProtocolError("invalid_value", str(error), event_id=complaint.event_id)
            if complaint.fatal:
                raise complaint.error from None

    async def _tell_complaint(self, complaint: "_Complaint") -> None:
        if complaint.error is not None:
            await self._send("error", complaint.event_id, error=complaint.error.details())

    # What the session tells.

    async def _tell(self, told: Subscription) -> None:
        async for event in told:
            for message in self._telling.translate(event, last=not told.waiting):
                await self._send(message.pop("type"), **message)

    # What the client sends.

    async def _read(self) -> None:
        try:
            while True:
                with self._complaining() as complaint:
                    event = live_config.read_event(await self._receive())
                    complaint.event_id = event.get("event_id")
                    await self._take(event, complaint.event_id)
                await self._tell_complaint(complaint)
        except WebSocketDisconnect:
            self._live.end(GoneError("The client that opened this session has gone."))
        except Exception as error:
            self._live.end(error)

    async def _take(self, event: dict[str, Any], event_id: str | None) -> None:
        kind = event["type"]
        if self._closing and kind != "session.close":
            raise ProtocolError("session_closing", "The session is being closed and takes no more events.", "type")
        match kind:
            case "session.input_audio.append":
                self._hear(self._config.format.decode(live_config.string(event, "audio", "")))
            case "session.input_audio.mute" | "session.input_audio.unmute":
                self._muted = kind.endswith(".mute")
                await self._send(f"{kind}d", event_id)
            case "session.instructions.append" | "session.thinking.append" | "session.commentary.append":
                self._append(kind, event)
                await self._send(f"{kind}ed", event_id, start_ms=self._telling.now_ms, end_ms=self._telling.now_ms)
            case "session.update":
                self._resource |= live_config.read_update(event, self._resource)
                await self._send("session.updated", event_id, session=self._resource)
            case "session.close":
                if not self._closing:
                    self._closing, self._close_id = True, event_id
                    self._close = asyncio.create_task(self._go())
            case "session.start":
                raise ProtocolError("session_already_started", "The session was started already.", "type")
            case "response.create" | "response.item.create":
                if not self._config.background:
                    raise ProtocolError("invalid_event", f"{kind} requires Responses delegation.", "type")
                sentence = "The background model of this server calls no functions, so none waits for its output."
                raise ProtocolError("no_open_call", sentence, "type")
            case _ if kind in _ELSEWHERE:
                raise ProtocolError(
                    "unsupported_event", f"This server {_ELSEWHERE[kind]}: {kind} is not taken.", "type"
                )
            case _:
                known = ", ".join(sorted(live_config.EVENTS))
                raise ProtocolError("unknown_event", f"Unknown event type {kind!r}; known are {known}.", "type")

    def _hear(self, pcm: bytes) -> None:
        most = MAX_HEARD_S * 2 * self._config.format.rate
        if self._heard_bytes + len(pcm) > most:
            sentence = f"More than {MAX_HEARD_S} s of audio wait to be heard, so this was dropped: send it slower."
            raise ProtocolError("input_audio_buffer_full", sentence, "audio")
        self._heard_bytes += len(pcm)
        self._heard.put_nowait(bytes(len(pcm)) if self._muted else pcm)

    async def _feed(self) -> None:
        """Hands on what was heard, as fast as the session takes it."""
        size = self._config.format.rate * 2 * self._stream.micro_turn_ms // 1000
        try:
            while True:
                pcm = await self._heard.get()
                for at in range(0, len(pcm), size):
                    if not self._deaf:
                        await self._live.push_audio(pcm[at : at + size])
                self._heard_bytes -= len(pcm)
                self._heard.task_done()
        except Exception as error:
            self._live.end(error)

    def _append(self, kind: str, event: dict[str, Any]) -> None:
        text = live_config.string(event, "content", "")
        if "delegation_id" not in event:
            raise ProtocolError(
                "missing_parameter", f"{kind} needs a delegation_id, which may be null.", "delegation_id"
            )
        name = event["delegation_id"]
        if name is not None and (not isinstance(name, str) or name not in self._telling.delegations):
            raise ProtocolError("unknown_delegation", f"There is no delegation {name!r} here.", "delegation_id")
        tokens = len(self._sessions.engine.bundle.tokenizer.encode(text))
        if tokens > MAX_APPEND:
            sentence = f"A content of {tokens} tokens is too long: send at most {MAX_APPEND}."
            raise ProtocolError("string_above_max_length", sentence, "content")
        self._live.push_context(text, to_say=kind == "session.commentary.append")

    async def _go(self) -> None:
        """Closes the session: what was heard is read, what is being said is said, within `CLOSE_S`."""
        try:
            async with asyncio.timeout(CLOSE_S):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._heard.join(), FED_S)
                self._deaf = True
                await self._live.close_input(LINGER_MS)
                await self._told.over.wait()
        except TimeoutError:
            self._live.end(None)
        except Exception as error:
            self._live.end(error)


class _Complaint:
    """What is wrong with one event of the client."""

    event_id: str | None = None
    fatal = False
    error: ProtocolError | None = None
