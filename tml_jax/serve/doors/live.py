"""OpenAI's GPT-Live protocol over WebSocket, on our sessions: `/v1/live/sessions`, and `/{id}/attach` to watch one.

Both sides are full duplex, so nearly everything maps onto itself: sound goes in and comes out all the time, texts are
fragments with their times, and there are no turns to begin, end or cut. ``docs/doors.md`` says what means nothing here.
"""

import asyncio
import collections
import contextlib
import dataclasses
import time
from typing import Any

import numpy as np
from starlette.websockets import WebSocket

from tml_jax.serve import intake
from tml_jax.serve.doors import conversation, live_config, pictures, protocol
from tml_jax.serve.doors.audio import AudioEncoder, AudioFormat
from tml_jax.serve.doors.protocol import ProtocolError, to_base64
from tml_jax.serve.doors.telling import Messages, Telling
from tml_jax.serve.errors import GoneError
from tml_jax.serve.sessions import Sessions
from tml_jax.wire import events
from tml_jax.wire.pcm import from_pcm

PATH = "/v1/live/sessions"
CLOSE_S = 4.5  # clients wait for 5 s
FED_S, LINGER_MS = 1.0, 1500  # parts of it: what is heard already is still read, what is being said still said
MAX_APPEND = 500  # tokens
FRAME_MS, USAGE_MS = 100, 15_000
FADE_MS = 10  # in which sound that the user cut short goes to nothing
MAX_REFLECTED = 256  # appends that wait for a watcher; then the oldest are lost to it
_ELSEWHERE = {
    "session.output_audio.fixture.play": "plays no fixtures",
    "decision.create": "has no decisions",
    "decision.item.create": "has no decisions",
    "decision.item.delete": "has no decisions",
    "transport.dtmf.send": "has no telephone",
}


