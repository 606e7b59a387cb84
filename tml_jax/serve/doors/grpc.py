"""The gRPC door: `InteractionService` over grpc.aio, with health checks, reflection and a graceful way down."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from absl import logging
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from tml_jax.serve import intake
from tml_jax.serve.config import SessionConfig
from tml_jax.serve.doors import ahead
from tml_jax.serve.doors.access import Access
from tml_jax.serve.doors.address import Tls
from tml_jax.serve.doors.guard import Guard, add_port
from tml_jax.serve.engine import EngineDiedError, ServerFullError
from tml_jax.serve.errors import (
    BusyError,
    DrainedError,
    HeldElsewhereError,
    JournalError,
    LimitError,
    MovedError,
    NotHereError,
    OverloadedError,
    TakenOverError,
    TimeLimitError,
    ToldTooLongAgoError,
    UnknownSessionError,
)
from tml_jax.serve.session_output import stream_of
from tml_jax.serve.sessions import Session, Sessions
from tml_jax.serve.subscription import SlowClientError, Subscription
from tml_jax.wire import messages, protos

OPTIONS = (
    ("grpc.max_receive_message_length", protos.MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),  # a client that vanished without a word gives its slot back
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.so_reuseport", 0),  # a second server on the same port is an error, not a lottery
)
FIRST_S = 30.0  # for the first message to come
UNREAD_S = 10.0  # how long what was told waits to be read once nothing more comes
_STATUS = {
    intake.BadInputError: grpc.StatusCode.INVALID_ARGUMENT,
    ServerFullError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    SlowClientError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    JournalError: grpc.StatusCode.UNAVAILABLE,
    DrainedError: grpc.StatusCode.UNAVAILABLE,
    BusyError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    LimitError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TimeLimitError: grpc.StatusCode.DEADLINE_EXCEEDED,
    MovedError: grpc.StatusCode.UNAVAILABLE,
    HeldElsewhereError: grpc.StatusCode.UNAVAILABLE,
    NotHereError: grpc.StatusCode.FAILED_PRECONDITION,
    TakenOverError: grpc.StatusCode.ABORTED,
    UnknownSessionError: grpc.StatusCode.NOT_FOUND,
    ToldTooLongAgoError: grpc.StatusCode.OUT_OF_RANGE,
    EngineDiedError: grpc.StatusCode.UNAVAILABLE,
}


class _NotSentError(Exception):
    """The client has gone."""


class GrpcDoor:
    """Serves `Sessions` on a port.

    Attributes:
      port: where it listens, once `open` has returned.
    """

    def __init__(self, sessions: Sessions, access: Access = Access(), tls: Tls | None = None) -> None:
        """Makes a door that is not open."""
        self._sessions, self._bundle = sessions, sessions.engine.bundle
        self._server = grpc.aio.server(options=OPTIONS, interceptors=[Guard(access)])
        self._tls = tls
        self._health = health.aio.HealthServicer()
        self.port = 0
        handlers = {
            "Converse": grpc.stream_stream_rpc_method_handler(
                self.converse,
                request_deserializer=None,  # bytes: what is malformed is told by `_parse`
                response_serializer=protos.ConverseResponse.SerializeToString,
            ),
            "GetServerInfo": grpc.unary_unary_rpc_method_handler(
                self.server_info,
                request_deserializer=protos.GetServerInfoRequest.FromString,
                response_serializer=protos.GetServerInfoResponse.SerializeToString,
            ),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(protos.SERVICE, handlers),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (protos.SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )

    async def open(self, address: str) -> int:
        """Listens on ``host:port`` (port 0: any free one) and returns the port.

        Raises:
          ValueError: the address cannot be listened on.
        """
        try:
            self.port = add_port(self._server, address, self._tls)
        except RuntimeError:
            raise ValueError(f"The server cannot listen on {address}: is the port taken?") from None
        await self._server.start()
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        return self.port

    async def drain(self, grace_s: float) -> None:
        """Goes down: no new session from now on.

        Live ones that another server can resume are left to it; the others have `grace_s` seconds to end by themselves.
        """
        self._sessions.draining = True
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        self._sessions.move_all()
        deadline = asyncio.get_running_loop().time() + grace_s
        while len(self._sessions) and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.05)
        self._sessions.end_all(DrainedError("The server is going down and the grace period for this session is over."))
        await self._server.stop(2.0)

    async def _set_health(self, status: Any) -> None:
        for name in ("", protos.SERVICE):
            await self._health.set(name, status)

    async def converse(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext, owner: str = ""
    ) -> None:
        """One conversation of a key's owner: a call of `Converse`, or what another door makes of its own connection."""
        if status := await self._converse(requests, context, owner):
            await context.abort(*status)  # gRPC keeps the frames that this passes

    async def _converse(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext, owner: str
    ) -> tuple[grpc.StatusCode, str] | None:
        """It, to its end; with what status, where that was no good one."""
        try:
            session, told = await self._begin(requests, owner)
        except tuple(_STATUS) as error:
            return _status(error), str(error)
        why = await self._serve(session, told, requests, context)
        status = None if why is None else (_status(why), _sentence(why))
        told.forget()
        return status

    async def _serve(
        self,
        session: Session,
        told: Subscription,
        requests: AsyncIterator[bytes],
        context: grpc.aio.ServicerContext,
    ) -> Exception | None:
        """One connection of a session, to its end; why it ended, where that was no good end."""
        reader = asyncio.create_task(self._read(session, requests))
        writer = asyncio.create_task(_write(told, context))
        over = asyncio.create_task(told.over.wait())
        try:
            await asyncio.wait((writer, over), return_when=asyncio.FIRST_COMPLETED)
            # A status cannot overtake a message that the client has not read yet.
            await asyncio.wait((writer,), timeout=UNREAD_S)
            if not writer.done():
                raise SlowClientError("The client reads nothing, so its call was ended.")
            writer.result()
            if session.token:
                await asyncio.wait_for(session.all_arrived.wait(), UNREAD_S)
                self._sessions.forget(session)
        except (_NotSentError, TimeoutError):
            pass
        except (TakenOverError, MovedError) as error:
            return error
        except Exception as error:
            session.end(error)
            self._sessions.forget(session)
            return error
        finally:  # also when the client has gone, which cancels this coroutine
            for task in (reader, writer, over):
                task.cancel()
            session.leave(told)
            del reader, writer  # or they, their errors and this frame would hold each other
        return None

    async def _begin(self, requests: AsyncIterator[bytes], owner: str) -> tuple[Session, Subscription]:
        """The session that the first message asks for, and all that is to be told of it."""
        try:
            message = await asyncio.wait_for(anext(aiter(requests), None), FIRST_S)
        except TimeoutError:
            raise TimeLimitError(f"No first message came within {FIRST_S:g} s.") from None
        request = None if message is None else _parse(message)
        kind = None if request is None else request.WhichOneof("payload")
        if kind == "resume":
            return await self._sessions.resume(request.resume.token, request.resume.sequence, owner)
        if kind == "config":
            config = session_config(request.config)
            session = self._sessions.open(config, resumable=request.config.resumable, owner=owner)
            return session, await session.attach(0)
        found = "nothing" if request is None else kind or "an empty message"
        raise intake.BadInputError(f"The first message of a session must be its config, but {found} came.")

    async def _read(self, session: Session, requests: AsyncIterator[bytes]) -> None:
        try:
            async with contextlib.aclosing(ahead.read(requests)) as read:
                async for messages in read:
                    try:
                        await _take_all(session, map(_parse, messages))
                    except Exception as error:
                        session.end(error)
                        return
            if not session.token:  # of one that can be resumed the connection may have ended, and not the input
                await session.close_input()
        except Exception as error:
            if not session.token:
                session.end(error)

    async def server_info(self, request: Any = None, context: grpc.aio.ServicerContext | None = None) -> Any:
        """What `GetServerInfo` answers."""
        stats = self._sessions.engine.stats()
        return protos.GetServerInfoResponse(
            model=self._bundle.name,
            stream=messages.stream_info(stream_of(self._bundle.spec)),
            slots=stats.slots,
            live_sessions=stats.live,
            parked_sessions=self._sessions.parked,
            refused_sessions=stats.refused,
            resumed_sessions=self._sessions.resumed,
            draining=self._sessions.draining,
            compilations_after_warmup=stats.compilations_after_warmup,
            steps=stats.steps,
            deadline_misses=stats.deadline_misses,
            step_p50_ms=stats.step_p50_ms,
            step_p99_ms=stats.step_p99_ms,
        )


