"""What the two mel front ends share: windows, Slaney's mel filters, and cutting a waveform into frames."""

import functools

import numpy as np
from jaxtyping import Float


@functools.cache
def hann_window(length: int) -> Float[np.ndarray, "length"]:
    """The periodic Hann window, float64."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
    window.flags.writeable = False
    return window


def _hz(mel: np.ndarray) -> np.ndarray:
    """Slaney's scale: linear (200/3 Hz a mel) up to 1 kHz, then logarithmic (27 mels to 6.4 kHz)."""
    return np.where(mel < 15, mel * (200 / 3), 1000 * np.exp((mel - 15) * (np.log(6.4) / 27)))


def _mel(hz: float) -> float:
    return hz * 3 / 200 if hz < 1000 else 15 + 27 * np.log(hz / 1000) / np.log(6.4)


def _corners(num_mels: int, sample_rate: int) -> np.ndarray:
    return _hz(np.linspace(0, _mel(sample_rate / 2), num_mels + 2))


def mel_centres(num_mels: int, sample_rate: int) -> Float[np.ndarray, "mels"]:
    """The frequency in hertz at which each of `MelFilters` peaks."""
    return _corners(num_mels, sample_rate)[1:-1]


class MelFilters:
    """Triangular filters of equal area from 0 Hz to half the sample rate, over the bins of an FFT of `window`.

    The Auditory Toolbox's filters (M. Slaney, 1998), which librosa and transformers call "slaney". They are kept as
    bands, not as a matrix: a bin lies on the rising side of one filter and on the falling side of the one before.
    So every row is computed on its own, in an order that does not depend on how many there are or on the machine's
    BLAS, whose threads would also cost more than they bring.

    Attributes:
      rising, falling: [bins], weight of a bin in the filter on whose rising (falling) side it lies.
      total: [bins], sum of both; a bin that no filter sees has 0.
    """

    def __init__(self, window: int, num_mels: int, sample_rate: int, dtype: type[np.floating]) -> None:
        corners = _corners(num_mels, sample_rate)
        bins = np.linspace(0, sample_rate / 2, window // 2 + 1)
        # Between corner i and the next filter i rises and filter i - 1 falls.
        band = np.clip(np.searchsorted(corners, bins, side="right") - 1, 0, num_mels)
        self._starts = np.searchsorted(band, np.arange(num_mels + 1))
        if len(np.unique(band)) != num_mels + 1:
            raise ValueError(f"A window of {window} samples is too short for {num_mels} mel bins.")
        low, high, area = corners[band], corners[band + 1], 2 / (corners[2:] - corners[:-2])
        self.rising = (np.append(area, 0)[band] * ((bins - low) / (high - low))).astype(np.float32).astype(dtype)
        self.falling = (np.append(0, area)[band] * ((high - bins) / (high - low))).astype(np.float32).astype(dtype)
        self.total = self.rising + self.falling

    def apply(self, spectrum: Float[np.ndarray, "frames bins"]) -> Float[np.ndarray, "frames mels"]:
        """Each filter's weighted sum over the bins."""
        rising = np.add.reduceat(spectrum * self.rising, self._starts, axis=1)
        falling = np.add.reduceat(spectrum * self.falling, self._starts, axis=1)
        return rising[:, :-1] + falling[:, 1:]


def cut(waveform: Float[np.ndarray, "samples"], window: int, hop: int) -> Float[np.ndarray, "frames window"]:
    """All whole windows of the waveform, each `hop` samples after the one before; a view."""
    count = max(0, (len(waveform) - window) // hop + 1)
    stride = waveform.strides[0]  # `sliding_window_view` does the same, and takes longer than the frames' FFTs
    return np.lib.stride_tricks.as_strided(waveform, (count, window), (hop * stride, stride), writeable=False)
