"""Sound and video files on the client's side.

What cannot be read is one sentence (ValueError).
"""

import dataclasses
import io
import pathlib

import numpy as np
import PIL.Image
import soundfile

from tml_jax.streams import frames

JPEG_QUALITY = 92


@dataclasses.dataclass(frozen=True, eq=False)
class SoundFile:
    """A whole sound: float32 [samples, channels] in [-1, 1]."""

    samples: np.ndarray
    sample_rate: int

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.sample_rate

    def mono(self) -> np.ndarray:
        """The mean of the channels."""
        return self.samples.mean(axis=1)

    def pcm(self) -> np.ndarray:
        """Int16 [samples, channels]."""
        return to_pcm(self.samples)


@dataclasses.dataclass(frozen=True, eq=False)
class VideoFile:
    """Frames uint8 [n, H, W, 3] and when each is shown, in seconds."""

    frames: list[np.ndarray]
    times_s: list[float]


def to_pcm(samples: np.ndarray) -> np.ndarray:
    """Float in [-1, 1] -> int16."""
    return np.clip(np.round(samples * 32767), -32768, 32767).astype("<i2")


def read_sound(path: str | pathlib.Path) -> SoundFile:
    """Reads a sound file as it is, at its own rate and with its own channels; the server converts.

    Raises:
      ValueError: there is no such file, or it holds no readable sound.
    """
    if not pathlib.Path(path).is_file():
        raise ValueError(f"There is no sound file {path}.")
    try:
        samples, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise ValueError(f"{path} cannot be read as sound: is it damaged, cut off, or of another kind?") from error
    if not samples.size or not np.isfinite(samples).all():
        raise ValueError(f"The sound file {path} holds no usable samples.")
    return SoundFile(samples, rate)


def read_video(path: str | pathlib.Path, fps: float) -> VideoFile:
    """Reads a video file, thinned out to at most `fps` frames a second.

    Raises:
      ValueError: there is no such file, or it holds no readable video.
    """
    images, own_fps = frames.read_video(path)
    step = max(1.0, own_fps / fps)
    chosen = np.arange(0, len(images), step).astype(int)
    return VideoFile([images[i] for i in chosen], [i / own_fps for i in chosen.tolist()])


def to_jpeg(frame: np.ndarray) -> bytes:
    """One picture, uint8 [H, W, 3], as a JPEG file with full colour resolution."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(frame).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
