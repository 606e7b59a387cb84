"""Sound out: speech as normalised log mel frames, which `vocoder` turns into sound.

Frame i describes the samples ``[i * mel_hop, (i + 1) * mel_hop)``: its window, four times as long, is centred on
them. So `mel_frames` frames tile a micro-turn exactly, nothing at a clip's beginning is lost, and a frame looks
``(mel_window - mel_hop) / 2`` samples (30 ms) past its own.
"""

import functools
from typing import NamedTuple

import numpy as np
import scipy.fft
from jaxtyping import Float

from tml_jax.streams import spectrum
from tml_jax.streams.micro_turn import StreamSpec

FLOOR = 1e-4
"""The quietest mel magnitude told from silence; a sine of amplitude 1 has about 8."""

MEAN, STD = -2.0, 0.9
"""log10 mel magnitude is normalised with these: speech has about zero mean and unit variance."""

SILENCE = (float(np.log10(FLOOR)) - MEAN) / STD
"""Value of every bin of a silent frame, the lowest there is."""

_FRAMES_AT_ONCE = 256


class _Tables(NamedTuple):
    window: np.ndarray  # [mel_window]
    filters: spectrum.MelFilters


@functools.lru_cache
def _tables(spec: StreamSpec) -> _Tables:
    window = spectrum.hann_window(spec.mel_window).astype(np.float32)
    return _Tables(window, spectrum.MelFilters(spec.mel_window, spec.mel_bins, spec.sample_rate, np.float32))


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
