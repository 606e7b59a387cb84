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

from tml_jax.streams import magnitudes, spectrum, speech
from tml_jax.streams.micro_turn import StreamSpec

_LOUDEST = 10.0  # mel magnitude; more is no sound in [-1, 1]
_QUIET = (float(np.log10(2 * speech.FLOOR)) - speech.MEAN) / speech.STD  # frames below cost nothing where all is silent
_MOMENTUM = 0.5
_JOINT = 96  # samples over which a micro-turn's sound takes over from what the one before expected
_ITERATIONS = 12
_HANN = 0.25645  # a Gaussian window as wide as Hann's of length L is exp(-pi t^2 / (_HANN L^2))

_Program = Callable[[magnitudes.Weights, np.ndarray, np.ndarray, np.ndarray], tuple[jax.Array, jax.Array, jax.Array]]


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


def _advance(magnitude: jax.Array, spec: StreamSpec) -> jax.Array:
    """By how much the phase of each bin turns from a frame to the next one, after the slope of the magnitudes there.

    A bin beside a harmonic's turns as the harmonic's own does (Z. Průša et al., 2017, for Gaussian windows).
    """
    hop, length = spec.mel_hop, spec.mel_window
    log = jnp.log(magnitude + 1e-5)
    slope = jnp.pad((log[:, 2:] - log[:, :-2]) / 2, ((0, 0), (1, 1)))
    each = (2 * np.pi * hop / length) * jnp.arange(log.shape[1]) + hop / (_HANN * length) * slope
    return (each[1:] + each[:-1]) / 2


@functools.lru_cache
def _program(spec: StreamSpec, num_iterations: int, voiced: bool) -> _Program:
    """(voice, carried magnitudes, past sound, mel frames) -> (the second two for the next micro-turn, sound)."""
    carried, overlap, count, size = _shape(spec)
    context = magnitudes.CONTEXT if voiced else 0
    hop, length, filters, fade = spec.mel_hop, spec.mel_window, magnitudes.Filters.of(spec), _fade(spec)
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

    def expect(voice: magnitudes.Weights, mel: jax.Array, target: jax.Array) -> jax.Array:
        if not voiced:
            return filters.smooth(target)
        magnitude = magnitudes.estimate(voice, filters, mel)
        return magnitude * filters.fit(magnitude, target)

    def begin(past: jax.Array, magnitude: jax.Array) -> jax.Array:
        """The spectra to begin with: the phases of the sound so far, and where a voice is known as they go on."""
        spectra = spectra_of(past)
        present = jnp.abs(spectra)
        turned = jnp.where(present > 1e-3 * magnitude, spectra / jnp.maximum(present, 1e-9), phases)
        if voiced:
            angle = jnp.cumsum(_advance(magnitude, spec)[carried - 1 :], axis=0)
            turned = jnp.concatenate([turned[:carried], turned[carried - 1] * jnp.exp(1j * angle)])
        return magnitude * turned

    def play(
        voice: magnitudes.Weights, mel: jax.Array, past: jax.Array, new: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        mel = jnp.concatenate([mel, _magnitude(new)])
        target = mel[context:]
        past = jnp.pad(past, (0, size - len(past)))
        expected = expect(voice, mel, target)

        def iterate(i: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            spectra, last = state
            now = spectra_of(sound_of(spectra, past))
            spectra = now - jnp.where(i == 0, 0, _MOMENTUM) * last
            magnitude = jnp.abs(now)
            if voiced:  # three parts of the sound so far, one of the voice
                magnitude = jnp.sqrt(magnitude * jnp.sqrt(magnitude * expected))
            magnitude *= filters.fit(magnitude, target) / jnp.maximum(jnp.abs(spectra), 1e-9)
            return spectra * magnitude, now

        spectra = begin(past, expected)
        spectra, _ = jax.lax.fori_loop(0, num_iterations, iterate, (spectra, jnp.zeros_like(spectra)))
        sound = sound_of(spectra, past)
        return mel[-context - carried :], sound[-2 * overlap :], jnp.clip(sound[overlap:-overlap], -1, 1)

    host = jax.sharding.SingleDeviceSharding(_host())

    def array(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=host)

    voice = {name: array(*shape) for name, shape in magnitudes.shapes(spec).items()} if voiced else {}
    mel, new = array(context + carried, spec.mel_bins), array(spec.mel_frames, spec.mel_bins)
    return jax.jit(play).lower(voice, mel, array(2 * overlap), new).compile()


def placed(voice: magnitudes.Weights) -> magnitudes.Weights:
    """A voice where vocoders compute, which then share it."""
    return jax.device_put(voice, _host())


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
    apart, but a consistent sound can. A `voice` that knows better (`streams.magnitudes`) has a quarter of the say in
    them, in their logarithms, and its magnitudes tell how the phases go on where nothing has sounded yet.

    Sound comes `delay` samples (30 ms) late, so that every played sample has been seen by all windows over it.
    """

    def __init__(
        self, spec: StreamSpec, voice: magnitudes.Weights | None = None, num_iterations: int = _ITERATIONS
    ) -> None:
        """Makes one before any sound; the first of a spec compiles its program.

        Args:
          spec: of the stream.
          voice: weights for `magnitudes.estimate`; None: no voice is known.
          num_iterations: for each micro-turn.
        """
        self._spec, self._program = spec, _program(spec, num_iterations, voice is not None)
        self._voice = placed(voice or {})
        self._shape, self._fade = _shape(spec), _fade(spec)
        self.delay = (spec.mel_window - spec.mel_hop) // 2
        self.reset()

    def reset(self) -> None:
        """Forgets the sound so far."""
        self._silent = True
        # Magnitudes of the carried frames, and of those before them that the voice looks at.
        context = magnitudes.CONTEXT if self._voice else 0
        self._mel = np.zeros((context + self._shape.carried, self._spec.mel_bins), np.float32)
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
            self._mel, self._past, sound = map(np.asarray, self._program(self._voice, self._mel, self._past, mel))
            self._silent = False
            return sound
        sound, overlap = np.zeros(self._spec.samples, np.float32), self._shape.overlap
        if not self._silent:
            sound[:overlap] = self._past[overlap:] * self._fade
            self.reset()
        return sound.clip(-1, 1)
