"""Pictures as they come: read, checked, set upright and brought to a size; nothing here knows of the model."""

import dataclasses
import io
import math

import numpy as np
import PIL.ExifTags
from jaxtyping import UInt8
from PIL import Image

MAX_PIXELS = 4096 * 4096
HEAVY_PIXELS = 1 << 21  # a file of more takes long to decode


class HeavyError(ValueError):
    """Of a picture file more pixels would be decoded than may be."""


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
    return _resized(Image.fromarray(np.ascontiguousarray(frame)), width, height)


def _resized(image: Image.Image, width: int, height: int) -> np.ndarray:
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


# What EXIF's orientations ask for.
_TURNS = {
    2: Turn(left_right=True),
    3: Turn(left_right=True, up_down=True),
    4: Turn(up_down=True),
    5: Turn(transposed=True),
    6: Turn(transposed=True, left_right=True),
    7: Turn(transposed=True, left_right=True, up_down=True),
    8: Turn(transposed=True, up_down=True),
}


def read(data: bytes, width: int, height: int, most_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "height width 3"]:
    """A JPEG or PNG file at a size; its aspect ratio is not kept.

    It is set upright as its EXIF orientation says, and shown over white where it is transparent.

    Raises:
      HeavyError: more than `most_pixels` would be decoded.
      ValueError: it is damaged, of another kind, or has more than `MAX_PIXELS`.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
        if math.prod(image.size) > MAX_PIXELS:
            raise Image.DecompressionBombError
        turn = _TURNS.get(image.getexif().get(PIL.ExifTags.Base.Orientation), Turn())
        # A large JPEG is decoded at an eighth, quarter or half of its size, where that still covers what is seen of it.
        image.draft("RGB", (max(width, height),) * 2)
        if math.prod(image.size) > most_pixels:
            raise HeavyError
        return turn.apply(_resized(_rgb(image), *((height, width) if turn.transposed else (width, height))))
    except HeavyError:
        raise
    except Image.DecompressionBombError:
        raise ValueError(f"A video frame of more than {MAX_PIXELS} pixels is too large.") from None
    except Exception as error:  # whatever the damage makes the decoder stumble over
        raise ValueError(
            f"A video frame of {len(data)} bytes cannot be decoded: it is no whole JPEG or PNG file."
        ) from error


def _rgb(image: Image.Image) -> Image.Image:
    """Any kind of picture, in 8 bits of red, green and blue."""
    if image.mode.startswith("I"):  # 16 bits of grey
        image = Image.fromarray(np.round(np.asarray(image).astype(np.float32) / 257).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")
