"""Sound in: Inkling's dMel front end, offline and streaming.

A frame is the log10 mel spectrum of the last `dmel_window` samples (100 ms), taken every `dmel_hop` samples (50 ms)
and quantised to 16 levels between -7 and 2 (R. Bai et al., 2024, "dMel: Speech Tokenization made Simple"). It is
causal: frame i ends with sample ``(i + 1) * dmel_hop``. Before the beginning is silence.

The streaming front end gives the same bits as the offline one, however the sound is chopped: every frame is
computed on its own, in float64, by operations whose order does not depend on how many frames are computed at once.
"""

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int32

from tml_jax.streams import spectrum
from tml_jax.streams.micro_turn import StreamSpec

MIN_LOG10, MAX_LOG10 = -7.0, 2.0
"""The lowest and the highest level, log10 of the mel magnitude."""

_MIN_POWER = 1e-10  # of a bin of the spectrum, as in Inkling's front end
_FRAMES_AT_ONCE = 64  # stays in the cache


class _Tables(NamedTuple):
    window: np.ndarray
    filters: spectrum.MelFilters
    boundaries: np.ndarray  # between the levels, as mel magnitudes


@functools.lru_cache
def _tables(spec: StreamSpec) -> _Tables:
    levels = np.linspace(MIN_LOG10, MAX_LOG10, spec.dmel_levels)
    return _Tables(
        window=spectrum.hann_window(spec.dmel_window).astype(np.float32).astype(np.float64),
        filters=spectrum.MelFilters(spec.dmel_window, spec.dmel_bins, spec.sample_rate, np.float64),
        boundaries=10 ** ((levels[1:] + levels[:-1]) / 2),
    )


def _levels(frames: Float[np.ndarray, "frames window"], spec: StreamSpec) -> Int32[np.ndarray, "frames bins"]:
    tables = _tables(spec)
    out = np.empty((len(frames), spec.dmel_bins), np.int32)
    for i in range(0, len(frames), _FRAMES_AT_ONCE):
        transform = np.fft.rfft(frames[i : i + _FRAMES_AT_ONCE] * tables.window)
        mel = tables.filters.apply(np.sqrt(np.maximum(transform.real**2 + transform.imag**2, _MIN_POWER)))
        out[i : i + _FRAMES_AT_ONCE] = np.searchsorted(tables.boundaries, mel)  # the nearest level, the lower of two
    return out


def dmel(waveform: Float[np.ndarray, "samples"], spec: StreamSpec) -> Int32[np.ndarray, "frames bins"]:
    """Levels of a whole waveform, float in [-1, 1] at `spec.sample_rate`.

    The last frame is filled up with silence: there are ``ceil(samples / dmel_hop)`` frames.
    """
    right = -len(waveform) % spec.dmel_hop
    padded = np.pad(np.asarray(waveform, np.float32), (spec.dmel_window - spec.dmel_hop, right))
    return _levels(spectrum.cut(padded, spec.dmel_window, spec.dmel_hop), spec)


class DmelStream:
    """Levels of a sound that arrives in pieces of any length.

    Attributes:
      held: float32, the last samples, at which the next frames look, too: all that a stream remembers.
    """

    def __init__(self, spec: StreamSpec) -> None:
        self._spec = spec
        self.reset()

    def reset(self) -> None:
        """Forgets the sound so far."""
        self.held = np.zeros(self._spec.dmel_window - self._spec.dmel_hop, np.float32)

    def push(self, samples: Float[np.ndarray, "samples"]) -> Int32[np.ndarray, "frames bins"]:
        """The frames that `samples` complete: none, one or more."""
        sound = np.concatenate([self.held, np.asarray(samples, np.float32)])
        frames = spectrum.cut(sound, self._spec.dmel_window, self._spec.dmel_hop)
        self.held = sound[len(frames) * self._spec.dmel_hop :]
        return _levels(frames, self._spec)
