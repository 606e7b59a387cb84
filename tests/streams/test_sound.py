"""Sound files of any format, rate and number of channels, and live sound of any rate."""

import struct

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from tml_jax.streams import sound

TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(22_050) / 44_100)).astype(np.float32)


def wanted(samples: int, amplitude: float) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * 440 * np.arange(samples) / 16_000)


def test_other_rates_and_channels_become_mono_at_the_rate(tmp_path):
    path = tmp_path / "tone.flac"
    soundfile.write(path, np.stack([TONE, 0 * TONE], axis=1), 44_100)
    samples = sound.read_sound(path, 16_000)
    assert samples.dtype == np.float32
    assert len(samples) == 8000
    np.testing.assert_allclose(samples[200:-200], wanted(8000, 0.25)[200:-200], atol=1e-3)


@pytest.mark.parametrize(
    ("form", "subtype", "atol"),
    [
        ("WAV", "PCM_16", 1e-4),
        ("WAVEX", "PCM_24", 1e-5),
        ("WAV", "PCM_32", 1e-5),
        ("WAV", "FLOAT", 1e-5),
        ("WAVEX", "DOUBLE", 1e-5),
        ("WAV", "PCM_U8", 1e-2),
        ("WAV", "ULAW", 3e-2),
        ("WAV", "ALAW", 3e-2),
        ("RF64", "PCM_16", 1e-4),
        ("AIFF", "PCM_16", 1e-4),
        ("OGG", "VORBIS", 5e-2),
        ("OGG", "OPUS", 5e-2),
        ("MP3", "MPEG_LAYER_III", 5e-2),
    ],
)
def test_every_kind_of_file_holds_the_same_sound(tmp_path, form, subtype, atol):
    path = tmp_path / f"tone.{form.lower()}"
    soundfile.write(path, wanted(16_000, 0.5), 16_000, format=form, subtype=subtype)
    samples = sound.read_sound(path, 16_000)
    assert abs(len(samples) - 16_000) <= 1200
    np.testing.assert_allclose(samples[1000:14_000], wanted(16_000, 0.5)[1000:14_000], atol=atol)


@pytest.mark.parametrize(("suffix", "codec", "rate"), [("m4a", "aac", 16_000), ("webm", "libopus", 48_000)])
def test_what_phones_and_browsers_record_is_read(tmp_path, suffix, codec, rate):
    path = tmp_path / f"tone.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        whole = (0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)).astype(np.float32)
        for piece in np.split(whole, 50):
            frame = av.AudioFrame.from_ndarray(piece[None], format="flt", layout="mono")
            frame.sample_rate = rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    samples = sound.read_sound(path, 16_000)
    assert abs(len(samples) - 16_000) < 1500
    assert np.std(samples[2000:14_000]) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_a_wav_written_to_a_pipe_is_read_to_its_end(tmp_path, size):
    path = tmp_path / "piped.wav"
    soundfile.write(path, TONE, 16_000)
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[4:8] = data[at : at + 4] = struct.pack("<I", size)
    path.write_bytes(data)
    np.testing.assert_allclose(sound.read_sound(path, 16_000), TONE, atol=1e-4)


def test_a_broadcast_wav_is_read(tmp_path):
    path = tmp_path / "bwf.wav"
    soundfile.write(path, TONE, 16_000)
    data = path.read_bytes()
    bext = b"bext" + struct.pack("<I", 602) + bytes(602)
    whole = data[12:36] + bext + data[36:]
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(whole)) + b"WAVE" + whole)
    np.testing.assert_allclose(sound.read_sound(path, 16_000), TONE, atol=1e-4)


def test_raw_telephone_prompts_are_read(tmp_path):
    path = tmp_path / "prompt.g722"
    path.write_bytes(bytes(8000))  # 64 kbit/s
    assert len(sound.read_sound(path, 16000)) == pytest.approx(16000, abs=100)


@pytest.mark.parametrize("form", ["WAV", "WAVEX"])
@pytest.mark.parametrize(("channel", "level"), [(0, 0.5), (2, 1.0), (3, 0.0), (4, 0.25)])
def test_the_centre_of_surround_sound_comes_at_its_own_level(tmp_path, form, channel, level):
    six = np.zeros((16_000, 6))
    six[:, channel] = wanted(16_000, 0.4)
    soundfile.write(tmp_path / "surround.wav", six, 16_000, format=form)
    samples = sound.read_sound(tmp_path / "surround.wav", 16_000)
    np.testing.assert_allclose(samples, level * wanted(16_000, 0.4), atol=1e-3)


