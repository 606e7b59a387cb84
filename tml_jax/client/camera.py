"""Live pictures from this machine's camera, where it has one."""

import dataclasses
import sys
import time
from collections.abc import Iterator

import av
import numpy as np

_SYSTEMS = {"linux": "v4l2", "darwin": "avfoundation", "win32": "dshow"}  # FFmpeg's names


@dataclasses.dataclass(frozen=True)
class Camera:
    """A camera, as FFmpeg names it: ``/dev/video0`` on Linux, ``0`` on macOS, ``video=NAME`` on Windows.

    Attributes:
      name: of the camera. fps: most frames that are taken from any second.
      format: FFmpeg's input format; None for that of this system's cameras.
      end_s: it adds nothing to how long a script is.
    """

    name: str
    fps: float = 10.0
    format: str | None = None
    end_s: float = 0.0

    def pictures(self, width: int, height: int) -> Iterator[tuple[float, np.ndarray]]:
        """(seconds since the camera was asked for, uint8 [H, W, 3]), each as soon as it is there; without an end.

        Raises:
          ValueError: it cannot be opened.
        """
        begun, taken = time.monotonic(), -1
        try:
            with av.open(self.name, format=self.format or _SYSTEMS.get(sys.platform)) as container:
                for frame in container.decode(video=0):
                    time_s = time.monotonic() - begun
                    if (slot := int(time_s * self.fps)) <= taken:
                        continue
                    taken = slot
                    scale = min(1.0, max(width / frame.width, height / frame.height)) if width and height else 1.0
                    size = max(1, round(scale * frame.width)), max(1, round(scale * frame.height))
                    yield time_s, frame.reformat(*size, "rgb24").to_ndarray()
        except (av.FFmpegError, OSError) as error:
            raise ValueError(f"The camera {self.name!r} cannot be opened ({error.strerror}): use a file.") from error
