"""A client of the gRPC door: streams sound, pictures and text at the pace of time and keeps what comes back."""

import asyncio
import dataclasses
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import grpc
import numpy as np

from tml_jax.client import media, sending
from tml_jax.client.playback import Playback
from tml_jax.client.resuming import ResumingChannel
from tml_jax.streams import pictures
from tml_jax.wire import events, messages, protos
from tml_jax.wire.journal import Journal, journal_event
from tml_jax.wire.pcm import to_pcm

STOPPED = "The session was stopped by its client."
_WRITE_FAILED = "Internal error from Core"  # grpc's words (as INTERNAL) where it saw this before the call's status


class SessionError(RuntimeError):
    """The session ended with an error; the message is the server's sentence. `code` is the gRPC status."""

    def __init__(self, code: grpc.StatusCode, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


@dataclasses.dataclass(frozen=True, eq=False)
class Script:
    """What a client says and shows.

    Attributes:
      sound: the user's sound, or None to send none.
      video: the user's camera. texts: (seconds, typed text).
      tail_s: silence after the sound, in which the model may still answer.
    """

    sound: media.SoundFile | None
    video: media.Pictures | None = None
    texts: Sequence[tuple[float, str]] = ()
    tail_s: float = 3.0
    instructions: str = ""
    wants_audio: bool = True
    seed: int = 0

    @property
    def duration_s(self) -> float:
        """When the client closes its input, in seconds."""
        ends = [self.sound.duration_s if self.sound else 0.0, *(t for t, _ in self.texts)]
        if self.video:
            ends.append(self.video.end_s)
        return max(ends) + self.tail_s

    def config(self) -> Any:
        """The `SessionConfig` of this script."""
        sound = {"sample_rate": self.sound.sample_rate, "channels": self.sound.samples.shape[1]} if self.sound else {}
        return protos.SessionConfig(
            instructions=self.instructions,
            sends_audio=self.sound is not None,
            sends_video=self.video is not None,
            wants_audio=self.wants_audio,
            encoding=protos.AudioEncoding.AUDIO_ENCODING_PCM_S16LE,
            seed=self.seed,
            **sound,
        )

    def sounds(self, chunk_ms: float) -> Iterator[sending.Timed]:
        """The pieces of sound and, up to the end, of silence; each is sent when its last sample exists."""
        if not self.sound:
            return
        samples, rate = self.sound.samples, self.sound.sample_rate
        size, count = max(1, round(chunk_ms * rate / 1000)), max(len(samples), round(self.duration_s * rate))
        for start in range(0, count, size):
            piece = to_pcm(samples[start : start + size])
            silence = np.zeros((min(size, count - start) - len(piece), samples.shape[1]), piece.dtype)
            pcm = piece.tobytes() + silence.tobytes()
            yield min(start + size, count) / rate, protos.ConverseRequest(audio=protos.AudioChunk(pcm=pcm))

    def pictures(self, stream: events.Stream, thumbnails: media.Thumbnails) -> Iterator[sending.Timed]:
        """The frames, as small as the model of this stream sees them; a few are kept as thumbnails."""
        width, height = stream.frame_width, stream.frame_height
        for time_s, frame in self.video.pictures(width, height) if self.video else ():
            thumbnails.add(time_s, frame)
            small = pictures.resize(frame, width, height) if width and height else frame
            yield time_s, protos.ConverseRequest(frame=_video_frame(small))

    def typed(self) -> Iterator[sending.Timed]:
        """The typed texts."""
        for time_s, text in sorted(self.texts, key=lambda one: one[0]):
            yield time_s, Typed(text).request()


@dataclasses.dataclass(frozen=True)
class Typed:
    """Text that the user types while the conversation goes on."""

    text: str

    def request(self) -> Any:
        """As a `ConverseRequest`."""
        return protos.ConverseRequest(text=protos.TextInput(text=self.text))


@dataclasses.dataclass(frozen=True)
class Context:
    """What the model should know, neither said nor typed by the user: further instructions.

    With `to_say` it is what this client's own background model found, and the model says it, in its own words.
    """

    text: str
    to_say: bool = False

    def request(self) -> Any:
        """As a `ConverseRequest`."""
        return protos.ConverseRequest(context=protos.ContextInput(text=self.text, to_say=self.to_say))


@dataclasses.dataclass(frozen=True)
class _Played:
    """What was heard of speech that the user cut short."""

    epoch: int
    until_ms: int

    def request(self) -> Any:
        """As a `ConverseRequest`."""
        return protos.ConverseRequest(played=protos.Played(epoch=self.epoch, until_ms=self.until_ms))


def _video_frame(frame: np.ndarray) -> Any:
    kinds = protos.FrameEncoding
    if frame.nbytes <= media.RAW_BYTES:
        height, width = frame.shape[:2]
        return protos.VideoFrame(data=frame.tobytes(), encoding=kinds.FRAME_ENCODING_RGB24, width=width, height=height)
    return protos.VideoFrame(data=media.to_jpeg(frame), encoding=kinds.FRAME_ENCODING_JPEG)


@dataclasses.dataclass(eq=False)
class Recording:
    """What came back, up to now.

    Attributes:
      session_id: the server's name for the session; empty before it has begun.
      events: the journal's events as this client saw them.
      duration_s: how long the session's input has been going on.
      reply: the model's sound as it was heard, float32 from session time 0; `sample_rate` Hz.
      underruns: gaps in it that come from late pieces.
      round_trip_ms: for each micro-turn, from its last sample being sent to its `TurnEvent` arriving.
      thumbnails: of the video that was sent.
    """

    session_id: str = ""
    sample_rate: int = 16_000
    events: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    duration_s: float = 0.0
    reply: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.float32))
    underruns: int = 0
    round_trip_ms: list[float] = dataclasses.field(default_factory=list)
    thumbnails: media.Thumbnails = dataclasses.field(default_factory=media.Thumbnails)


