"""Sound files of any rate and number of channels."""

import numpy as np
import pytest
import soundfile

from tml_jax.streams import sound

TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(22_050) / 44_100)).astype(np.float32)


def test_other_rates_and_channels_become_mono_at_the_rate(tmp_path):
    path = tmp_path / "tone.flac"
    soundfile.write(path, np.stack([TONE, 0 * TONE], axis=1), 44_100)
    samples = sound.read_sound(path, 16_000)
    assert samples.dtype == np.float32
    assert len(samples) == 8000
    wanted = 0.25 * np.sin(2 * np.pi * 440 * np.arange(8000) / 16_000)
    np.testing.assert_allclose(samples[200:-200], wanted[200:-200], atol=1e-3)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_written_sound_is_read_back(tmp_path, suffix):
    path = tmp_path / f"tone.{suffix}"
    sound.write_sound(path, 4 * TONE[::2], 16_000)
    back = sound.read_sound(path, 16_000)
    wanted = np.clip(4 * TONE[::2], -1, 1)
    assert len(back) == len(wanted)
    assert np.sqrt(np.mean((back - wanted) ** 2)) < 0.05  # Vorbis is lossy


def test_unreadable_sounds_are_one_clear_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"^There is no sound file .*none.wav'\.$"):
        sound.read_sound(tmp_path / "none.wav", 16_000)
    (tmp_path / "text.wav").write_text("not a sound")
    with pytest.raises(ValueError, match=r"text.wav' cannot be read as sound: .*[^.]\.$"):
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
