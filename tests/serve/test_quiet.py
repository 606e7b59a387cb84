"""Nothing is said for long, and sound comes in spurts: the next command is heard as the first one would have been."""

import asyncio
import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tests.serve.conftest import start_web, talk
from tests.serve.test_barge_in import CLEAN
from tests.serve.test_resume import kept
from tml_jax import client
from tml_jax.client import media
from tml_jax.data import scenarios
from tml_jax.data.config import Behaviour, DataConfig
from tml_jax.data.director import Director
from tml_jax.data.speech_bank import SpeechBank
from tml_jax.data.timeline import AssistantSpeech, Conversation, user_sound
from tml_jax.data.voices import Cast
from tml_jax.serve.bundle import load_bundle
from tml_jax.serve.server import ServerSettings
from tml_jax.streams.micro_turn import StreamSpec
from tml_jax.wire import events, messages, protos
from tml_jax.wire.journal import onset_ms
from tml_jax.wire.pcm import to_pcm

RATE = 16_000
TURN = RATE // 5
LOUD = 10 ** (-30 / 20)  # the voice lies around -18 dBFS, its pauses counted at -22
QUIET = {
    "zeros": lambda size: np.zeros(size),
    "noise of -90 dB": lambda size: 10 ** (-90 / 20) * np.random.default_rng(0).standard_normal(size),
    "a microphone's offset": lambda size: np.full(size, 0.5),
}


def directed(scenario: Callable[[Director], None], spec: StreamSpec, *seed: int) -> Director:
    """What a voice that the model never heard asks for, in a quiet room, and what the model should do."""
    bank = SpeechBank.load("checkpoints/speech_bank")
    config = DataConfig(bank=str(bank.path), acoustics=CLEAN, behaviour=Behaviour(backchannel_share=0.0))
    cast = Cast(config, bank, "heldout")
    rng = np.random.default_rng(seed)
    director = Director(rng, config, spec, cast, cast.speakers[int(rng.integers(len(cast.speakers)))])
    director.limit = np.inf
    scenario(director)
    return director


def command(spec: StreamSpec, seed: int) -> tuple[np.ndarray, str]:
    """A short one, and what the model should answer."""
    for number in itertools.count():
        director = directed(scenarios.command, spec, seed, number)
        if director.now < 8.0:
            break
    (answer,) = (event for event in director.events if isinstance(event, AssistantSpeech))
    conversation = Conversation(director.now, tuple(director.events), True, "command")
    return user_sound(conversation, spec), " ".join(word.text for word in answer.words)


def replies(recording: client.Recording) -> Iterator[tuple[list[int | None], float]]:
    """Of each reply, as it was played: how far into its micro-turns with words it is heard, and how loud it is."""
    said = {event["turn"] for event in recording.events if event["type"] == "word"}
    speaking = (event["turn"] for event in recording.events if event["type"] == "speak")
    for _, reply in itertools.groupby(enumerate(speaking), lambda pair: pair[1] - pair[0]):
        turns = [turn for _, turn in reply]
        played = {turn: recording.reply[TURN * (turn + 1) : TURN * (turn + 2)] for turn in turns}
        onsets = [onset_ms(played[turn], TURN / RATE) for turn in turns if turn in said]
        yield onsets, float(np.sqrt(np.mean(np.concatenate(list(played.values())) ** 2)))


@pytest.mark.parametrize("quiet_s", [20, pytest.param(600, marks=pytest.mark.soak)])
def test_a_command_after_a_long_silence_is_answered(run, quiet_s: int) -> None:
    """Public cases P11 and P12, with the shipped model: each word of the answer can be heard."""
    bundle = load_bundle("checkpoints/inkling_tiny")
    sound, answer = command(bundle.spec, seed=1)
    settings = ServerSettings(slots=len(QUIET), faster_than_real_time=True)

    def script(kind: str, seconds: int) -> client.Script:
        heard = QUIET[kind](seconds * RATE + len(sound))
        heard[-len(sound) :] += sound
        return client.Script(media.SoundFile(np.clip(heard, -1, 1).astype(np.float32)[:, None], RATE), tail_s=2.0)

    async def scenario() -> list[list[client.Recording]]:
        async with start_web(bundle, settings) as server:
            return [
                await asyncio.gather(*(talk(server.address, script(kind, seconds)) for kind in QUIET))
                for seconds in (2, quiet_s)
            ]

    for recordings in asyncio.run(scenario()):
        said = ["".join(e["text"] for e in one.events if e["type"] == "word").split() for one in recordings]
        assert said == [answer.split()] * len(QUIET)
        heard = [reply for one in recordings for reply in replies(one)]
        print(f"replies, RMS: {[round(level, 3) for _, level in heard]}")
        assert all(onsets and None not in onsets and level > LOUD for onsets, level in heard)
    step_ms = np.array([[e["ms"] for e in one.events if e["type"] == "step"] for one in recordings])
    first, last = (np.median(part, axis=1) for part in (step_ms[:, :100], step_ms[:, -100:]))
    print(f"{quiet_s} s; a step's median of the first and last 20 s: {first.round(1)} ms, {last.round(1)} ms")
    assert (last < 2 * first).all()


