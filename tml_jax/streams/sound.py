"""Sound files <-> mono float32 samples at the stream's rate."""

import os
import pathlib

import numpy as np
import soundfile
import soxr
from jaxtyping import Float


def read_sound(path: str | os.PathLike[str], rate: int) -> Float[np.ndarray, "samples"]:
    """Reads a sound file (WAV, FLAC, Ogg Vorbis or Opus, MP3, ...) of any rate and number of channels.

    Args:
      path: the file.
      rate: Hz of the result.

    Returns:
      float32 in [-1, 1], the mean of the channels.

    Raises:
      ValueError: the file is missing, is no sound, is damaged, or holds no sample.
    """
    name = repr(os.fspath(path))
    if not pathlib.Path(path).is_file():
        raise ValueError(f"There is no sound file {name}.")
    try:
        channels, own_rate = soundfile.read(os.fspath(path), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        reason = getattr(error, "error_string", "") or str(error)
        raise ValueError(f"{name} cannot be read as sound: {reason.rstrip('.')}.") from error
    if not channels.size:
        raise ValueError(f"The sound file {name} is empty.")
    if not np.isfinite(channels).all():
        raise ValueError(f"The sound file {name} holds values that are not numbers.")
    return resample(channels.mean(axis=1), own_rate, rate)


def resample(samples: Float[np.ndarray, "samples"], own_rate: int, rate: int) -> Float[np.ndarray, "samples2"]:
    """The sound at `rate` Hz."""
    samples = np.asarray(samples, np.float32)
    return samples if own_rate == rate else soxr.resample(samples, own_rate, rate)


def write_sound(path: str | os.PathLike[str], samples: Float[np.ndarray, "samples"], rate: int) -> None:
    """Writes a mono sound file, in the format that its name ends with; what exceeds [-1, 1] is clipped.

    Raises:
      ValueError: the file cannot be written, or its name ends with no known format.
    """
    name = repr(os.fspath(path))
    try:
        soundfile.write(os.fspath(path), np.clip(np.asarray(samples, np.float32), -1, 1), rate)
    except (soundfile.SoundFileError, OSError, TypeError, ValueError) as error:
        reason = getattr(error, "error_string", "") or str(error)
        raise ValueError(f"The sound cannot be written to {name}: {reason.rstrip('.')}.") from error