async def converse(
    channel: grpc.aio.Channel | ResumingChannel,
    script: Script,
    *,
    chunk_ms: float = 20.0,
    real_time: bool = True,
    journal: Journal | None = None,
    observe: Callable[[events.Event], None] = lambda event: None,
    microphone: AsyncIterator[bytes] | None = None,
    asides: asyncio.Queue[Typed | Context] | None = None,
    recording: Recording | None = None,
) -> Recording:
    """Holds one conversation.

    Args:
      channel: to the server; over one of `connect(..., resume=True)` the conversation outlives it.
      script: what is said and shown.
      chunk_ms: length of the pieces of sound.
      real_time: send at the pace of time; False sends as fast as the server takes it.
      journal: written as events come in.
      observe: called with each of them, before it is written.
      microphone: live sound (16-bit mono at the script's rate) instead of the script's; its end is the session's.
      asides: what comes up while the conversation goes on, sent as it is put there, until the script's end.
        Where that is not in real time it comes long before the last replies.
      recording: filled with what comes back; however the session ends, it holds what was until then.

    Raises:
      SessionError: the server refused or ended the session, or has gone.
      ValueError: what should be sent cannot be read.
    """
    recording = Recording() if recording is None else recording
    end_s = script.duration_s if microphone is None else math.inf
    listener = _Listener(script, recording, journal or Journal(None, keep=True), real_time, end_s)
    call: Any = channel.converse() if isinstance(channel, ResumingChannel) else protos.converse_method(channel)()
    sender, reason = None, ""
    said = _said(call)
    try:
        await call.write(protos.ConverseRequest(config=script.config()))
        async for message in call:
            event = messages.to_event(message)
            observe(event)
            if isinstance(event, events.Started):
                listener.begin(event)
                sender = asyncio.create_task(
                    sending.send(
                        call,
                        listener.pace,
                        sounds=microphone or script.sounds(chunk_ms),
                        pictures=script.pictures(event.stream, recording.thumbnails),
                        texts=script.typed(),
                        asides=[listener.played, *([asides] if asides is not None else [])],
                        end_s=end_s,
                        sent=lambda time_s: listener.sent(time_s),
                    )
                )
                sender.add_done_callback(lambda task: task.cancelled() or (task.exception() and call.cancel()))
            listener.take(event)
    except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
        cause = _cause(error, sender, said)
        reason = STOPPED if isinstance(cause, asyncio.CancelledError) else str(cause)
        raise cause from None
    finally:
        if sender:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
        call.cancel()
        listener.end(reason)
    return recording