def _status(error: Exception) -> grpc.StatusCode:
    return _STATUS.get(type(error), grpc.StatusCode.INTERNAL)


def _sentence(error: Exception) -> str:
    if type(error) in _STATUS:
        return str(error)
    logging.error("A session failed.", exc_info=error)
    return f"This session failed inside the server ({type(error).__name__}) and was ended; its journal has the reason."


async def _write(told: Subscription, context: grpc.aio.ServicerContext) -> None:
    before = told.sequence
    async for event in told:
        message = messages.to_message(event)
        if told.sequence != before:
            message.sequence = before = told.sequence
        try:
            await context.write(message)
        except Exception as error:  # gRPC has several for a client that has gone
            raise _NotSentError from error


def _parse(message: bytes) -> Any:
    with contextlib.suppress(DecodeError):
        return protos.ConverseRequest.FromString(message)
    raise intake.BadInputError(f"A message of {len(message)} bytes is no ConverseRequest.")


async def _take_all(session: Session, requests: Iterable[Any]) -> None:
    """Messages of the client, after the first; what is next to each other of sound goes in together."""
    sound: list[tuple[bytes, int | None]] = []
    for request in requests:
        if request.WhichOneof("payload") == "audio":
            sound.append((request.audio.pcm, _offset(request.audio)))
            continue
        if sound:
            await session.push_audio(*sound)
            sound = []
        await _take(session, request)
    if sound:
        await session.push_audio(*sound)


