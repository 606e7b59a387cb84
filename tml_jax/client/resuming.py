"""A call that outlives its connections: it is resumed, here or on another server, and its user sees one sequence."""

import asyncio
import collections
import contextlib
import random
import time
from collections.abc import Collection, Sequence
from types import TracebackType
from typing import Any, Literal, Self, overload

import grpc
from absl import logging

from tml_jax.client.address import Address, open_channel
from tml_jax.wire import protos

ACKNOWLEDGE_EVERY = 5  # micro-turns
FIRST_WAIT_S, LONGEST_WAIT_S = 0.05, 2.0
# What may pass: the connection or the server has gone, another server has the session still; or there is no slot yet.
_PASSES = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
_TRANSPORT = ("Internal error from Core", "RST_STREAM", "GOAWAY", "Stream removed")  # gRPC's words, with other codes


class ResumingChannel:
    """One or several servers that share their sessions, for calls that can be resumed; an async context manager."""

    def __init__(self, servers: Sequence[str | Address], within_s: float = 60.0, most_bytes: int = 16 << 20) -> None:
        """Makes the channels.

        Args:
          servers: where each is; they are tried in turn.
          within_s: for how long a call tries to be resumed before it fails.
          most_bytes: of input that no server is known to have; while there is more, `write` waits.
        """
        options = (
            # It is this class that waits and tries again.
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.min_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 500),
        )
        self._channels = [open_channel(server, options) for server in servers]
        self._within_s, self._most_bytes = within_s, most_bytes
        self._first = 0

    @property
    def current(self) -> grpc.aio.Channel:
        """The channel to the server that was reached last."""
        return self._channels[self._first]

    def all_in(self, channels: Collection[grpc.aio.Channel]) -> bool:
        """Whether no server is left but these."""
        return all(channel in channels for channel in self._channels)

    def next(self) -> grpc.aio.Channel:
        """The one to the next server."""
        self._first = (self._first + 1) % len(self._channels)
        return self.current

    def converse(self) -> "ResumingCall":
        """A new call, in the manner of ``protos.converse_method(channel)()``."""
        return ResumingCall(self, self._within_s, self._most_bytes)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for channel in self._channels:
            await channel.close()


