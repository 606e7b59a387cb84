"""How a user sounds: pitch, pace, room, telephone, level and noise, drawn once a conversation.

Everything here runs for each training conversation, so what can be made once is: rooms and long noises are built
at the first use from the seed, and a conversation takes a stretch of them.
"""

import dataclasses
import functools

import numpy as np
import scipy.fft
import scipy.signal

from tml_jax.data.config import Acoustics
from tml_jax.data.timeline import SpokenWord

RATE = 16_000
_NOISE_S = 40  # length of the prepared noises
_KINDS = ("white", "pink", "hum", "babble")


@dataclasses.dataclass(frozen=True)
class Voice:
    """How the sound of one user is changed throughout a conversation."""

    pitch: float  # > 1: higher and faster
    pace: float  # > 1: faster
    level_db: float  # dBFS of the speech
    impulse: np.ndarray | None  # room and telephone


def draw_voice(rng: np.random.Generator, config: Acoustics, rooms: np.ndarray) -> Voice:
    """Draws one user's sound.

    Args:
      rng: the draws.
      config: ranges.
      rooms: impulse responses [num_rooms, samples], from `make_rooms`.
    """
    pitch = rng.uniform(*config.pitch) if rng.random() < config.pitch_share else 1.0
    pace = rng.uniform(*config.pace) if rng.random() < config.pace_share else 1.0
    pace = float(np.clip(pace, 0.8 / pitch, 1.3 / pitch))  # both together stay within speech that people produce
    impulse = rooms[rng.integers(len(rooms))] if rng.random() < config.room_share else None
    if rng.random() < config.telephone_share:
        band = telephone_band()
        impulse = band if impulse is None else scipy.signal.fftconvolve(impulse, band).astype(np.float32)
    return Voice(float(pitch), pace, float(rng.uniform(*config.level)), impulse)


def change_voice(
    audio: np.ndarray, words: tuple[SpokenWord, ...], voice: Voice
) -> tuple[np.ndarray, tuple[SpokenWord, ...]]:
    """Applies pitch, pace and level to a clip; the words' times follow. The room comes last, see `place`."""
    rate = 1.0
    if voice.pitch != 1.0:
        audio, rate = resample(audio, voice.pitch)
    if abs(voice.pace - 1.0) > 0.01:
        audio = stretch(audio, voice.pace)
        rate *= voice.pace
    words = tuple(SpokenWord(word.text, word.start_s / rate, word.end_s / rate) for word in words)
    return set_level(audio, voice.level_db), words


def place(audio: np.ndarray, voice: Voice) -> np.ndarray:
    """The clip as the microphone gets it: with its room and its telephone. The direct sound keeps its place."""
    if voice.impulse is None:
        return audio
    return scipy.signal.oaconvolve(audio, voice.impulse).astype(np.float32)


def resample(audio: np.ndarray, factor: float) -> tuple[np.ndarray, float]:
    """Plays the clip `factor` times faster, pitch included (band-limited); also returns the exact factor."""
    length = scipy.fft.next_fast_len(len(audio), real=True)
    new_length = scipy.fft.next_fast_len(round(length / factor), real=True)
    spectrum = scipy.fft.rfft(audio, length)
    bins = new_length // 2 + 1
    if bins < len(spectrum):
        spectrum = spectrum[:bins]
    changed = scipy.fft.irfft(spectrum, new_length) * (new_length / length)
    exact = length / new_length
    return changed[: round(len(audio) / exact)].astype(np.float32), exact


