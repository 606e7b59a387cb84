"""Video files, read frame by frame: what is not asked for yet is not decoded, and nothing is kept."""

import contextlib
import dataclasses
import math
import os
import pathlib
from collections.abc import Iterator

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.video.reformatter import Interpolation, VideoReformatter
from jaxtyping import UInt8

from tml_jax.streams.pictures import Turn
from tml_jax.streams.sound import DAMAGED

LONGEST_SIDE = 320  # of frames for a model whose frame size is not known
MAX_THREADS = 4  # that decode; each holds a frame


@dataclasses.dataclass(frozen=True)
class Video:
    """A video file (or an animation), thinned out by time.

    Attributes:
      path: the file. fps: most frames that are taken from any second.
      end_s: when its last frame is shown. Time 0 is that of the file, for its sound as well.
    """

    path: str
    fps: float
    end_s: float

    def pictures(self, width: int, height: int) -> Iterator[tuple[float, UInt8[np.ndarray, "height2 width2 3"]]]:
        """(seconds, RGB frame) in order, upright, each when the file shows it, however unevenly that is.

        Args:
          width, height: what the model sees of it: larger frames are scaled down until they just cover that, with
            their aspect ratio kept. 0 for not known.

        Raises:
          ValueError: the file is damaged, or turned by other than quarters.
        """
        reformatter = VideoReformatter()  # holds one scaler, made anew where the size changes
        with _opened(self.path) as container:
            stream = container.streams.best("video")
            stream.thread_type, stream.codec_context.thread_count = "AUTO", min(MAX_THREADS, os.cpu_count() or 1)
            start_s = (container.start_time or 0) / av.time_base
            rate = float(stream.average_rate or stream.guessed_rate or self.fps)
            time_s, taken, rotation, turn = -1 / rate, -1, None, Turn()
            for frame in _decoded(container, stream):
                time_s = max(0.0, time_s + 1 / rate if frame.time is None else frame.time - start_s)
                if (slot := int(time_s * self.fps + 1e-3)) > taken:
                    taken = slot
                    if frame.rotation != rotation:  # once: a frame that was asked for its matrix is freed late
                        rotation, turn = frame.rotation, _turn(frame, self.path)
                    yield time_s, _picture(frame, reformatter, turn, width, height)


def open_video(path: str | os.PathLike[str], fps: float) -> Video:
    """Looks a video file through, without decoding it, except for its first frame.

    Args:
      path: the file.
      fps: most frames that are taken from any second.

    Raises:
      ValueError: the file is missing, is no video, is damaged, holds no frame, or is turned by other than quarters.
    """
    video = Video(os.fspath(path), fps, _end_s(os.fspath(path)))
    if next(video.pictures(0, 0), None) is None:
        raise ValueError(f"The video {video.path!r} holds no frame.")
    return video


def _end_s(path: str) -> float:
    with _opened(path) as container:
        stream, start_s = container.streams.best("video"), (container.start_time or 0) / av.time_base
        times, count = 0.0, 0
        for packet in container.demux(stream):
            count += packet.size > 0
            if packet.pts is not None and packet.size:
                times = max(times, float(packet.pts * packet.time_base) - start_s)
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        return times or (max(0, count - 1) / rate if rate else 0.0)  # raw streams have no times


def _decoded(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """The frames; a damaged piece in the middle costs its frames alone, as players have it."""
    for packet in container.demux(stream):
        with contextlib.suppress(av.InvalidDataError):
            yield from packet.decode()


@contextlib.contextmanager
def _opened(path: str) -> Iterator[av.container.InputContainer]:
    """The file; what goes wrong while it is open is one sentence (ValueError)."""
    if not pathlib.Path(path).is_file():
        raise ValueError(f"There is no video file {path!r}.")
    try:
        with av.open(f"file:{path}") as container:
            if not container.streams.video:
                raise ValueError(f"{path!r} holds no video.")
            yield container
    except (av.FFmpegError, OSError) as error:
        raise ValueError(f"{path!r} cannot be read as a video ({error.strerror or error}): {DAMAGED}") from error


def _picture(
    frame: av.VideoFrame, reformatter: VideoReformatter, turn: Turn, width: int, height: int
) -> UInt8[np.ndarray, "height2 width2 3"]:
    """Scaled before it is turned and before it becomes RGB, which is cheaper."""
    if turn.transposed:
        width, height = height, width
    if width and height:
        scale = min(1.0, max(width / frame.width, height / frame.height))
    else:
        scale = min(1.0, LONGEST_SIDE / max(frame.width, frame.height))
    small = reformatter.reformat(
        frame,
        max(1, round(scale * frame.width)),
        max(1, round(scale * frame.height)),
        "rgb24",
        interpolation=Interpolation.LANCZOS,
    )
    return np.ascontiguousarray(turn.apply(small.to_ndarray()))


def _turn(frame: av.VideoFrame, path: str) -> Turn:
    """What the display matrix says, a frame's 9 integers: (x, y) is shown at (a x + c y, b x + d y)."""
    if not (data := frame.side_data.get(SideData.DISPLAYMATRIX)):
        return Turn()
    numbers = np.frombuffer(data, "<i4", 9).astype(np.float64)
    a, b, c, d = numbers[[0, 1, 3, 4]] / max(1.0, np.abs(numbers[[0, 1, 3, 4]]).max())
    if max(abs(b), abs(c)) < 0.01:
        return Turn(False, a < 0, d < 0)
    if max(abs(a), abs(d)) < 0.01:
        return Turn(True, c < 0, b < 0)
    degrees = round(math.degrees(math.atan2(-b, a))) % 360
    raise ValueError(f"The video {path!r} is turned by {degrees} degrees: only quarters can be set upright.")