class ResumingCall:
    """A `Converse` call; written to and iterated over as gRPC's own. The first message written is the config.

    Attributes:
      resumed: how often it was.
    """

    def __init__(self, channel: ResumingChannel, within_s: float, most_bytes: int) -> None:
        self._channel, self._within_s, self._most_bytes = channel, within_s, most_bytes
        self._config: Any = None
        self._frame_bytes = 2
        self._token, self._sequence = "", 0
        self._sent = protos.Position()  # all that was written
        self._unknown: collections.deque[Any] = collections.deque()  # of it, what no server is known to have
        self._bytes, self._next = 0, 0  # of that; what of it goes next over this connection
        self._news, self._room = asyncio.Event(), asyncio.Event()
        self._call: Any = None
        self._pump: asyncio.Task[None] | None = None
        self._acknowledged = 0
        self._begun = self._over = False
        self.resumed = 0

    async def write(self, request: Any) -> None:
        """Sends one message, for good; waits while too much is under way."""
        if self._config is None:
            config = request.config
            config.resumable = True
            size = 4 if config.encoding == protos.AudioEncoding.AUDIO_ENCODING_PCM_F32LE else 2
            self._frame_bytes = size * (config.channels or 1)
            self._config = request
            return
        while self._bytes > self._most_bytes and not self._over:
            self._room.clear()
            await self._room.wait()
        self._number(request)
        self._unknown.append(request)
        self._bytes += request.ByteSize()
        self._news.set()

    def _number(self, request: Any) -> None:
        match request.WhichOneof("payload"):
            case "audio":
                request.audio.offset = self._sent.sound
                self._sent.sound += len(request.audio.pcm) // self._frame_bytes
            case "frame":
                request.frame.offset = self._sent.frames
                self._sent.frames += 1
            case "text":
                request.text.offset = self._sent.texts
                self._sent.texts += 1
            case "context":
                request.context.offset = self._sent.texts
                self._sent.texts += 1

    async def done_writing(self) -> None:
        """Nothing more will be written; the input's end is a message."""

    def cancel(self) -> None:
        """Ends the call."""
        self._over = True
        self._room.set()
        self._disconnect()

    def _disconnect(self) -> None:
        if self._pump is not None:
            self._pump.cancel()
        if self._call is not None:
            self._call.cancel()
        self._pump = self._call = None

    async def __aiter__(self) -> Any:
        """The messages of the session, each once, in order: the first `SessionStarted`, and what is numbered.

        Raises:
          grpc.aio.AioRpcError: the server refused or ended the session, or it could not be resumed in time.
        """
        deadline, wait_s = time.monotonic() + self._within_s, FIRST_WAIT_S
        unfit = set[grpc.aio.Channel]()  # to servers that have another model, say
        while not self._over:
            try:
                async for message in self._once():
                    deadline, wait_s = time.monotonic() + self._within_s, FIRST_WAIT_S
                    unfit.clear()
                    yield message
                return
            except grpc.aio.AioRpcError as error:
                full = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and not self._begun
                if error.code() is grpc.StatusCode.FAILED_PRECONDITION and not self._begun:
                    unfit.add(self._channel.current)
                elsewhere = self._channel.current in unfit and not self._channel.all_in(unfit)
                passes = (self._token and (full or elsewhere)) or _passes(error)
                if self._over or not passes or time.monotonic() > deadline:
                    raise
                logging.info("The connection has ended (%s), and the session is resumed.", error.details())
            finally:
                self._disconnect()
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
            wait_s = min(LONGEST_WAIT_S, 2 * wait_s)
            self._channel.next()

    async def _once(self) -> Any:
        """The messages of one connection that are new."""
        self._begun = False
        self._call = call = protos.converse_method(self._channel.current)()
        resume = protos.Resume(token=self._token, sequence=self._sequence)
        with contextlib.suppress(asyncio.InvalidStateError):  # it has ended already, and reading tells why
            await call.write(protos.ConverseRequest(resume=resume) if self._token else self._config)
        while (message := await call.read()) is not grpc.aio.EOF:
            kind = message.WhichOneof("payload")
            if kind == "started":
                self._begun = True
                self._next = 0  # what the server has already it drops
                self._pump = asyncio.create_task(self._send(call))
                if self._token:
                    self.resumed += 1
                    continue
                self._token = message.started.resume_token
            elif message.sequence:
                if message.sequence <= self._sequence:
                    continue
                self._sequence = message.sequence
            elif kind == "go_away":
                continue
            if kind == "turn":
                self._known(message.turn.received)
                if message.turn.turn % ACKNOWLEDGE_EVERY == 0 and self._token:
                    self._acknowledged = self._sequence
                    self._news.set()
            yield message
            if kind == "ended":
                with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    await call.write(_received(self._sequence))
                    await call.done_writing()
                    await call.read()
                return

    async def _send(self, call: Any) -> None:
        """Sends over one connection what no server is known to have, and what is written."""
        told = 0
        try:
            while True:
                if told < self._acknowledged:
                    told = self._acknowledged
                    await call.write(_received(told))
                if self._next < len(self._unknown):
                    request = self._unknown[self._next]
                    self._next += 1
                    await call.write(request)
                else:
                    self._news.clear()
                    if self._next == len(self._unknown) and told == self._acknowledged:
                        await self._news.wait()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # the connection has ended, which its reader learns, too

    def _known(self, received: Any) -> None:
        """A server has this for good: it need not be kept here."""
        while self._unknown and self._is_known(self._unknown[0], received):
            self._bytes -= self._unknown.popleft().ByteSize()
            self._next = max(0, self._next - 1)
        self._room.set()

    def _is_known(self, request: Any, received: Any) -> bool:
        """Whether all of it is in what was received; of what has no number, whether it was sent."""
        match request.WhichOneof("payload"):
            case "audio":
                end = request.audio.offset + len(request.audio.pcm) // self._frame_bytes
                return end <= received.sound
            case "frame":
                return request.frame.offset < received.frames
            case "text":
                return request.text.offset < received.texts
            case "context":
                return request.context.offset < received.texts
            case "close":
                return received.closed
            case _:
                return self._next > 0


def _received(sequence: int) -> Any:
    return protos.ConverseRequest(received=protos.Received(sequence=sequence))


def _passes(error: grpc.aio.AioRpcError) -> bool:
    details = error.details() or ""
    return error.code() in _PASSES or any(words in details for words in _TRANSPORT)


@overload
def connect(server: str | Address, *others: str | Address, resume: Literal[True], **limits: Any) -> ResumingChannel: ...
@overload
def connect(server: str | Address, *, resume: Literal[False] = False) -> grpc.aio.Channel: ...
def connect(
    server: str | Address, *others: str | Address, resume: bool = False, **limits: Any
) -> grpc.aio.Channel | ResumingChannel:
    """A channel to ``host:port``, or to an `Address` that asks for a key or has TLS.

    With `resume` conversations over it outlive its connections and the server: they are resumed there or at one of
    `others`, which share its sessions. `limits`: see `ResumingChannel`.
    """
    return ResumingChannel((server, *others), **limits) if resume else open_channel(server)
