"""How a user sounds: voice, pace, level, room, microphone and noise, drawn once a conversation.

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

    pitch: float  # > 1: higher and faster, by a smaller person
    formants: float  # > 1: by a smaller person, at the same pitch
    pace: float  # > 1: faster
    level_db: float  # dBFS of the speech
    swell_db: float  # how far its level wanders within a clip
    impulse: np.ndarray | None  # room, microphone and telephone


def draw_voice(rng: np.random.Generator, config: Acoustics, rooms: np.ndarray, microphones: np.ndarray) -> Voice:
    """Draws one user's sound.

    Args:
      rng: the draws.
      config: ranges.
      rooms, microphones: impulse responses [n, samples], from `make_rooms` and `make_microphones`.
    """
    pitch = rng.uniform(*config.pitch) if rng.random() < config.pitch_share else 1.0
    formants = rng.uniform(*config.formants) if rng.random() < config.formants_share else 1.0
    formants = float(np.clip(formants, 0.75 / pitch, 1.35 / pitch))  # both together stay within what people are
    pace = rng.uniform(*config.pace) if rng.random() < config.pace_share else 1.0
    pace = float(np.clip(pace, 0.75 / pitch, 1.35 / pitch))
    swell = float(rng.uniform(0, config.swell)) if rng.random() < config.swell_share else 0.0
    responses = []
    if rng.random() < config.room_share:
        responses.append(rooms[rng.integers(len(rooms))])
    if rng.random() < config.microphone_share:
        responses.append(microphones[rng.integers(len(microphones))])
    if rng.random() < config.telephone_share:
        responses.append(telephone_band())
    impulse = functools.reduce(scipy.signal.fftconvolve, responses).astype(np.float32) if responses else None
    return Voice(float(pitch), formants, pace, float(rng.uniform(*config.level)), swell, impulse)


def change_voice(
    audio: np.ndarray, words: tuple[SpokenWord, ...], voice: Voice, rng: np.random.Generator
) -> tuple[np.ndarray, tuple[SpokenWord, ...]]:
    """Applies voice, pace and level to a clip; the words' times follow. The room comes last, see `place`."""
    rate = 1.0
    if voice.pitch != 1.0:
        audio, rate = resample(audio, voice.pitch)
    if abs(voice.formants - 1.0) > 0.01:
        audio = shift_formants(audio, voice.formants)
    if abs(voice.pace - 1.0) > 0.01:
        audio = stretch(audio, voice.pace)
        rate *= voice.pace
    words = tuple(SpokenWord(word.text, word.start_s / rate, word.end_s / rate) for word in words)
    audio = set_level(audio, voice.level_db)
    if voice.swell_db:
        points = np.arange(0, len(audio) + RATE // 3, RATE // 3)
        gain = 10 ** (np.interp(np.arange(len(audio)), points, rng.normal(0, voice.swell_db, len(points))) / 20)
        audio = np.clip(audio * gain, -1, 1).astype(np.float32)
    return audio, words


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


def shift_formants(audio: np.ndarray, factor: float) -> np.ndarray:
    """Moves the resonances up by `factor` and leaves the pitch: the spectrum's envelope is stretched.

    The envelope of each 32 ms is the spectrum's logarithm without the fast part of its cepstrum.
    """
    size, hop, kept = 512, 128, 24
    window = np.sqrt(np.hanning(size + 1)[:-1]).astype(np.float32)
    padded = np.pad(audio.astype(np.float32), (size - hop, size + -len(audio) % hop))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop] * window
    spectrum = scipy.fft.rfft(frames, axis=1)
    log = np.log(np.abs(spectrum) + 1e-4)
    cepstrum = scipy.fft.irfft(log, axis=1)
    cepstrum[:, kept : size - kept + 1] = 0
    envelope = scipy.fft.rfft(cepstrum, axis=1).real
    at = np.minimum(np.arange(envelope.shape[1]) / factor, envelope.shape[1] - 1)
    low = np.minimum(at.astype(int), envelope.shape[1] - 2)
    moved = envelope[:, low] + (at - low) * (envelope[:, low + 1] - envelope[:, low])
    changed = spectrum * np.exp(np.clip(moved - envelope, -4, 4)).astype(np.float32)
    frames = scipy.fft.irfft(changed, size, axis=1) * window
    out = np.zeros(len(padded), np.float32)
    for i in range(size // hop):  # frames that are this far apart do not overlap
        rows = frames[i :: size // hop]
        out[i * hop : i * hop + rows.size] += rows.ravel()
    return out[size - hop : size - hop + len(audio)] * np.float32(2 * hop / size)


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
def make_microphones(config: Acoustics, seed: int) -> np.ndarray:
    """Impulse responses [num_microphones, samples]: no lows, a few broad hills, an end to the highs; minimum phase."""
    rng = np.random.default_rng((seed, 4))
    edges = np.array([0, 150, 300, 600, 1200, 2400, 4000, 5600, 8000.0])
    microphones = []
    for _ in range(config.num_microphones):
        gain_db = rng.normal(0, 4, len(edges))
        gain_db[0] -= rng.uniform(6, 30)
        gain_db[-1] -= rng.uniform(0, 20)
        band = scipy.signal.firwin2(255, edges, 10 ** (gain_db / 20), fs=RATE)
        response = scipy.signal.minimum_phase(band, half=False)
        microphones.append(response / np.sqrt(np.sum(response**2)))
    return np.array(microphones, np.float32)


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