async def _take(session: Session, request: Any) -> None:
    """One message other than sound."""
    match request.WhichOneof("payload"):
        case "frame":
            frame = request.frame
            form = _frame_format(frame.encoding)
            await session.push_frame(frame.data, form, frame.width, frame.height, _offset(frame))
        case "text":
            await session.push_text(request.text.text, _offset(request.text))
        case "context":
            context = request.context
            session.push_context(context.text, to_say=context.to_say, offset=_offset(context))
        case "played":
            session.played(request.played.epoch, request.played.until_ms)
        case "close":
            await session.close_input()
        case "received":
            session.arrived(request.received.sequence)
        case "config" | "resume":
            raise intake.BadInputError("The config is only the first message of a session, and a second one came.")
        case _:
            raise intake.BadInputError("A message of the session holds nothing that this server knows.")


def _offset(message: Any) -> int | None:
    return message.offset if message.HasField("offset") else None


def _frame_format(encoding: int) -> intake.FrameFormat:
    kinds = protos.FrameEncoding
    if encoding == kinds.FRAME_ENCODING_RGB24:
        return intake.FrameFormat.RGB24
    if encoding in (kinds.FRAME_ENCODING_UNSPECIFIED, kinds.FRAME_ENCODING_JPEG, kinds.FRAME_ENCODING_PNG):
        return intake.FrameFormat.FILE
    raise intake.BadInputError(f"Frame encoding {encoding} is not known here: send JPEG, PNG or RGB24.")


def session_config(config: Any) -> SessionConfig:
    """Reads the wire's config.

    Raises:
      BadInputError: something in it cannot be had.
    """
    kinds = protos.AudioEncoding
    formats = {
        kinds.AUDIO_ENCODING_UNSPECIFIED: intake.SampleFormat.S16LE,
        kinds.AUDIO_ENCODING_PCM_S16LE: intake.SampleFormat.S16LE,
        kinds.AUDIO_ENCODING_PCM_F32LE: intake.SampleFormat.F32LE,
    }
    if config.encoding not in formats:
        raise intake.BadInputError(f"Audio encoding {config.encoding} is not known here: send PCM_S16LE or PCM_F32LE.")
    return SessionConfig(
        sends_audio=config.sends_audio,
        sends_video=config.sends_video,
        wants_audio=config.wants_audio,
        instructions=config.instructions,
        sound=intake.SoundFormat(config.sample_rate or 16_000, config.channels or 1, formats[config.encoding]),
        seed=config.seed,
        background=not config.client_background,
    )
