"""Sound that comes in long pieces, late or not at all: what is heard of it, and how session time keeps to the clock."""

import asyncio
import time
from collections.abc import Iterator

import numpy as np
import pytest

from tests.serve.fakes import SPEC
from tml_jax import client
from tml_jax.serve.assembler import Assembler
from tml_jax.serve.inbox import Block, Inbox
from tml_jax.serve.pacing import Pacer
from tml_jax.streams.frames import FrameStream
from tml_jax.streams.micro_turn import empty_input
from tml_jax.wire import events, messages, protos

RATE = SPEC.sample_rate
CELL = RATE // 50


def _speech(seconds: float, seed: int = 0) -> np.ndarray:
    """Words of 300 ms with pauses of 300 ms, and some noise all the time."""
    rng = np.random.default_rng(seed)
    loud = np.arange(round(seconds * RATE)) // (3 * RATE // 10) % 2
    return (rng.standard_normal(len(loud)) * np.where(loud, 0.1, 5e-4)).astype(np.float32)


class _Session:
    """A session's intake by a clock of its own."""

    def __init__(self) -> None:
        self.now, self.blocks = 100.0, list[Block]()
        self._inbox, self._pacer = Inbox(SPEC, 0, lambda: None), Pacer(SPEC.micro_turn_s, 0.4)
        self._assembler = Assembler(SPEC, True, self._inbox, self._pacer, clock=lambda: self.now)

    def push(self, samples: np.ndarray) -> None:
        self._pacer.begin(self.now, len(samples) / RATE)
        self._assembler.push(samples)

    def wait(self, seconds: float) -> None:
        """Lets time go by, as `SessionInput._watch` does."""
        end = self.now + seconds
        while self.now < end - 1e-9:
            self.now = min(end, self.now + 0.02)
            while self._inbox.queued:
                self.blocks.append(self._inbox.take(empty_input(SPEC, (1,)), 0))
            while self._pacer.late(self.now):
                self._assembler.pad(expected=False)

    def live(self, samples: np.ndarray, piece: int = CELL) -> None:
        """Sound as a microphone gives it."""
        for start in range(0, len(samples), piece):
            now = samples[start : start + piece]
            self.wait(len(now) / RATE)
            self.push(now)

    @property
    def ahead_s(self) -> float:
        """Of session time, complete micro-turns, before the clock."""
        return len(self.blocks) * SPEC.micro_turn_s - (self.now - 100.0)

    def total(self, field: str) -> int:
        return sum(getattr(block, field) for block in self.blocks)

    def energy(self) -> float:
        return sum(block.level**2 * SPEC.samples for block in self.blocks)