class _Listener:
    """Takes in what the server says, and keeps it."""

    def __init__(self, script: Script, recording: Recording, journal: Journal, real_time: bool, end_s: float) -> None:
        self._script, self._recording, self._journal, self._end_s = script, recording, journal, end_s
        self.pace = sending.Pace(real_time)
        self._sent_s: list[float] = []
        self._period_s = 0.2
        self._playback: Playback | None = None
        self.played: asyncio.Queue[_Played] = asyncio.Queue()

    def begin(self, event: events.Started) -> None:
        """The session has begun; session time 0 is when this client's microphone opens."""
        recording, stream = self._recording, event.stream
        self._period_s = stream.micro_turn_ms / 1000
        recording.session_id, recording.sample_rate = event.session_id, stream.sample_rate
        self._playback = Playback(stream.sample_rate, real_time=self.pace.real_time)
        self.pace.align(event.next_tick_s, self._period_s)
        self._journal.write(
            "session",
            0,
            0,
            session=event.session_id,
            seed=self._script.seed,
            micro_turn_s=self._period_s,
            started_unix_s=time.time(),
        )

    def sent(self, time_s: float) -> None:
        """The sound up to session time `time_s` has been sent."""
        while (len(self._sent_s) + 1) * self._period_s <= time_s + 1e-6:
            self._sent_s.append(self.pace.now())

    def take(self, event: events.Event) -> None:
        """One event."""
        journal_event(self._journal, event, self._period_s, self._script.sound is not None)
        now, playback = self.pace.now(), self._playback
        if isinstance(event, events.Turn) and event.turn < len(self._sent_s):
            self._recording.round_trip_ms.append((now - self._sent_s[event.turn]) * 1000)
        if isinstance(event, events.Turn | events.Sound) and playback:
            playback.arrived((event.turn + 1) * self._period_s, now)
        if isinstance(event, events.Turn) and event.yielded and playback:
            if (until_s := playback.cut(event.yielded, now)) is not None:
                self.played.put_nowait(_Played(event.yielded, round(until_s * 1000)))
        elif isinstance(event, events.Sound) and playback:
            playback.add(event.samples, event.turn, event.start_ms / 1000, now, event.epoch)

    def end(self, reason: str) -> None:
        """The session is over, for a `reason` if it did not end well."""
        if self._playback is None:
            return
        recording, script, now = self._recording, self._script, self.pace.now()
        turn = max((event["turn"] for event in self._journal.events), default=0)
        if reason:
            self._journal.write("error", now, turn, text=reason)
        else:
            self._journal.write("end", now, 0)
        ended_well = not reason and math.isfinite(self._end_s)  # a microphone's session is as long as it was
        recording.duration_s = self._end_s if ended_well else min(self._end_s, now)
        recording.events, recording.underruns = self._journal.events, self._playback.underruns
        recording.reply = self._playback.sound(recording.duration_s if script.sound else 0.0)


def _said(call: Any) -> list[tuple[grpc.StatusCode, str]]:
    """What the call ends with, once it has ended: gRPC forgets it where it then finds that something was not sent."""
    said: list[tuple[grpc.StatusCode, str]] = []

    def note(call: Any) -> None:
        said.append((_at_once(call.code()), _at_once(call.details())))

    if isinstance(call, grpc.aio.Call):
        call.add_done_callback(note)
    return said


def _at_once(coroutine: Any) -> Any:
    """What a coroutine gives that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")


def _cause(
    error: BaseException, sender: asyncio.Task[None] | None, said: list[tuple[grpc.StatusCode, str]]
) -> BaseException:
    """Why a call ended: the server's own sentence, what became of the connection, or why sending failed."""
    if isinstance(error, asyncio.CancelledError) and sender and sender.done() and not sender.cancelled():
        error = sender.exception() or error
    if not isinstance(error, grpc.aio.AioRpcError):
        return error
    code, details = error.code(), error.details() or "no reason is known"
    if details == _WRITE_FAILED and said:
        code, details = said[0]
    if details == _WRITE_FAILED:
        code, details = grpc.StatusCode.UNAVAILABLE, "the connection ended while something was being sent"
    if code is grpc.StatusCode.UNAVAILABLE and not details.endswith("."):  # no sentence of the server's
        details = f"The server has gone: {details}."
    return SessionError(code, details)


async def server_info(channel: grpc.aio.Channel | ResumingChannel) -> Any:
    """The server's `GetServerInfoResponse`.

    Raises:
      SessionError: it cannot be reached.
    """
    one = channel.current if isinstance(channel, ResumingChannel) else channel
    try:
        return await protos.server_info_method(one)(protos.GetServerInfoRequest(), timeout=10)
    except grpc.aio.AioRpcError as error:
        raise SessionError(error.code(), f"The server does not answer: {error.details()}") from error
