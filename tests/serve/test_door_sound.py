"""Sound as OpenAI's protocols write it."""

import base64
import json
from collections.abc import Iterable
from typing import Any

import av
import numpy as np
import pytest
from websockets.asyncio.client import connect

from tests.serve.conftest import bursts, start_web
from tests.serve.fakes import SPEC
from tml_jax.serve import intake
from tml_jax.serve.doors import protocol
from tml_jax.serve.doors.audio import AudioEncoder, AudioFormat
from tml_jax.serve.server import ServerSettings
from tml_jax.streams.sound import resample
from tml_jax.wire.pcm import from_pcm


@pytest.mark.parametrize(("kind", "codec"), [("audio/pcmu", "pcm_mulaw"), ("audio/pcma", "pcm_alaw")])
def test_g711_is_ffmpegs(kind: str, codec: str) -> None:
    form, codes = AudioFormat(kind, 8000), bytes(range(256))
    decoder: Any = av.CodecContext.create(codec, "r")
    decoder.sample_rate, decoder.layout = 8000, "mono"
    (frame,) = decoder.decode(av.Packet(codes))
    read = np.frombuffer(form.decode(base64.b64encode(codes).decode()), "<i2")
    assert np.array_equal(read, frame.to_ndarray().ravel())
    samples = np.arange(-32000, 32000, 7, dtype=np.int16).astype(np.float32) / 32767
    written = np.frombuffer(form.decode(protocol.to_base64(AudioEncoder(form, 8000).push(samples))), "<i2")
    steps = np.diff(np.unique(read).astype(int))
    assert (np.abs(written - samples * 32767) <= 0.5 + steps.max() / 2).all()
    small = np.abs(samples * 32767) < 60  # where a step is 16 at most
    assert (np.abs(written - samples * 32767)[small] <= 8.5).all()
    assert set(AudioEncoder(form, 8000).push(np.zeros(160, np.float32))) == {{"audio/pcmu": 0xFF}.get(kind, 0xD5)}


@pytest.mark.parametrize("rate", [8000, 16_000, 24_000])
def test_sound_in_pieces_is_the_whole_a_little_later_and_silence_is_zero(rate: int) -> None:
    form = AudioFormat("audio/pcm", rate) if rate > 8000 else AudioFormat("audio/pcmu", rate)
    encoder = AudioEncoder(form, 16_000)
    sound = (0.2 * np.random.default_rng(0).standard_normal(16_000)).astype(np.float32)
    sent = np.concatenate([sound, np.zeros(6400, np.float32)])
    pieces = [form.decode(protocol.to_base64(encoder.push(sent[i : i + 1600]))) for i in range(0, len(sent), 1600)]
    assert {len(piece) for piece in pieces} == {rate // 10 * 2}, "each frame is as long as what went in"
    heard = from_pcm(b"".join(pieces))
    delay = 0 if rate == 16_000 else round(intake.DELAY_S * 16_000)
    whole = resample(np.concatenate([np.zeros(delay, np.float32), sent]), 16_000, rate)[: len(heard)]
    assert np.abs(heard - whole).max() < (1e-4 if rate > 8000 else 0.02)
    assert not np.frombuffer(pieces[-1], "<i2").any()


@pytest.mark.parametrize("form", [AudioFormat(), AudioFormat("audio/pcmu", 8000)])
def test_sound_that_comes_in_pieces_is_the_whole_to_the_model(form: AudioFormat) -> None:
    time_s = np.arange(2 * form.rate) / form.rate
    sweep = np.sin(2 * np.pi * (200 + 700 * time_s) * time_s).astype(np.float32) * (time_s % 0.5 < 0.35)
    sent = AudioEncoder(form, form.rate).push(sweep)
    size = form.rate // 50 * (2 if form.type == "audio/pcm" else 1)
    pieces = [form.decode(protocol.to_base64(sent[at : at + size])) for at in range(0, len(sent), size)]
    heard = intake.SoundIntake(intake.SoundFormat(form.rate), SPEC)
    got = np.concatenate([heard.push(piece) for piece in pieces] + [heard.flush()])
    whole = np.frombuffer(form.decode(protocol.to_base64(sent)), "<i2").astype(np.float32) / 32768
    delay = round(16_000 * intake.DELAY_S)
    assert not got[:delay].any()
    assert np.array_equal(got[delay:], resample(whole, form.rate, 16_000))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"RIFF\x24\0\0\0WAVEfmt ", "a WAV file"),
        (b"OggS\0\2", "an Ogg file"),
        (b"fLaC\0\0", "a FLAC file"),
        (b"ID3\3", "an MP3 file"),
        (b"\x1aE\xdf\xa3\1", "a WebM or Matroska file"),
        (b"", "is empty"),
        (b"123", "3 bytes is not a whole number of 16-bit samples"),
    ],
)
def test_audio_that_is_none_is_named(data: bytes, sentence: str) -> None:
    with pytest.raises(intake.BadInputError, match=sentence):
        AudioFormat().decode(base64.b64encode(data).decode())


@pytest.mark.parametrize("door", ["live/sessions", "realtime"])
def test_pieces_that_are_refused_shift_nothing_and_pieces_may_have_any_length(bundle, run, door: str) -> None:
    """Public case P8: 1,323 bytes, none at all, 10 ms, and 5 s at once: the model hears what is whole, to the bit."""
    rate = 24_000
    pcm = bursts(8.0, seed=4, rate=rate).pcm().tobytes()
    ms = rate * 2 // 1000
    small = [pcm[at : at + 10 * ms] for at in range(0, 3000 * ms, 10 * ms)]
    kind = "input_audio_buffer.append" if door == "realtime" else "session.input_audio.append"
    said = "response.output_audio_transcript.delta" if door == "realtime" else "session.output_transcript.delta"

    async def talk(pieces: Iterable[bytes]) -> tuple[list[str], list[str]]:
        words, errors = list[str](), list[str]()
        settings = ServerSettings(http_address="127.0.0.1:0", faster_than_real_time=True)
        async with (
            start_web(bundle, settings) as server,
            connect(f"{server.base_url.replace('http', 'ws')}/{door}", max_size=None) as socket,
        ):
            if door != "realtime":
                await socket.send(json.dumps({"type": "session.start", "session": {"model": "m"}}))
            for piece in pieces:
                await socket.send(json.dumps({"type": kind, "audio": base64.b64encode(piece).decode()}))
            while len(words) < 7:
                event = json.loads(await socket.recv())
                words += [event["delta"]] if event["type"] == said else []
                errors += [event["error"]["message"]] if event["type"] == "error" else []
        return words, errors

    async def scenario() -> tuple[tuple[list[str], list[str]], ...]:
        whole = [pcm[at : at + 1000 * ms] for at in range(0, len(pcm), 1000 * ms)]
        odd = [*small[:50], pcm[:1323], *small[50:], b"", pcm[3000 * ms :]]
        return await talk(whole), await talk(odd)

    (wanted, none), (heard, errors) = run(scenario())
    assert not none and len(set(wanted)) > 2
    assert heard == wanted
    assert ["whole number" in errors[0], "empty" in errors[1], len(errors)] == [True, True, 2]
