"""Changes of voice: each moves what it says it moves, and leaves the rest."""

import dataclasses

import numpy as np
import pytest
import scipy.signal

from tml_jax.data import augment
from tml_jax.data.config import Acoustics
from tml_jax.data.timeline import SpokenWord

RATE = augment.RATE
PITCH = 125.0
RESONANCES = (700.0, 1800.0)
PLAIN = augment.Voice(pitch=1.0, formants=1.0, pace=1.0, level_db=-20.0, swell_db=0.0, impulse=None)


@pytest.fixture(scope="module")
def vowel() -> np.ndarray:
    """A second of a pulse train of `PITCH` through two resonances."""
    sound = np.zeros(RATE)
    sound[:: round(RATE / PITCH)] = 1.0
    for centre in RESONANCES:
        sound = scipy.signal.lfilter(*scipy.signal.iirpeak(centre, centre / 120, fs=RATE), sound) + 0.02 * sound
    return (0.3 * sound / np.abs(sound).max()).astype(np.float32)


def spectrum(sound: np.ndarray) -> np.ndarray:
    """Power by Hz, smoothed over the harmonics."""
    _, power = scipy.signal.welch(sound, RATE, nperseg=RATE // 2, nfft=RATE)
    return power


def peak(sound: np.ndarray, low: float, high: float) -> float:
    """Where the strongest hill of the envelope lies between two frequencies."""
    smooth = np.convolve(spectrum(sound), np.hanning(2 * round(PITCH)), "same")
    return low + float(np.argmax(smooth[round(low) : round(high)]))


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_formants_move_and_the_pitch_stays(vowel, factor):
    moved = augment.shift_formants(vowel, factor)
    assert moved.shape == vowel.shape
    centre = RESONANCES[1]
    assert peak(vowel, 1200, 2600) == pytest.approx(centre, abs=80)
    assert peak(moved, 1200, 2600) == pytest.approx(centre * factor, abs=100)
    power = spectrum(moved)
    harmonics = power[round(PITCH) : 3000 : round(PITCH)].sum()
    between = power[round(1.5 * PITCH) : 3000 : round(PITCH)].sum()
    assert harmonics > 50 * between


def test_a_factor_of_one_changes_nothing(vowel):
    inner = slice(512, -512)
    np.testing.assert_allclose(augment.shift_formants(vowel, 1.0)[inner], vowel[inner], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "rate"),
    [({"pitch": 1.2}, 1.2), ({"pace": 0.8}, 0.8), ({"formants": 1.2}, 1.0), ({"swell_db": 5.0}, 1.0)],
)
def test_words_follow_their_sound(change, rate):
    sound = np.zeros(RATE, np.float32)
    sound[6000:10_000] = 0.2 * np.random.default_rng(0).normal(size=4000)
    words = (SpokenWord("a", 6000 / RATE, 10_000 / RATE),)
    voice = dataclasses.replace(PLAIN, **change)
    changed, (word,) = augment.change_voice(sound, words, voice, np.random.default_rng(0))
    assert len(changed) / RATE == pytest.approx(1 / rate, rel=0.02)
    assert (word.start_s, word.end_s) == pytest.approx((0.375 / rate, 0.625 / rate), rel=0.02)
    loud = np.flatnonzero(np.abs(changed) > 0.05) / RATE
    assert (loud[0], loud[-1]) == pytest.approx((word.start_s, word.end_s), abs=0.03)


def test_swell_wanders_within_a_clip(vowel):
    voice = dataclasses.replace(PLAIN, swell_db=5.0)
    long = np.tile(vowel, 4)
    changed, _ = augment.change_voice(long, (), voice, np.random.default_rng(0))
    level = 20 * np.log10(np.sqrt(np.mean(np.square(changed.reshape(16, -1)), axis=1)))
    plain, _ = augment.change_voice(long, (), PLAIN, np.random.default_rng(0))
    even = 20 * np.log10(np.sqrt(np.mean(np.square(plain.reshape(16, -1)), axis=1)))
    assert np.std(even) < 0.3 and 1.5 < np.std(level) < 8
    assert np.abs(changed).max() <= 1


def test_microphones_lack_the_lows_and_delay_nothing():
    microphones = augment.make_microphones(Acoustics(num_microphones=8), 0)
    response = 10 * np.log10(np.abs(np.fft.rfft(microphones, RATE, axis=1)) ** 2 + 1e-12)
    assert np.all(response[:, 20:60].mean(axis=1) < response[:, 300:4000].mean(axis=1) - 3)
    assert np.std(response[:, 500], axis=0) > 1  # no two are alike
    energy = np.cumsum(microphones**2, axis=1)
    assert np.all(energy[:, RATE // 500] > 0.8 * energy[:, -1])  # within 2 ms


def test_training_goes_further_than_measuring():
    rng, plain, strong = np.random.default_rng(0), Acoustics(), Acoustics(formants_share=1.0, swell_share=1.0)
    rooms, microphones = augment.make_rooms(plain, 0), augment.make_microphones(plain, 0)
    draws = [augment.draw_voice(rng, plain, rooms, microphones) for _ in range(50)]
    assert all(v.formants == pytest.approx(1.0) and v.swell_db == 0 for v in draws)
    draws = [augment.draw_voice(rng, strong, rooms, microphones) for _ in range(200)]
    assert np.std([v.formants for v in draws]) > 0.05 and max(v.swell_db for v in draws) > 4
    assert all(0.74 < v.formants * v.pitch < 1.36 and 0.74 < v.pace * v.pitch < 1.36 for v in draws)