@pytest.mark.parametrize("chunk_ms", [20, 600, 700, 1000])
def test_no_silence_is_put_into_sound_that_comes_in_pieces_as_long_as_they_may_be(chunk_ms: int) -> None:
    session = _Session()
    session.live(_speech(20), chunk_ms * RATE // 1000)
    session.wait(0.2)
    assert session.total("silence_ms") == 0
    assert session.total("shortened_ms") == 0
    assert len(session.blocks) == 20 * 5


@pytest.mark.parametrize("piece", [RATE // 100 - 1, CELL, RATE // 2, RATE])
@pytest.mark.parametrize("stalls", [1, 5])
def test_sound_that_comes_late_costs_pauses_and_no_words(stalls: int, piece: int) -> None:
    session, sent = _Session(), _speech(12.0 * (1 + stalls))
    parts, stall = np.split(sent, 1 + stalls), (2 + piece // RATE) * RATE
    session.live(parts[0], piece)
    for part in parts[1:]:
        session.wait(stall / RATE)  # nothing comes, and then all of it at once
        for start in range(0, stall, piece):
            session.push(part[start : min(start + piece, stall)])
        session.live(part[stall:], piece)
    session.live(np.zeros(RATE // 2, np.float32))
    assert session.total("silence_ms") >= 1000 * stalls
    assert abs(session.ahead_s) <= 0.21, "time is where it would be without the stalls"
    assert session.energy() == pytest.approx(np.dot(sent, sent), rel=1e-3), "all words were heard"
    assert session.blocks[-1].heard > len(sent), "what was left out was heard of, and is not sent again"
    assert 0 <= session.total("silence_ms") - session.total("shortened_ms") <= 250


@pytest.mark.parametrize("gap_s", [1.0, 60.0])
def test_of_sound_that_nobody_sent_nothing_is_made_up_for(gap_s: float) -> None:
    session = _Session()
    session.live(_speech(3.0))
    session.wait(gap_s)  # a muted microphone
    session.live(_speech(30.0, seed=1))
    session.wait(0.2)
    assert session.total("silence_ms") > 1000 * (gap_s - 0.5)
    assert session.total("shortened_ms") == 0


def test_a_file_that_is_poured_in_is_heard_whole() -> None:
    session = _Session()
    for piece in np.split(_speech(20.0), 20):
        session.push(piece)
    session.wait(1.0)
    assert session.total("shortened_ms") == session.total("silence_ms") == 0
    assert len(session.blocks) == 100


def test_frames_that_are_too_many_for_a_micro_turn_are_told() -> None:
    session, most = _Session(), FrameStream(SPEC).max_frames
    for count in (1, most, most + 3, 200):
        for _ in range(count):
            session._assembler.push_frame(np.zeros((40, 40, 3), np.uint8))
        session.live(np.zeros(SPEC.samples, np.float32))
    session.wait(0.02)
    assert [block.frames for block in session.blocks] == [1, most, most + 3, 200]
    assert [block.frames_dropped for block in session.blocks] == [0, 0, 3, 200 - most]


def _requests(sound: np.ndarray) -> Iterator[protos.ConverseRequest]:
    pcm = (sound * 32767).astype("<i2").tobytes()
    for start in range(0, len(pcm), 2 * RATE):
        yield protos.ConverseRequest(audio=protos.AudioChunk(pcm=pcm[start : start + 2 * RATE]))


def test_a_served_session_keeps_to_the_clock_through_long_pieces_and_a_stall(serving, run) -> None:
    async def scenario() -> tuple[list[events.Turn], float]:
        async with serving(real_time=True) as server, client.connect(server.address) as channel:
            call, told = protos.converse_method(channel)(), list[events.Turn]()

            async def listen() -> None:
                async for message in call:
                    event = messages.to_event(message)
                    told.extend([event] if isinstance(event, events.Turn) else [])

            await call.write(protos.ConverseRequest(config=protos.SessionConfig(sends_audio=True)))
            listening, began = asyncio.create_task(listen()), time.monotonic()
            for second, request in enumerate(_requests(_speech(8.0))):
                # A second of sound each second; but for 3 s nothing, and then all at once.
                await asyncio.sleep(max(0.0, began + (second + 1 if second not in (1, 2) else 4) - time.monotonic()))
                await call.write(request)
            await asyncio.sleep(0.3)
            lasted = time.monotonic() - began
            call.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            return told, lasted

    told, lasted = run(scenario())
    after = [turn for turn in told if turn.turn >= 25]
    assert sum(turn.silence_ms for turn in after) == 0, "pieces of a second are not late"
    silence, shortened = (sum(getattr(turn, name) for turn in told) for name in ("silence_ms", "shortened_ms"))
    assert silence > 0
    assert abs(silence - shortened) <= 400
    assert abs(len(told) * SPEC.micro_turn_s - lasted) <= 0.8
    assert all(turn.queued_ms >= 0 for turn in told)


def test_a_file_instead_of_samples_is_named(serving, run) -> None:
    async def scenario() -> str:
        async with serving(real_time=True) as server, client.connect(server.address) as channel:
            call = protos.converse_method(channel)()
            await call.write(protos.ConverseRequest(config=protos.SessionConfig(sends_audio=True)))
            await call.write(protos.ConverseRequest(audio=protos.AudioChunk(pcm=b"RIFF" + bytes(3200))))
            async for _ in call:
                pass
            return str(await call.details())

    with pytest.raises(Exception, match="The audio is a WAV file") as failed:
        run(scenario())
    assert "INVALID_ARGUMENT" in str(failed.value)