class LiveTelling(Telling):
    """What a session tells, as GPT-Live's events.

    Attributes:
      delegations: the newest: id -> the server's own task, if it is one.
    """

    def __init__(self, config: live_config.LiveConfig, stream: events.Stream, *, timed: bool = False) -> None:
        """Makes the teller of one session; `timed` sound, always PCM16 at 24 kHz, is for who watches one."""
        super().__init__(stream)
        self._config, self._timed = config, timed
        self._encoder = AudioEncoder(AudioFormat() if timed else config.format, stream.sample_rate)
        self._stale = 0  # the last epoch that the user cut short
        self.delegations: dict[str, int | None] = {}

    def usage(self) -> dict[str, Any]:
        """Seconds of the session so far."""
        return {"seconds": self.now_ms / 1000}

    def translate(self, event: events.Event, last: bool) -> Messages:
        """Speech that the user has cut short fades, since clients could not tell it from what follows."""
        if isinstance(event, events.Sound) and 0 < event.epoch <= self._stale:
            event = dataclasses.replace(event, samples=self._faded(event.samples))
        return super().translate(event, last)

    def _faded(self, samples: np.ndarray) -> np.ndarray:
        fade, faded = self._stream.sample_rate * FADE_MS // 1000, np.zeros_like(samples)
        faded[:fade] = samples[:fade] * np.linspace(1, 0, fade, dtype=samples.dtype)
        return faded

    def turn(self, event: events.Turn) -> Messages:
        """That the user has cut the model short, a delegation to the client, the usage from time to time."""
        if event.yielded:
            self._stale = event.yielded
            yield {"type": "info", "code": "output_audio_interrupted", "message": _STALE, "offset_ms": self.now_ms}
        if event.decision is events.Decision.DELEGATE and not self._config.background:
            yield self._delegation("client", f"delegation_{event.turn}")
        if self.now_ms // USAGE_MS > event.turn * self._stream.micro_turn_ms // USAGE_MS:
            yield {"type": "session.usage.updated", "usage": self.usage()}

    def heard(self, event: events.HeardWords) -> Messages:
        """A piece of the user's transcript."""
        yield _transcript("input", event)

    def said(self, event: events.Words) -> Messages:
        """A piece of the model's."""
        yield _transcript("output", event)

    def sound(self, samples: np.ndarray) -> Messages:
        """Frames of `FRAME_MS`."""
        for number, frame in enumerate(np.split(samples, self._stream.micro_turn_ms // FRAME_MS)):
            message: dict[str, Any] = {
                "type": "session.output_audio.delta",
                "delta": to_base64(self._encoder.push(frame)),
            }
            if self._timed:
                start_ms = self.now_ms + number * FRAME_MS
                message |= {"start_ms": start_ms, "end_ms": start_ms + FRAME_MS}
            yield message

    def background(self, event: events.Background) -> Messages:
        """A task of the server's background model, as the stream of a response."""
        response, message = f"resp_{event.task}", f"msg_{event.task}"
        name = f"delegation_task_{event.task}"
        if event.state == "started":
            yield self._delegation("responses", name, response, event.task)
        snapshot: dict[str, Any] = {"id": response, "object": "response", "created_at": int(time.time())}
        snapshot |= {"model": self._config.resource["delegation"]["responses"]["model"], "output": [], "tools": []}
        inner: list[dict[str, Any]] = []
        if event.state == "started":
            inner = [{"type": "response.created", "response": snapshot | {"status": "in_progress"}}]
        elif event.state == "finished":
            part = {"type": "output_text", "text": event.text, "annotations": []}
            item = {"id": message, "type": "message", "role": "assistant", "status": "completed", "content": [part]}
            done = snapshot | {"status": "completed", "usage": _NO_TOKENS}
            inner = [{"type": "response.output_item.done", "output_index": 0, "item": item}]
            inner += [{"type": "response.completed", "response": done}]
        else:
            error = {"code": "server_error", "message": event.text}
            inner = [{"type": "response.failed", "response": snapshot | {"status": "failed", "error": error}}]
        for number, part in enumerate(inner, start=event.state != "started"):
            yield {"type": "response.event", "delegation_id": name, "event": part | {"sequence_number": number}}

    def _delegation(
        self, target: str, name: str, response: str | None = None, task: int | None = None
    ) -> dict[str, Any]:
        self.delegations = dict([*self.delegations.items(), (name, task)][-64:])
        delegation = {"id": name, "type": "delegation", "target": target}
        if response:
            delegation["response_id"] = response
        return {"type": "session.delegation.created", "delegation": delegation, "offset_ms": self.now_ms}


_STALE = "The user has cut the model short: output audio that came before this and is not played yet is stale."
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


class _Client(conversation.Conversation):
    """A client of GPT-Live: who opened the session, or who watches it. `_main` is the one that opened it."""

    takes = live_config.EVENTS
    unnumbered = ("session.output_audio.delta", "session.input_audio.append")
    start_s = 30.0
    idle = ("session_not_started", f"No session.start came within {start_s:g} s.")
    _telling: LiveTelling

    @property
    def _main(self) -> "LiveConversation":
        raise NotImplementedError

    async def _send_error(self, error: ProtocolError, kind: str) -> None:
        details = {"type": kind, "code": error.code, "message": str(error)}
        more = (("param", error.param), ("client_event_id", error.event_id))
        await self._send("error", error.event_id, error=details | {k: v for k, v in more if v is not None})

    async def _take(self, event: dict[str, Any], event_id: str | None) -> None:
        kind, main = event["type"], self._main
        if main.closing and kind != "session.close":
            raise ProtocolError("session_closing", "The session is being closed and takes no more events.", "type")
        match kind:
            case "session.input_audio.mute" | "session.input_audio.unmute":
                main.muted = kind.endswith(".mute")
                await self._send(f"{kind}d", event_id)
            case "session.instructions.append" | "session.thinking.append" | "session.commentary.append":
                self._append(kind, event)
                await self._send(f"{kind}ed", event_id, start_ms=self._telling.now_ms, end_ms=self._telling.now_ms)
            case "session.update":
                main.resource |= live_config.read_update(event, main.resource)
                await self._send("session.updated", event_id, session=main.resource)
            case "session.close":
                main.close(event_id)
            case "session.start":
                raise ProtocolError("session_already_started", "The session was started already.", "type")
            case live_config.IMAGE:
                if live_config.IMAGE not in main.resource["extensions"]:
                    sentence = f"{kind} is an extension: name it in session.extensions of session.start."
                    raise ProtocolError("unsupported_event", sentence, "type")
                await self.session.push_frame(*pictures.read(event, "image_url", ""))
            case "response.create" | "response.item.create":
                if not main.config.background:
                    raise ProtocolError("invalid_event", f"{kind} requires Responses delegation.", "type")
                sentence = "The background model of this server calls no functions, so none waits for its output."
                raise ProtocolError("no_open_call", sentence, "type")
            case _ if kind in _ELSEWHERE:
                sentence = f"This server {_ELSEWHERE[kind]}: {kind} is not taken."
                raise ProtocolError("unsupported_event", sentence, "type")
            case _:
                raise self._unknown(kind)

    def _append(self, kind: str, event: dict[str, Any]) -> None:
        text = protocol.string(event, "content", "")
        if "delegation_id" not in event:
            raise ProtocolError(
                "missing_parameter", f"{kind} needs a delegation_id, which may be null.", "delegation_id"
            )
        name = event["delegation_id"]
        if name is not None and (not isinstance(name, str) or name not in self._main.delegations):
            sentence = f"There is no delegation {str(name)[:100]!r} here."
            raise ProtocolError("unknown_delegation", sentence, "delegation_id")
        # What is too long is not cut into tokens: that takes seconds, in which nobody is served.
        count = len(text) if len(text) > intake.MAX_TEXT else len(self._sessions.engine.bundle.tokenizer.encode(text))
        if count > MAX_APPEND:
            unit = "characters" if len(text) > intake.MAX_TEXT else "tokens"
            sentence = f"A content of {count} {unit} is too long: send at most {MAX_APPEND} tokens."
            raise ProtocolError("string_above_max_length", sentence, "content")
        self.session.push_context(text, to_say=kind == "session.commentary.append")

    async def _closed(self, reason: str) -> None:
        main = self._main
        mine = main.close_id if main is self else None
        await self._send("session.closed", mine, reason=reason, session=main.resource, usage=self._telling.usage())


Directory = dict[str, "LiveConversation"]
"""The sessions that can be watched, by their ids."""


class LiveConversation(_Client):
    """Who opens a session and speaks in it.

    Attributes:
      config, resource: of the session, as asked for and as shown. muted: its model hears silence.
      closing: it was asked to close, by the event `close_id`. watchers: who watches it.
    """

    def __init__(self, socket: WebSocket, sessions: Sessions, owner: str, directory: Directory) -> None:
        """Makes the conversation of an accepted socket; its session will be in `directory`."""
        super().__init__(socket, sessions, owner)
        self._directory = directory
        self.config: live_config.LiveConfig
        self.resource: dict[str, Any] = {}
        self.muted = self.closing = False
        self.close_id: str | None = None
        self.watchers: set[Watcher] = set()

    @property
    def _main(self) -> "LiveConversation":
        return self

    @property
    def delegations(self) -> dict[str, int | None]:
        """What was handed over lately."""
        return self._telling.delegations

    async def run(self) -> None:
        """Serves the client until one of the two has had enough; the socket is closed then."""
        try:
            await super().run()
        finally:
            self._directory.pop(self.resource.get("id", ""), None)

    async def _take(self, event: dict[str, Any], event_id: str | None) -> None:
        if self._session is None:
            await self._start(event, event_id)
        elif event["type"] == "session.input_audio.append" and not self.closing:
            pcm = self._form.decode(protocol.string(event, "audio", ""))
            self._hear(bytes(len(pcm)) if self.muted else pcm)
            for watcher in self.watchers:
                watcher.reflect(pcm)
        else:
            await super()._take(event, event_id)

    async def _start(self, event: dict[str, Any], event_id: str | None) -> None:
        """Takes `session.start`; nothing is told before it but what is wrong."""
        if event["type"] != "session.start":
            sentence = f"The first event of a connection must be session.start, but {event['type'][:100]} came."
            raise ProtocolError("session_not_started", sentence, "type")
        try:
            with conversation.naming_input():
                config = live_config.read_config(event, self._sessions.reading)
        except ProtocolError as error:
            error.fatal = True
            raise
        begun = await self._enter(config.session, config.format)
        self.config, self._telling = config, LiveTelling(config, begun.stream)
        self.resource = {"id": begun.session_id, "expires_at": conversation.expires_at(), "status": "active"}
        self.resource |= config.resource
        self._directory[begun.session_id] = self
        await self._send("session.started", event_id, session=self.resource)
        if config.left_out:
            sentence = (
                f"There is no room for the first {config.left_out} messages of input: the model is not told them."
            )
            await self._send("info", code="input_left_out", message=sentence)
        self.session.begin()

    async def _farewell(self, expired: bool) -> None:
        await self._closed("expired" if expired else "close_requested")

    def close(self, event_id: str | None) -> None:
        """Begins to close the session."""
        if not self.closing:
            self.closing, self.close_id = True, event_id
            self._going = asyncio.create_task(self._go())

    async def _go(self) -> None:
        """Closes the session: what was heard is read, what is being said is said, within `CLOSE_S`."""
        try:
            async with asyncio.timeout(CLOSE_S):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._heard.join(), FED_S)
                self._deaf = True
                await self.session.close_input(LINGER_MS)
                await self._told.over.wait()
        except TimeoutError:
            self.session.end(None)
        except Exception as error:
            self.session.end(error)


class Watcher(_Client):
    """Who watches a session that somebody else opened, and steers it."""

    def __init__(self, socket: WebSocket, sessions: Sessions, owner: str, main: LiveConversation) -> None:
        """Makes the watcher of a session that is under way."""
        super().__init__(socket, sessions, owner)
        self._watched = main
        self._reflected: collections.deque[bytes] = collections.deque(maxlen=MAX_REFLECTED)
        self._news = asyncio.Event()
        self._left = False

    @property
    def _main(self) -> LiveConversation:
        return self._watched

    async def run(self) -> None:
        """Serves the watcher until it or the session has had enough; the socket is closed then."""
        self._main.watchers.add(self)
        mirror = asyncio.create_task(self._mirror())
        try:
            await super().run()
        finally:
            mirror.cancel()
            self._main.watchers.discard(self)

    def reflect(self, pcm: bytes) -> None:
        """The user's sound, as it came."""
        self._reflected.append(pcm)
        self._news.set()

    async def _mirror(self) -> None:
        main = self._main
        encoder = AudioEncoder(AudioFormat(), main.config.format.rate)
        with contextlib.suppress(Exception):  # of a socket that has closed; its reader sees that, too
            while True:
                await self._news.wait()
                self._news.clear()
                while self._reflected:
                    audio = to_base64(encoder.push(from_pcm(self._reflected.popleft())))
                    await self._say([{"type": "session.input_audio.append", "audio": audio}])

    async def _greet(self) -> None:
        main = self._main
        self._session, self._told = main.session, main.session.subscribe()
        begun = await anext(self._told)
        assert isinstance(begun, events.Started)
        self._stream, self._telling = begun.stream, LiveTelling(main.config, begun.stream, timed=True)
        await self._send("session.started", session=main.resource)

    async def _take(self, event: dict[str, Any], event_id: str | None) -> None:
        if event["type"] == "session.input_audio.append":
            raise ProtocolError("unsupported_event", "Only the client that opened the session speaks in it.", "type")
        await super()._take(event, event_id)

    def _leave(self, error: Exception | None) -> None:
        self._left = True
        self._told.finish(error)

    async def _tell(self) -> None:
        try:
            await super()._tell()
        except GoneError:
            if self._left:
                raise
            self._reason = "connection_lost"

    _reason = "close_requested"

    async def _farewell(self, expired: bool) -> None:
        await self._closed("expired" if expired else self._reason)
