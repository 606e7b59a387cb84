"""Sound and pictures on the client's side.

What cannot be read is one sentence (ValueError).
"""

import dataclasses
import io
import pathlib
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import PIL.Image

from tml_jax.streams import pictures, sound, video
from tml_jax.wire.pcm import to_pcm

RATE = 16_000  # that files are converted to
JPEG_QUALITY = 92
RAW_BYTES = 16_384  # pictures up to this size are sent as they are
THUMBNAIL_SIDE = 96  # pixels
MAX_THUMBNAILS = 256


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


class Pictures(Protocol):
    """What a camera sees; `end_s` is when its last frame is shown."""

    @property
    def end_s(self) -> float:
        """Seconds."""

    def pictures(self, width: int, height: int) -> Iterator[tuple[float, np.ndarray]]:
        """(seconds, uint8 [H, W, 3]) in order, for a model that sees `width` x `height` of it."""


@dataclasses.dataclass(frozen=True, eq=False)
class VideoFile:
    """Frames in memory, uint8 [n, H, W, 3], and when each is shown, in seconds."""

    frames: list[np.ndarray]
    times_s: list[float]

    @property
    def end_s(self) -> float:
        """When the last frame is shown."""
        return self.times_s[-1]

    def pictures(self, width: int, height: int) -> Iterator[tuple[float, np.ndarray]]:
        """(seconds, frame), as they are."""
        del width, height
        yield from zip(self.times_s, self.frames, strict=True)


class Thumbnails:
    """A few small pictures of a video, spread evenly over it, however long it is.

    Attributes:
      shots: (seconds, uint8 [H, W, 3]).
    """

    def __init__(self) -> None:
        """Makes an empty collection."""
        self.shots: list[tuple[float, np.ndarray]] = []
        self._apart_s = 0.0

    def add(self, time_s: float, frame: np.ndarray) -> None:
        """A frame of the video, in order."""
        if self.shots and time_s < self.shots[-1][0] + self._apart_s - 1e-3:
            return
        scale = min(1.0, THUMBNAIL_SIDE / max(frame.shape))
        self.shots.append((time_s, pictures.resize(frame, *(max(1, round(scale * n)) for n in frame.shape[1::-1]))))
        if len(self.shots) > MAX_THUMBNAILS:
            self.shots = self.shots[::2]
            self._apart_s = (self.shots[-1][0] - self.shots[0][0]) / (len(self.shots) - 1)


def read_sound(path: str | pathlib.Path) -> SoundFile:
    """Reads a sound file, or the sound of a video, as one channel at `RATE`.

    Raises:
      ValueError: there is no such file, or it holds no readable sound.
    """
    return SoundFile(sound.read_sound(path, RATE)[:, None], RATE)


def sound_of_video(path: str | pathlib.Path) -> SoundFile:
    """The sound of a video file, which may be none at all.

    Raises:
      ValueError: there is no such file, or its sound cannot be read.
    """
    if not sound.has_sound(path):
        return SoundFile(np.zeros((0, 1), np.float32), RATE)
    return read_sound(path)


def read_video(path: str | pathlib.Path, fps: float) -> video.Video:
    """A video file, thinned out to at most `fps` frames a second, that is read as it is sent.

    Raises:
      ValueError: there is no such file, or it holds no readable video.
    """
    return video.open_video(path, fps)


def to_jpeg(frame: np.ndarray) -> bytes:
    """One picture, uint8 [H, W, 3], as a JPEG file with full colour resolution."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(frame).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