def test_a_sound_that_starts_after_the_video_beside_it_is_preceded_by_silence(tmp_path):
    path = tmp_path / "late.mkv"
    with av.open(str(path), "w") as container:
        video, audio = container.add_stream("mpeg4", rate=10), container.add_stream("pcm_s16le", rate=16_000)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        audio.layout = "mono"
        for _ in range(10):
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(video.encode())
        for start in (4000, 12_000):  # and there is a gap in it
            frame = av.AudioFrame.from_ndarray(np.full((1, 4000), 8192, np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 16_000, start
            container.mux(audio.encode(frame))
        container.mux(audio.encode())
    loud = np.repeat([0.0, 0.25, 0.0, 0.25], 4000)
    samples = sound.read_sound(path, 16_000)
    assert len(samples) == pytest.approx(16_000, abs=16)
    np.testing.assert_allclose(samples, loud[: len(samples)], atol=1e-3)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_written_sound_is_read_back(tmp_path, suffix):
    path = tmp_path / f"tone.{suffix}"
    sound.write_sound(path, 4 * TONE[::2], 16_000)
    back = sound.read_sound(path, 16_000)
    clipped = np.clip(4 * TONE[::2], -1, 1)
    assert len(clipped) <= len(back) < len(clipped) + 256 * (suffix == "ogg") + 1  # its last block is whole
    assert np.sqrt(np.mean((back[: len(clipped)] - clipped) ** 2)) < 0.05  # Vorbis is lossy


def test_unreadable_sounds_are_one_clear_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"^There is no sound file .*none.wav'\.$"):
        sound.read_sound(tmp_path / "none.wav", 16_000)
    (tmp_path / "text.wav").write_text("not a sound")
    with pytest.raises(ValueError, match=r"text.wav' cannot be read as sound \(.*\): is it damaged"):
        sound.read_sound(tmp_path / "text.wav", 16_000)
    soundfile.write(tmp_path / "empty.wav", TONE[:0], 16_000)
    with pytest.raises(ValueError, match="is empty"):
        sound.read_sound(tmp_path / "empty.wav", 16_000)
    soundfile.write(tmp_path / "nan.wav", np.array([0, np.nan]), 16_000, subtype="FLOAT")
    with pytest.raises(ValueError, match="not numbers"):
        sound.read_sound(tmp_path / "nan.wav", 16_000)


def test_sound_that_cannot_be_written_is_one_clear_sentence(tmp_path):
    for name in ("tone.xyz", "no/such/folder/tone.wav"):
        with pytest.raises(ValueError, match="cannot be written"):
            sound.write_sound(tmp_path / name, TONE, 16_000)


@settings(deadline=None, max_examples=20)
@given(
    st.sampled_from([4000, 8000, 11_025, 22_050, 44_100, 44_101, 48_000, 192_000]),
    st.lists(st.integers(0, 4000), min_size=1, max_size=20),
)
def test_live_resampling_is_that_of_the_whole_bit_for_bit(rate, sizes):
    samples = np.random.default_rng(0).uniform(-1, 1, sum(sizes) + rate // 10).astype(np.float32)
    stream = sound.Resampler(rate, 16_000)
    pieces = [stream.push(piece) for piece in np.split(samples, np.cumsum(sizes))]
    ready, whole = sum(map(len, pieces)), sound.resample(samples, rate, 16_000)
    np.testing.assert_array_equal(np.concatenate([*pieces, stream.flush()]), whole)
    assert len(whole) == pytest.approx(len(samples) * 16_000 / rate, abs=1.01)
    assert (len(samples) / rate - ready / 16_000) < sound.LOOK_AHEAD_S + 0.0005


@pytest.mark.parametrize("rate", [8000, 22_050, 44_100, 48_000])
def test_resampled_sound_is_the_sound_itself_without_delay(rate):
    frequencies, time_s = (200.0, 1000.0, 3000.0), np.arange(rate) / rate
    tones = sum(0.2 * np.sin(2 * np.pi * f * time_s) for f in frequencies)
    truth = sum(0.2 * np.sin(2 * np.pi * f * np.arange(16_000) / 16_000) for f in frequencies)
    np.testing.assert_allclose(sound.resample(tones, rate, 16_000)[200:-200], truth[200:-200], atol=1e-4)


def test_what_16_khz_cannot_hold_does_not_come_back_as_something_else():
    tone = np.sin(2 * np.pi * 10_000 * np.arange(48_000) / 48_000)
    assert np.abs(sound.resample(tone, 48_000, 16_000)[200:-200]).max() < 1e-3
