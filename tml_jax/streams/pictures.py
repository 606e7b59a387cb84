"""Pictures as they come: checked, set upright and brought to a size; nothing here knows of the model."""

import dataclasses

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def check_frame(frame: np.ndarray) -> UInt8[np.ndarray, "height width 3"]:
    """The frame, if it is one.

    Raises:
      ValueError: it is not uint8 [height, width, 3] with at least one pixel.
    """
    if getattr(frame, "dtype", None) != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        found = f"{frame.dtype} {list(frame.shape)}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise ValueError(f"A video frame must be uint8 [height, width, 3] (RGB), not {found}.")
    return frame


def resize(
    frame: UInt8[np.ndarray, "height width 3"], width: int, height: int
) -> UInt8[np.ndarray, "height2 width2 3"]:
    """The frame at another size; its aspect ratio is not kept."""
    if check_frame(frame).shape[:2] == (height, width):
        return frame
    image = Image.fromarray(np.ascontiguousarray(frame))
    # A gap of 3 makes very large pictures cheap, and no difference to the eye.
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0))


@dataclasses.dataclass(frozen=True)
class Turn:
    """How a picture that was stored lying or mirrored is set upright: first `transposed`, then mirrored."""

    transposed: bool = False
    left_right: bool = False
    up_down: bool = False

    def apply(self, frame: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height2 width2 3"]:
        """The upright frame, a view."""
        frame = frame.swapaxes(0, 1) if self.transposed else frame
        return frame[:: -1 if self.up_down else 1, :: -1 if self.left_right else 1]