def stretch(audio: np.ndarray, pace: float) -> np.ndarray:
    """Plays the clip `pace` times faster at its own pitch: WSOLA (Verhelst and Roelands, 1993)."""
    frame, hop, reach = 512, 256, 128
    count = max(1, round(len(audio) / pace) // hop)
    padded = np.pad(audio, (reach, frame + 2 * reach + hop))
    window = np.hanning(frame + 1)[:-1].astype(np.float32)
    out = np.zeros(count * hop + frame, np.float32)
    at = reach
    for i in range(count):
        if i:
            wanted = padded[at + hop : at + hop + frame]  # what would follow without a jump
            around = min(reach + round(i * hop * pace), len(padded) - frame - reach)
            region = padded[around - reach : around + reach + frame]
            if len(wanted) < frame:
                break
            at = around - reach + int(np.argmax(np.correlate(region, wanted, "valid")))
        out[i * hop : i * hop + frame] += window * padded[at : at + frame]
    return out[: round(len(audio) / pace)]


def set_level(audio: np.ndarray, level_db: float) -> np.ndarray:
    """Scales a clip so that its louder half has this mean level in dBFS, without clipping."""
    blocks = audio[: len(audio) // 320 * 320].reshape(-1, 320)
    power = np.sort(np.mean(np.square(blocks), axis=1))[len(blocks) // 2 :] if len(blocks) else np.zeros(1)
    gain = 10 ** (level_db / 20) / np.sqrt(max(float(np.mean(power)), 1e-12))
    peak = float(np.max(np.abs(audio), initial=1e-9))
    return (audio * min(gain, 0.99 / peak)).astype(np.float32)


@functools.lru_cache(maxsize=1)
def telephone_band() -> np.ndarray:
    """A band from 300 to 3400 Hz, minimum phase so that the sound keeps its place."""
    band = scipy.signal.firwin(255, [300, 3400], fs=RATE, pass_zero=False)
    return scipy.signal.minimum_phase(band, half=False).astype(np.float32)


@functools.lru_cache(maxsize=4)
def make_rooms(config: Acoustics, seed: int) -> np.ndarray:
    """Impulse responses [num_rooms, samples]: the direct sound, a few reflections, an exponential tail."""
    rng = np.random.default_rng((seed, 1))
    length = int(config.reverberation_s[1] * RATE)
    times = np.arange(length) / RATE
    rooms = np.zeros((config.num_rooms, length), np.float32)
    for room in rooms:
        rt60 = rng.uniform(*config.reverberation_s)
        tail = rng.standard_normal(length) * 10 ** (-3 * times / rt60)
        tail[: int(rng.uniform(0.004, 0.02) * RATE)] = 0
        tail = scipy.signal.lfilter([1 - 0.4], [1, -0.4], tail)  # walls swallow the highs
        reflections = np.zeros(length)
        at = (rng.uniform(0.001, 0.02, 6) * RATE).astype(int)
        reflections[at] = rng.uniform(0.1, 0.6, 6) * rng.choice([-1, 1], 6)
        direct_to_tail = rng.uniform(0.15, 1.0)
        room[:] = reflections + tail / np.sqrt(np.sum(tail**2)) * direct_to_tail
        room[0] = 1.0
    return rooms


def make_noises(seed: int, babble: np.ndarray) -> dict[str, np.ndarray]:
    """Long noises of unit power: white, pink, hum, and `babble` (float32, any length) as it is given."""
    rng = np.random.default_rng((seed, 2))
    length = _NOISE_S * RATE
    spectrum = scipy.fft.rfft(rng.standard_normal(length))
    frequency = np.maximum(scipy.fft.rfftfreq(length, 1 / RATE), 20.0)
    times = np.arange(length) / RATE
    hum = sum(np.sin(2 * np.pi * 50.3 * n * times + n) / n**1.5 for n in range(1, 12))
    noises = {
        "white": rng.standard_normal(length),
        "pink": scipy.fft.irfft(spectrum / np.sqrt(frequency), length),
        "hum": hum + 0.05 * rng.standard_normal(length),
        "babble": babble,
    }
    assert tuple(noises) == _KINDS
    return {
        kind: (noise / np.sqrt(np.mean(np.square(noise)) + 1e-12)).astype(np.float32) for kind, noise in noises.items()
    }


def draw_noise(rng: np.random.Generator, noises: dict[str, np.ndarray], length: int, level_db: float) -> np.ndarray:
    """A stretch of one kind of noise at a level in dBFS, swelling slowly."""
    noise = noises[_KINDS[rng.choice(len(_KINDS), p=(0.25, 0.35, 0.15, 0.25))]]
    start = rng.integers(len(noise))
    stretch_ = np.take(noise, np.arange(start, start + length), mode="wrap")
    swell = np.interp(np.arange(length), np.linspace(0, length, 6), 10 ** (rng.uniform(-4, 2, 6) / 20))
    return (stretch_ * swell * 10 ** (level_db / 20)).astype(np.float32)
