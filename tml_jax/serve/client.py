"""A client of the gRPC door: streams sound, pictures and text at the pace of time and keeps what comes back."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc
import numpy as np

from tml_jax.serve import door_grpc, events, media, protos
from tml_jax.serve.journal import Journal, journal_event
from tml_jax.serve.playback import Playback

# A block of sound ends this long before the server's tick that takes it.
MARGIN_S = 0.03
_DECISION = {1: events.Decision.LISTEN, 2: events.Decision.SPEAK, 3: events.Decision.DELEGATE}
_STATE = {1: "started", 2: "finished", 3: "failed"}


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
    video: media.VideoFile | None = None
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
            ends.append(self.video.times_s[-1])
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

    def messages(self, chunk_ms: float) -> list[tuple[float, Any]]:
        """(seconds at which it is sent, `ConverseRequest`), in order; sound is sent when its last sample exists."""
        timed: list[tuple[float, int, Any]] = []
        if self.sound:
            rate, pcm = self.sound.sample_rate, self.sound.pcm()
            tail = np.zeros((max(0, round(self.duration_s * rate) - len(pcm)), pcm.shape[1]), pcm.dtype)
            pcm = np.concatenate([pcm, tail])
            size = max(1, round(chunk_ms * rate / 1000))
            for start in range(0, len(pcm), size):
                piece = pcm[start : start + size]
                timed.append(((start + len(piece)) / rate, 0, {"audio": protos.AudioChunk(pcm=piece.tobytes())}))
        if self.video:
            for time_s, frame in zip(self.video.times_s, self.video.frames, strict=True):
                message = protos.VideoFrame(
                    data=media.to_jpeg(frame), encoding=protos.FrameEncoding.FRAME_ENCODING_JPEG
                )
                timed.append((time_s, 1, {"frame": message}))
        timed += [(time_s, 2, {"text": protos.TextInput(text=text)}) for time_s, text in self.texts]
        timed.append((self.duration_s, 3, {"close": protos.CloseInput()}))
        timed.sort(key=lambda item: item[:2])
        return [(time_s, protos.ConverseRequest(**payload)) for time_s, _, payload in timed]


@dataclasses.dataclass(eq=False)
class Recording:
    """What came back.

    Attributes:
      session_id: the server's name for the session.
      events: the journal's events as this client saw them.
      reply: the model's sound as it was heard, float32 from session time 0; `sample_rate` Hz.
      underruns: gaps in it that come from late pieces.
      round_trip_ms: for each micro-turn, from its last sample being sent to its `TurnEvent` arriving.
    """

    session_id: str = ""
    sample_rate: int = 16_000
    events: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    reply: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.float32))
    underruns: int = 0
    round_trip_ms: list[float] = dataclasses.field(default_factory=list)


class _Pace:
    """The client's clock: session time 0 is when its microphone opens."""

    def __init__(self, real_time: bool) -> None:
        self.real_time = real_time
        self._start = time.monotonic()

    def align(self, next_tick_s: float, period_s: float) -> None:
        """Starts so that micro-turns end just before the server's ticks."""
        now = time.monotonic()
        self._start = now + (next_tick_s - MARGIN_S) % period_s if self.real_time else now

    def now(self) -> float:
        return time.monotonic() - self._start

    async def wait(self, time_s: float) -> None:
        if self.real_time and (left := time_s - self.now()) > 0:
            await asyncio.sleep(left)


def to_event(message: Any) -> events.Event:
    """A `ConverseResponse` as the event it was on the server."""
    kind = message.WhichOneof("payload")
    m = getattr(message, kind)
    match kind:
        case "started":
            return events.Started(m.session_id, m.next_tick_ms / 1000)
        case "turn":
            return events.Turn(
                m.turn, _DECISION[m.decision], m.step_ms, m.deadline_missed, m.silence_ms, m.input_level, m.frames
            )
        case "text":
            return events.Words(m.turn, m.text)
        case "heard":
            return events.HeardWords(m.turn, m.text)
        case "audio":
            return events.Sound(m.turn, m.time_s, m.pcm, m.level)
        case "background":
            return events.Background(m.turn, m.task, _STATE[m.state], m.text)
        case _:
            return events.Ended(m.turns, m.deadline_misses, m.step_p50_ms, m.step_p99_ms, m.silence_ms)