def test_time_goes_on_for_who_asks_for_beeps_and_then_sends_nothing_more(run) -> None:
    """Public case P10, with the shipped model: a muted microphone that sends no zeros either."""
    bundle = load_bundle("checkpoints/inkling_tiny")
    director = directed(scenarios.beeper, bundle.spec, 0)
    due = [one["at"] for one in director.expectations if one["kind"] == "timer"][:2]
    asked_s = 2 * due[0] - due[1]
    whole = user_sound(Conversation(director.now, tuple(director.events), True, "beeper"), bundle.spec)
    sound = whole[: round(asked_s * RATE)]
    config = protos.SessionConfig(sends_audio=True)

    async def scenario() -> list[events.Event]:
        told: list[events.Event] = []
        async with start_web(bundle, ServerSettings(slots=1)) as server, client.connect(server.address) as channel:
            call = protos.converse_method(channel)()
            await call.write(protos.ConverseRequest(config=config))
            for piece in np.array_split(to_pcm(sound), round(5 * asked_s)):
                await call.write(protos.ConverseRequest(audio=protos.AudioChunk(pcm=piece.tobytes())))
                await asyncio.sleep(len(piece) / RATE)
            while not told or not isinstance(told[-1], events.Turn) or told[-1].turn < 5 * (due[-1] + 1.0):
                told.append(messages.to_event(await call.read()))
            call.cancel()
        return told

    told = run(scenario())
    beeps_s = [event.start_ms / 1000 for event in told if isinstance(event, events.Words) and event.text == " beep"]
    np.testing.assert_allclose(beeps_s, due, atol=0.5)
    assert sum(event.silence_ms for event in told if isinstance(event, events.Turn)) > 1000 * (due[-1] - asked_s)


def test_sound_that_comes_in_spurts_is_what_it_would_be_in_a_steady_flow(serving, run) -> None:
    """Public case P9: a telephone's sound in pieces of 20 ms, and now and then 250 ms of nothing, made up for."""
    time_s = np.arange(4 * 8000) / 8000
    speech = np.random.default_rng(0).uniform(-0.9, 0.9, len(time_s)) * (time_s % 1.0 < 0.6)
    pieces = np.split((32767 * speech).astype("<i2"), 200)
    config = protos.SessionConfig(sends_audio=True, wants_audio=True, sample_rate=8000)

    async def send(address: str, spurt: int) -> list[tuple]:
        told: list[events.Event] = []
        async with client.connect(address) as channel:
            call = protos.converse_method(channel)()
            await call.write(protos.ConverseRequest(config=config))

            async def speak() -> None:
                for number, piece in enumerate(pieces):
                    if number % spurt == 0:
                        await asyncio.sleep(0.02 * spurt)
                    await call.write(protos.ConverseRequest(audio=protos.AudioChunk(pcm=piece.tobytes())))
                await call.done_writing()

            speaking = asyncio.create_task(speak())
            async for message in call:
                told.append(messages.to_event(message))
            await speaking
        return kept(told)

    async def scenario() -> list[list[tuple]]:
        async with serving(slots=2, real_time=True, late_ms=1000) as server:
            return await asyncio.gather(*(send(server.address, spurt) for spurt in (1, 13)))

    steady, spurts = run(scenario())
    assert sum(kind == "Words" for kind, *_ in steady) >= 3, "the model heard it"
    assert steady == spurts
