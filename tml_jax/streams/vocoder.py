"""Mel frames to sound: the vocoder that the model's speech is played with.

All of a micro-turn's arithmetic is one compiled program, on the host's processor where JAX has it. In numpy it would be
three hundred calls, each of which gives up Python's lock and waits for it again: 3 ms of work take up to 200 where
other threads are busy.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from tml_jax.streams import spectrum, speech
from tml_jax.streams.micro_turn import StreamSpec

_LOUDEST = 10.0  # mel magnitude; more is no sound in [-1, 1]
_QUIET = (float(np.log10(2 * speech.FLOOR)) - speech.MEAN) / speech.STD  # frames below cost nothing where all is silent
_MOMENTUM = 0.5
_JOINT = 96  # samples over which a micro-turn's sound takes over from what the one before expected
_ITERATIONS = 12

_Program = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[jax.Array, jax.Array, jax.Array]]


class _Shape(NamedTuple):
    """Of a block: frames of the past whose windows are not all played, then a micro-turn's."""

    carried: int
    overlap: int  # samples of the carried frames
    frames: int
    samples: int


def _shape(spec: StreamSpec) -> _Shape:
    carried = spec.mel_window // spec.mel_hop - 1
    frames = carried + spec.mel_frames
    return _Shape(carried, carried * spec.mel_hop, frames, (frames - 1) * spec.mel_hop + spec.mel_window)


class _Filters(NamedTuple):
    weights: np.ndarray  # [bins of the FFT, mel bins]
    coverage: np.ndarray  # [bins of the FFT], 1 / sum of the filters over a bin; 0 where no filter looks

    def fit(self, magnitude: jax.Array, target: jax.Array) -> jax.Array:
        """Factors that bring magnitudes towards the mel magnitudes `target` (and keep them positive)."""
        present = jnp.matmul(magnitude, self.weights, precision="highest")
        wanted = target / jnp.maximum(present, 1e-8)
        return jnp.matmul(wanted, self.weights.T, precision="highest") * self.coverage


def _filters(spec: StreamSpec) -> _Filters:
    filters = spectrum.MelFilters(spec.mel_window, spec.mel_bins, spec.sample_rate, np.float32)
    total = filters.total
    coverage = np.divide(1, total, out=np.zeros_like(total), where=total > 1e-6 * total.max())
    return _Filters(filters.apply(np.eye(len(total), dtype=np.float32)), coverage)


def _fade(spec: StreamSpec) -> Float[np.ndarray, "overlap"]:
    """What is left of the squared windows beyond the last frame, where fewer of them cover a sample."""
    carried, overlap, _, _ = _shape(spec)
    window = spectrum.hann_window(spec.mel_window).astype(np.float32)
    squares = np.zeros(overlap, np.float32)
    for i in range(carried):
        squares[: (i + 1) * spec.mel_hop] += window[-(i + 1) * spec.mel_hop :] ** 2
    return squares / np.float32((window**2).sum() / spec.mel_hop)


def _magnitude(mel: jax.Array) -> jax.Array:
    """Mel magnitudes of normalised frames, 0 for silence; what is no number is silence."""
    log10 = jnp.where(jnp.isfinite(mel), mel, speech.SILENCE) * speech.STD + speech.MEAN
    return jnp.maximum(10 ** jnp.minimum(log10, np.log10(_LOUDEST)) - speech.FLOOR, 0)


