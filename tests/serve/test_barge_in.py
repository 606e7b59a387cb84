"""Interruptions, measured at the loudspeaker: how long the model is still heard when the user speaks over it.

A real server in a process of its own has the shipped model; scenes of the simulator, of held-out voices, have the user
say "stop" into a count. Every other client is behind a network that holds everything up for a while before that.
"""

import asyncio
import concurrent.futures
import contextlib
import contextvars
import dataclasses
import itertools
from collections.abc import AsyncIterator, Iterator, Sequence

import numpy as np
import pytest

from tml_jax import client
from tml_jax.client import conversation, media
from tml_jax.client.playback import FADE_S, Playback
from tml_jax.data import scenarios
from tml_jax.data.config import Acoustics, Behaviour, DataConfig
from tml_jax.data.director import Director
from tml_jax.data.speech_bank import SpeechBank
from tml_jax.data.timeline import Conversation, UserSpeech, user_sound
from tml_jax.data.voices import Cast
from tml_jax.serve import subprocess_server
from tml_jax.streams.micro_turn import StreamSpec

SPEC, RATE = StreamSpec(), 16_000
AUDIBLE = 0.01  # -40 dBFS
LONGEST_S = 8.0  # of a scene
HELD_UP_S, BEFORE_S = 0.6, 0.9  # how long the network holds everything up; how long before the interruption
CLEAN = Acoustics(
    pitch_share=0.0, pace_share=0.0, level=(-22.0, -18.0), noise_share=0.0, room_share=0.0, telephone_share=0.0
)


def scenes(seed: int, spec: StreamSpec) -> Iterator[Conversation]:
    """Short scenes in which the user stops a count."""
    bank = SpeechBank.load("checkpoints/speech_bank")
    config = DataConfig(bank=str(bank.path), acoustics=CLEAN, behaviour=Behaviour(backchannel_share=0.0))
    cast = Cast(config, bank, "heldout")
    able = [one for one in cast.speakers if one.family("stop") and one.family("count_to")]
    for number in itertools.count():
        rng = np.random.default_rng((seed, number))
        director = Director(rng, config, spec, cast, able[int(rng.integers(len(able)))])
        director.limit = np.inf
        scenarios.barge_in(director)
        if director.now < LONGEST_S:
            yield Conversation(director.now + 1.0, tuple(director.events), True, "barge in")


_here: contextvars.ContextVar["Watched"] = contextvars.ContextVar("watched")


class Watched(Playback):
    """A playback, beside one that plays everything to its end."""

    def __init__(self, sample_rate: int, *, real_time: bool) -> None:
        super().__init__(sample_rate, real_time=real_time)
        self.uncut, self.cuts = Playback(sample_rate, real_time=real_time), list[float]()
        _here.set(self)

    def add(self, samples: np.ndarray, turn: int, time_s: float, arrival_s: float, epoch: int = 0) -> None:
        super().add(samples, turn, time_s, arrival_s, epoch)
        self.uncut.add(samples, turn, time_s, arrival_s, epoch)

    def cut(self, epoch: int, now_s: float) -> float | None:
        self.cuts.append(now_s)
        return super().cut(epoch, now_s)


@contextlib.asynccontextmanager
async def held_up(address: str, after_s: float) -> AsyncIterator[str]:
    """The address of a way to the server on which, once, nothing comes back for `HELD_UP_S`."""
    host, port = address.rsplit(":", 1)
    loop, tasks = asyncio.get_running_loop(), set[asyncio.Task[None]]()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, holds: tuple[float, float]) -> None:
        try:
            while data := await reader.read(1 << 16):
                if holds[0] <= loop.time() < holds[1]:
                    await asyncio.sleep(holds[1] - loop.time())
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, int(port))
        begins = loop.time() + after_s
        for task in (pump(reader, back, (0.0, 0.0)), pump(there, writer, (begins, begins + HELD_UP_S))):
            tasks.add(asyncio.create_task(task))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclasses.dataclass(frozen=True)
class Interruption:
    """Seconds of session time: the user's first and last sample over the model's speech, the end of the micro-turn that
    silenced it, when the client was told, and the model's last audible sample, with and without what was cut.
    """

    first: float
    last: float
    silent: float
    told: float
    heard: float
    uncut: float
    held_up: bool