async def converse(
    channel: grpc.aio.Channel,
    script: Script,
    *,
    chunk_ms: float = 20.0,
    real_time: bool = True,
    journal: Journal | None = None,
    observe: Callable[[events.Event], None] = lambda event: None,
    microphone: AsyncIterator[bytes] | None = None,
) -> Recording:
    """Holds one conversation.

    Args:
      channel: to the server.
      script: what is said and shown.
      chunk_ms: length of the pieces of sound.
      real_time: send at the pace of time; False sends as fast as the server takes it.
      journal: written as events come in.
      observe: called with each of them.
      microphone: live sound (16-bit mono at the script's rate) instead of the script's.

    Raises:
      SessionError: the server refused or ended the session.
    """
    journal = journal or Journal(None, keep=True)
    messages = await asyncio.to_thread(script.messages, chunk_ms)
    call = protos.converse_method(channel)()
    recording, pace = Recording(), _Pace(real_time)
    sent: dict[int, float] = {}
    sender = None
    try:
        await call.write(protos.ConverseRequest(config=script.config()))
        async for message in call:
            event = to_event(message)
            if isinstance(event, events.Started):
                stream = message.started.stream
                period_s, recording.session_id, recording.sample_rate = (
                    stream.micro_turn_ms / 1000,
                    event.session_id,
                    stream.sample_rate,
                )
                playback = Playback(stream.sample_rate, real_time=real_time)
                pace.align(event.next_tick_s, period_s)
                journal.write(
                    "session",
                    0,
                    0,
                    session=event.session_id,
                    seed=script.seed,
                    micro_turn_s=period_s,
                    started_unix_s=time.time(),
                )
                sender = asyncio.create_task(_send(call, messages, pace, period_s, sent, microphone))
                sender.add_done_callback(lambda task: task.cancelled() or (task.exception() and call.cancel()))
            journal_event(journal, event, period_s, script.sound is not None)
            if isinstance(event, events.Turn) and event.turn in sent:
                recording.round_trip_ms.append((pace.now() - sent[event.turn]) * 1000)
            elif isinstance(event, events.Sound):
                playback.add(event.pcm, event.turn, event.time_s, pace.now())
            observe(event)
    except grpc.aio.AioRpcError as error:
        raise SessionError(error.code(), error.details() or "The server gave no reason.") from error
    finally:
        if sender:
            sender.cancel()
            with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await sender
        call.cancel()
    journal.write("end", pace.now(), 0)
    recording.events, recording.underruns = journal.events, playback.underruns
    recording.reply = playback.sound(script.duration_s if script.sound else 0.0)
    return recording


async def _send(
    call: Any,
    messages: Sequence[tuple[float, Any]],
    pace: _Pace,
    period_s: float,
    sent: dict[int, float],
    microphone: AsyncIterator[bytes] | None,
) -> None:
    """Sends the messages, or the microphone; notes in `sent` when each micro-turn's sound was complete."""
    if microphone is not None:
        async for pcm in microphone:
            await call.write(protos.ConverseRequest(audio=protos.AudioChunk(pcm=pcm)))
        await call.write(protos.ConverseRequest(close=protos.CloseInput()))
        await call.done_writing()
        return
    turn = 0
    for time_s, message in messages:
        await pace.wait(time_s)
        await call.write(message)
        while (turn + 1) * period_s <= time_s + 1e-6:
            sent[turn] = pace.now()
            turn += 1
    await call.done_writing()


async def server_info(channel: grpc.aio.Channel) -> Any:
    """The server's `GetServerInfoResponse`.

    Raises:
      SessionError: it cannot be reached.
    """
    try:
        return await protos.server_info_method(channel)(protos.GetServerInfoRequest(), timeout=10)
    except grpc.aio.AioRpcError as error:
        raise SessionError(error.code(), f"The server does not answer: {error.details()}") from error


def connect(server: str) -> grpc.aio.Channel:
    """A channel to ``host:port``."""
    return grpc.aio.insecure_channel(
        server, options=(("grpc.max_receive_message_length", door_grpc.MAX_MESSAGE_BYTES),)
    )