@functools.lru_cache
def _program(spec: StreamSpec, num_iterations: int) -> _Program:
    """(carried magnitudes, past sound, mel frames) -> (the same two for the next micro-turn, sound)."""
    carried, overlap, count, size = _shape(spec)
    hop, length, filters, fade = spec.mel_hop, spec.mel_window, _filters(spec), _fade(spec)
    window = spectrum.hann_window(length).astype(np.float32)
    scale = np.full(size, spec.mel_hop / (window**2).sum(), np.float32)
    scale[-overlap:] /= np.maximum(fade, 0.1)
    angles = np.random.default_rng(0).uniform(0, 2 * np.pi, (count, length // 2 + 1))
    phases = np.exp(1j * angles).astype(np.complex64)  # where there is no sound to continue
    # What has been played stays; the sound goes on from it without a step.
    hold = np.concatenate([np.ones(overlap), np.linspace(1, 0, _JOINT + 1)[:-1]]).astype(np.float32)
    hold = np.pad(hold, (0, size - len(hold)))

    def spectra_of(sound: jax.Array) -> jax.Array:
        hops = sound.reshape(-1, hop)
        frames = jnp.concatenate([hops[j : j + count] for j in range(length // hop)], axis=1)
        return jnp.fft.rfft(frames * window)

    def sound_of(spectra: jax.Array, past: jax.Array) -> jax.Array:
        frames = jnp.fft.irfft(spectra, n=length) * window
        parts = frames.reshape(count, -1, hop)
        beside = [(j, size // hop - count - j) for j in range(length // hop)]
        sound = sum(jnp.pad(parts[:, j], (beside[j], (0, 0))) for j in range(length // hop))
        return jnp.reshape(sound, -1) * scale * (1 - hold) + past * hold

    def begin(past: jax.Array, target: jax.Array) -> jax.Array:
        """The spectra to begin with: smooth magnitudes, and the phases of the sound so far."""
        magnitude = filters.fit(jnp.ones(phases.shape, jnp.float32), target)
        spectra = spectra_of(past)
        present = jnp.abs(spectra)
        return magnitude * jnp.where(present > 1e-3 * magnitude, spectra / jnp.maximum(present, 1e-9), phases)

    def play(mel: jax.Array, past: jax.Array, new: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        target = jnp.concatenate([mel, _magnitude(new)])
        past = jnp.pad(past, (0, size - len(past)))

        def iterate(i: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            spectra, last = state
            now = spectra_of(sound_of(spectra, past))
            spectra = now - jnp.where(i == 0, 0, _MOMENTUM) * last
            magnitude = jnp.abs(now)
            magnitude *= filters.fit(magnitude, target) / jnp.maximum(jnp.abs(spectra), 1e-9)
            return spectra * magnitude, now

        spectra = begin(past, target)
        spectra, _ = jax.lax.fori_loop(0, num_iterations, iterate, (spectra, jnp.zeros_like(spectra)))
        sound = sound_of(spectra, past)
        return target[-carried:], sound[-2 * overlap :], jnp.clip(sound[overlap:-overlap], -1, 1)

    host = jax.sharding.SingleDeviceSharding(_host())
    shapes = ((carried, spec.mel_bins), (2 * overlap,), (spec.mel_frames, spec.mel_bins))
    given = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=host) for shape in shapes]
    return jax.jit(play).lower(*given).compile()


def _host() -> jax.Device:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS names others only
        return jax.local_devices()[0]


class Vocoder:
    """Mel frames -> sound, one micro-turn at a time, continuous from call to call, the same on every run.

    Each call solves for the part of the sound that its frames touch while what has been played stays fixed:
    a block of Griffin and Lim's iterations with momentum (N. Perraudin et al., 2013), like RTISI-LA (X. Zhu et al.,
    2007). The phases start from the sound so far. The magnitudes are estimated along with them: in every iteration
    those of the present sound, corrected to the mel magnitudes asked for. The mel filters cannot tell harmonics
    apart, but a consistent sound can.

    Sound comes `delay` samples (30 ms) late, so that every played sample has been seen by all windows over it.
    """

    def __init__(self, spec: StreamSpec, num_iterations: int = _ITERATIONS) -> None:
        """Makes one before any sound; the first of a spec compiles its program."""
        self._spec, self._program = spec, _program(spec, num_iterations)
        self._shape, self._fade = _shape(spec), _fade(spec)
        self.delay = (spec.mel_window - spec.mel_hop) // 2
        self.reset()

    def reset(self) -> None:
        """Forgets the sound so far."""
        self._silent = True
        self._mel = np.zeros((self._shape.carried, self._spec.mel_bins), np.float32)  # magnitudes of the carried frames
        # The end of the played sound, and what the frames so far make of the sound to be played.
        self._past = np.zeros(2 * self._shape.overlap, np.float32)

    def state(self) -> dict[str, Any]:
        """All that it remembers of the sound so far."""
        return {"silent": self._silent, "mel": self._mel, "past": self._past}

    def go_on(self, state: dict[str, Any]) -> None:
        """Goes on where another one was."""
        self._silent, self._mel, self._past = state["silent"], state["mel"], state["past"]

    def push(self, mel: Float[np.ndarray, "frames bins"] | None) -> Float[np.ndarray, "samples"]:
        """The sound of one micro-turn.

        Args:
          mel: the micro-turn's `mel_frames` normalised frames, or None where the model is silent: what
            is left of earlier speech fades out, the rest is zeros.

        Returns:
          float32 [spec.samples] in [-1, 1].
        """
        if mel is not None and not (self._silent and np.max(mel) <= _QUIET):
            self._mel, self._past, sound = map(np.asarray, self._program(self._mel, self._past, mel))
            self._silent = False
            return sound
        sound, overlap = np.zeros(self._spec.samples, np.float32), self._shape.overlap
        if not self._silent:
            sound[:overlap] = self._past[overlap:] * self._fade
            self.reset()
        return sound.clip(-1, 1)
