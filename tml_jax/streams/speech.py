"""Sound out: speech as normalised log mel frames, and the vocoder that turns the model's frames into sound.

Frame i describes the samples ``[i * mel_hop, (i + 1) * mel_hop)``: its window, four times as long, is centred on
them. So `mel_frames` frames tile a micro-turn exactly, nothing at a clip's beginning is lost, and a frame looks
``(mel_window - mel_hop) / 2`` samples (30 ms) past its own.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
import scipy.fft
from jaxtyping import Complex, Float

from tml_jax.streams import spectrum
from tml_jax.streams.micro_turn import StreamSpec

FLOOR = 1e-4
"""The quietest mel magnitude told from silence; a sine of amplitude 1 has about 8."""

MEAN, STD = -2.0, 0.9
"""log10 mel magnitude is normalised with these: speech has about zero mean and unit variance."""

SILENCE = (float(np.log10(FLOOR)) - MEAN) / STD
"""Value of every bin of a silent frame, the lowest there is."""

_LOUDEST = 10.0  # mel magnitude; more is no sound in [-1, 1]
_QUIET = (float(np.log10(2 * FLOOR)) - MEAN) / STD  # frames below are not worth the work where all is silent
_FRAMES_AT_ONCE = 256
_MOMENTUM = 0.5
_JOINT = 96  # samples over which a micro-turn's sound takes over from what the one before expected


class _Tables(NamedTuple):
    window: np.ndarray  # [mel_window]
    filters: spectrum.MelFilters
    coverage: np.ndarray  # [bins of the FFT], 1 / sum of the filters over a bin; 0 where no filter looks
    norm: float  # sum over the frames of the squared window, at any sample
    phases: np.ndarray  # [frames of a block, bins of the FFT], where there is no sound to continue


@functools.lru_cache
def _tables(spec: StreamSpec) -> _Tables:
    if spec.mel_window % spec.mel_hop or spec.mel_window < 4 * spec.mel_hop:
        raise ValueError(f"mel_window={spec.mel_window} must be a multiple of mel_hop={spec.mel_hop}, 4 or more.")
    window = spectrum.hann_window(spec.mel_window).astype(np.float32)
    filters = spectrum.MelFilters(spec.mel_window, spec.mel_bins, spec.sample_rate, np.float32)
    total = filters.total
    coverage = np.divide(1, total, out=np.zeros_like(total), where=total > 1e-6 * total.max())
    shape = (spec.mel_frames + spec.mel_window // spec.mel_hop - 1, len(total))
    angles = np.random.default_rng(0).uniform(0, 2 * np.pi, shape)
    norm = float((window**2).sum() / spec.mel_hop)
    return _Tables(window, filters, coverage, norm, np.exp(1j * angles).astype(np.complex64))


def mel(waveform: Float[np.ndarray, "samples"], spec: StreamSpec) -> Float[np.ndarray, "frames bins"]:
    """Normalised log mel frames of a waveform, float in [-1, 1] at `spec.sample_rate`.

    The last frame is filled up with silence: there are ``ceil(samples / mel_hop)`` frames.
    """
    tables = _tables(spec)
    side, right = (spec.mel_window - spec.mel_hop) // 2, -len(waveform) % spec.mel_hop
    padded = np.pad(np.asarray(waveform, np.float32), (side, side + right))
    frames = spectrum.cut(padded, spec.mel_window, spec.mel_hop)
    out = np.empty((len(frames), spec.mel_bins), np.float32)
    for i in range(0, len(frames), _FRAMES_AT_ONCE):
        magnitude = np.abs(scipy.fft.rfft(frames[i : i + _FRAMES_AT_ONCE] * tables.window))
        out[i : i + _FRAMES_AT_ONCE] = tables.filters.apply(magnitude)
    return (np.log10(np.maximum(out, FLOOR)) - np.float32(MEAN)) / np.float32(STD)


def _magnitude(mel: Float[np.ndarray, "frames bins"]) -> Float[np.ndarray, "frames bins"]:
    """Mel magnitudes of normalised frames, 0 for silence; what is no number is silence."""
    floor = np.float32(SILENCE)
    log10 = np.nan_to_num(np.asarray(mel, np.float32), nan=floor, posinf=floor, neginf=floor) * STD + MEAN
    return (10 ** np.minimum(log10, np.log10(_LOUDEST)) - FLOOR).clip(0).astype(np.float32)


class Vocoder:
    """Mel frames -> sound, one micro-turn at a time, continuous from call to call and the same on every run.

    Each call solves for the part of the sound that its frames touch while what has been played stays fixed:
    a block of Griffin and Lim's iterations with momentum (N. Perraudin et al., 2013), like RTISI-LA (X. Zhu et al.,
    2007). The phases start from the sound so far. The magnitudes are estimated along with them: in every iteration
    those of the present sound, corrected to the mel magnitudes asked for. The mel filters cannot tell harmonics
    apart, but a consistent sound can.

    Sound comes `delay` samples (30 ms) late, so that every played sample has been seen by all windows over it.
    """

    def __init__(self, spec: StreamSpec, num_iterations: int = 12) -> None:
        self._spec = spec
        self._tables = _tables(spec)
        self._num_iterations = num_iterations
        self._carried = spec.mel_window // spec.mel_hop - 1  # frames of the past whose windows are not all played
        self._overlap = self._carried * spec.mel_hop
        self.delay = (spec.mel_window - spec.mel_hop) // 2
        # Beyond the last frame fewer windows cover a sample; at the very end none does.
        squares = np.zeros(self._overlap, np.float32)
        for i in range(self._carried):
            squares[: (i + 1) * spec.mel_hop] += self._tables.window[-(i + 1) * spec.mel_hop :] ** 2
        self._fade = squares / self._tables.norm
        norm = np.ones((self._carried + spec.mel_frames - 1) * spec.mel_hop + spec.mel_window, np.float32)
        norm[-self._overlap :] = np.maximum(self._fade, 0.1)
        self._scale = 1 / (norm * self._tables.norm)
        # What has been played stays; the sound goes on from it without a step.
        self._hold = np.concatenate([np.ones(self._overlap), np.linspace(1, 0, _JOINT + 1)[:-1]]).astype(np.float32)
        self.reset()

    def reset(self) -> None:
        """Forgets the sound so far."""
        self._silent = True
        self._mel = np.zeros((self._carried, self._spec.mel_bins), np.float32)  # magnitudes of the carried frames
        # The end of the played sound, and what the frames so far make of the sound to be played.
        self._past = np.zeros(2 * self._overlap, np.float32)

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
            return self._speak(_magnitude(mel))
        sound = np.zeros(self._spec.samples, np.float32)
        if not self._silent:
            sound[: self._overlap] = self._past[self._overlap :] * self._fade
            self.reset()
        return sound.clip(-1, 1)

    def _speak(self, magnitude: Float[np.ndarray, "frames bins"]) -> Float[np.ndarray, "samples"]:
        size = self._overlap
        target = np.concatenate([self._mel, magnitude])
        sound = self._solve(target)
        self._mel, self._past, self._silent = target[-self._carried :], sound[-2 * size :].copy(), False
        return sound[size:-size].clip(-1, 1)

    def _fit(
        self, magnitude: Float[np.ndarray, "frames fft"], target: Float[np.ndarray, "frames bins"]
    ) -> Float[np.ndarray, "frames fft"]:
        """Factors that bring magnitudes towards the mel magnitudes `target` (and keep them positive)."""
        tables = self._tables
        return tables.filters.spread(target / np.maximum(tables.filters.apply(magnitude), 1e-8)) * tables.coverage

    def _begin(self, target: Float[np.ndarray, "frames bins"]) -> Complex[np.ndarray, "frames fft"]:
        """The spectra to begin with: smooth magnitudes, and the phases of the sound so far."""
        tables = self._tables
        magnitude = self._fit(np.ones_like(tables.phases.real), target)
        sound = np.pad(self._past, (0, len(self._scale) - len(self._past)))
        spectra = scipy.fft.rfft(spectrum.cut(sound, self._spec.mel_window, self._spec.mel_hop) * tables.window)
        present = np.abs(spectra)
        heard = present > 1e-3 * magnitude
        return magnitude * np.where(heard, spectra / np.maximum(present, 1e-9), tables.phases)

    def _solve(self, target: Float[np.ndarray, "frames bins"]) -> Float[np.ndarray, "samples"]:
        """The sound [played | new | guess] whose mel magnitudes are `target`."""
        hop, window, tables = self._spec.mel_hop, self._spec.mel_window, self._tables
        past = self._past[: len(self._hold)] * self._hold
        sound = np.empty(len(self._scale), np.float32)
        last: np.ndarray | None = None
        spectra = self._begin(target)
        for i in range(self._num_iterations + 1):
            frames = scipy.fft.irfft(spectra, n=window, overwrite_x=True)
            frames *= tables.window
            sound[:] = 0
            for j in range(window // hop):  # frames that do not overlap are added at once
                part = frames[j :: window // hop]
                sound[j * hop : j * hop + part.size] += part.ravel()
            sound *= self._scale
            sound[: len(past)] *= 1 - self._hold
            sound[: len(past)] += past
            if i == self._num_iterations:
                break
            now = scipy.fft.rfft(spectrum.cut(sound, window, hop) * tables.window)
            spectra = now if last is None else now - _MOMENTUM * last
            last = now
            magnitude = np.abs(now)
            magnitude *= self._fit(magnitude, target)
            magnitude /= np.maximum(np.abs(spectra), 1e-9)
            spectra = spectra * magnitude
        return sound