def last_audible(sound: np.ndarray) -> float:
    return float(np.flatnonzero(np.abs(sound) > AUDIBLE)[-1] + 1) / RATE


async def interrupt(address: str, scene: Conversation, seed: int) -> Interruption | None:
    """Plays a scene; None where the model was not speaking when the user began to, or did not stop."""
    stop = list(scene.of(UserSpeech))[-1]
    loud = np.flatnonzero(np.abs(stop.audio) > AUDIBLE) / RATE + stop.start_s
    script = client.Script(media.SoundFile(user_sound(scene, SPEC)[:, None], RATE), tail_s=0.5, seed=seed)
    through = held_up(address, stop.start_s - BEFORE_S) if seed % 2 else contextlib.nullcontext(address)
    async with through as way, client.connect(way) as channel:
        recording = await client.converse(channel, script)
    watched = _here.get()
    spoken = {e["turn"]: e["type"] for e in recording.events if e["type"] in ("speak", "listen", "delegate")}
    began = int(loud[0] / SPEC.micro_turn_s)
    silent = next((turn for turn in sorted(spoken) if turn > began and spoken[turn] != "speak"), None)
    if spoken.get(began) != "speak" or silent is None or not watched.cuts:
        return None
    return Interruption(
        loud[0],
        loud[-1],
        (silent + 1) * SPEC.micro_turn_s,
        watched.cuts[-1],
        last_audible(recording.reply),
        last_audible(watched.uncut.sound(0.0)),
        bool(seed % 2),
    )


def measure(count: int, at_once: int, monkeypatch: pytest.MonkeyPatch) -> list[Interruption]:
    monkeypatch.setattr(conversation, "Playback", Watched)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        drawing = pool.submit(lambda: list(itertools.islice(scenes(0, SPEC), count)))  # while the server starts
        with subprocess_server.run("checkpoints/inkling_tiny", [f"--slots={at_once}"]) as address:
            return asyncio.run(all_of(address, drawing.result(), at_once))


async def all_of(address: str, drawn: Sequence[Conversation], at_once: int) -> list[Interruption]:
    found: list[Interruption] = []
    for begin in range(0, len(drawn), at_once):
        numbered = list(enumerate(drawn))[begin : begin + at_once]
        played = await asyncio.gather(*(interrupt(address, scene, number) for number, scene in numbered))
        found += [one for one in played if one]
    return found


def report(found: list[Interruption]) -> dict[str, float]:
    """Prints the delays; gives their 90th percentiles, ms."""
    delays = {
        "the user's first sample -> the model's last": [one.heard - one.first for one in found],
        "of it, until the model decides": [one.silent - one.first for one in found],
        "from the user's last sample": [one.silent - one.last for one in found],
        "of it, from then on: step, network, playback": [one.heard - one.silent for one in found],
        "the same, played to its end": [one.uncut - one.silent for one in found],
        "the same, network held up": [one.heard - one.silent for one in found if one.held_up],
        "the same, network held up, played to its end": [one.uncut - one.silent for one in found if one.held_up],
    }
    print(f"\n{len(found)} interruptions; p50 and p90, ms")
    for name, values in delays.items():
        print(f"{name:50s}{1000 * np.percentile(values, 50):6.0f}{1000 * np.percentile(values, 90):6.0f}")
    return {name: 1000 * float(np.percentile(values, 90)) for name, values in delays.items()}


def check(found: list[Interruption]) -> None:
    """What holds however slow the machine is."""
    for one in found:
        assert one.heard <= max(one.told, one.silent) + FADE_S + 1e-3, "nothing stale is heard"
    assert max(one.uncut - one.heard for one in found if one.held_up) > 0.15, "and there was something"


@pytest.mark.slow
def test_nothing_stale_is_heard_after_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measure(6, 6, monkeypatch)
    report(found)
    assert len(found) >= 4
    check(found)


@pytest.mark.slow
def test_interruptions_are_over_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measure(30, 6, monkeypatch)
    p90 = report(found)
    assert len(found) >= 20
    check(found)
    assert p90["of it, from then on: step, network, playback"] <= 400
