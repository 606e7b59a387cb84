"""Events as messages of ``interaction.proto``, and back: the sound as 16-bit samples, everything else as it is."""

import dataclasses
from typing import Any

from tml_jax.wire import events, protos
from tml_jax.wire.pcm import from_pcm, to_pcm

_DECISION = {1: events.Decision.LISTEN, 2: events.Decision.SPEAK, 3: events.Decision.DELEGATE}
_STATE = {1: "started", 2: "finished", 3: "failed", 4: "progress"}


def stream_info(stream: events.Stream) -> Any:
    """A `StreamInfo`."""
    return protos.StreamInfo(**vars(stream))


def position(message: Any) -> events.Position:
    """A `Position` as it was on the server."""
    return events.Position(message.sound, message.frames, message.texts, message.closed)


def to_message(event: events.Event) -> Any:
    """An event as a `ConverseResponse`."""
    reply = protos.ConverseResponse
    match event:
        case events.Started():
            started = protos.SessionStarted(
                session_id=event.session_id,
                stream=stream_info(event.stream),
                max_chunk_ms=event.max_chunk_ms,
                next_tick_ms=event.next_tick_s * 1000,
                resume_token=event.resume_token,
                resume_within_ms=event.resume_within_ms,
                received=protos.Position(**vars(event.received)),
            )
            return reply(started=started)
        case events.Turn():
            decision = protos.Decision.Value(f"DECISION_{event.decision.name}")
            turn = protos.TurnEvent(
                turn=event.turn,
                decision=decision,
                step_ms=event.step_ms,
                deadline_missed=event.missed,
                silence_ms=event.silence_ms,
                input_level=event.input_level,
                frames=event.frames,
                received=protos.Position(**vars(event.received)),
                lost_ms=event.lost_ms,
                yielded=event.yielded,
                shortened_ms=event.shortened_ms,
                frames_dropped=event.frames_dropped,
                queued_ms=event.queued_ms,
            )
            return reply(turn=turn)
        case events.Words():
            return reply(text=protos.TextOut(**vars(event)))
        case events.HeardWords():
            return reply(heard=protos.Heard(**vars(event)))
        case events.Sound():
            audio = protos.AudioOut(
                pcm=to_pcm(event.samples).tobytes(),
                turn=event.turn,
                time_s=event.start_ms / 1000,
                level=event.level,
                start_ms=event.start_ms,
                end_ms=event.end_ms,
                epoch=event.epoch,
            )
            return reply(audio=audio)
        case events.Background(turn, task, state, text):
            code = protos.BackgroundState.Value(f"BACKGROUND_STATE_{state.upper()}")
            return reply(background=protos.BackgroundEvent(task=task, state=code, text=text, turn=turn))
        case events.Ended():
            ended = protos.SessionEnded(
                turns=event.turns,
                deadline_misses=event.deadline_misses,
                step_p50_ms=event.step_p50_ms,
                step_p99_ms=event.step_p99_ms,
                silence_ms=event.silence_ms,
            )
            return reply(ended=ended)
        case events.GoAway():
            return reply(go_away=protos.GoAway(**vars(event)))


def to_event(message: Any) -> events.Event:
    """A `ConverseResponse` as the event it was on the server."""
    kind = message.WhichOneof("payload")
    m = getattr(message, kind)
    match kind:
        case "started":
            sizes = {field.name: getattr(m.stream, field.name) for field in dataclasses.fields(events.Stream)}
            return events.Started(
                m.session_id,
                events.Stream(**sizes),
                m.max_chunk_ms,
                m.next_tick_ms / 1000,
                m.resume_token,
                m.resume_within_ms,
                position(m.received),
            )
        case "turn":
            return events.Turn(
                m.turn,
                _DECISION[m.decision],
                m.step_ms,
                m.deadline_missed,
                m.silence_ms,
                m.input_level,
                m.frames,
                position(m.received),
                m.lost_ms,
                m.yielded,
                m.shortened_ms,
                m.frames_dropped,
                m.queued_ms,
            )
        case "text":
            return events.Words(m.turn, m.text, m.start_ms, m.end_ms)
        case "heard":
            return events.HeardWords(m.turn, m.text, m.start_ms, m.end_ms)
        case "audio":
            return events.Sound(m.turn, m.start_ms, m.end_ms, from_pcm(m.pcm), m.level, m.epoch)
        case "background":
            return events.Background(m.turn, m.task if m.HasField("task") else None, _STATE[m.state], m.text)
        case "go_away":
            return events.GoAway(m.reason, m.reconnect_within_ms)
        case _:
            return events.Ended(m.turns, m.deadline_misses, m.step_p50_ms, m.step_p99_ms, m.silence_ms)
