"""What a client sends, made into what the model reads: bytes to samples at the stream's rate, files to pixels.

Everything that a client can get wrong is found here, and said in one sentence (`BadInputError`).
"""

import dataclasses
import enum
import io
import math

import numpy as np
import PIL.ExifTags
import PIL.Image

from tml_jax.streams import pictures, sound
from tml_jax.streams.micro_turn import StreamSpec

MAX_CHUNK_MS = 1000
MAX_FRAME_BYTES = 4 << 20
MAX_FRAME_PIXELS = 4096 * 4096
HEAVY_PIXELS = 1 << 21  # a file of more takes long to decode
MAX_TEXT = 4096
MIN_RATE, MAX_RATE, MAX_CHANNELS = 4000, 192_000, 8
DELAY_S = sound.LOOK_AHEAD_S + 0.0005  # of sound at other rates than the stream's
# What EXIF's orientations ask for.
_TURNS = {
    2: pictures.Turn(left_right=True),
    3: pictures.Turn(left_right=True, up_down=True),
    4: pictures.Turn(up_down=True),
    5: pictures.Turn(transposed=True),
    6: pictures.Turn(transposed=True, left_right=True),
    7: pictures.Turn(transposed=True, left_right=True, up_down=True),
    8: pictures.Turn(transposed=True, up_down=True),
}


class BadInputError(ValueError):
    """What a client sent cannot be taken; the message is one sentence for its user."""


class SampleFormat(enum.Enum):
    """How samples are written; the value is the numpy dtype."""

    S16LE = "<i2"
    F32LE = "<f4"


class FrameFormat(enum.Enum):
    """How a frame is written."""

    FILE = "jpeg or png"
    RGB24 = "rgb24"


@dataclasses.dataclass(frozen=True)
class SoundFormat:
    """The sound that a client sends.

    Raises:
      BadInputError: a rate or channel count that cannot be converted.
    """

    sample_rate: int = 16_000
    channels: int = 1
    samples: SampleFormat = SampleFormat.S16LE

    def __post_init__(self) -> None:
        if not MIN_RATE <= self.sample_rate <= MAX_RATE:
            raise BadInputError(
                f"A sample rate of {self.sample_rate} Hz cannot be taken: send {MIN_RATE} to {MAX_RATE} Hz."
            )
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise BadInputError(f"Sound of {self.channels} channels cannot be taken: send 1 to {MAX_CHANNELS}.")


class SoundIntake:
    """Bytes in any rate and channel count -> float32 mono at the stream's rate, however the bytes are cut.

    Sound at another rate comes `DELAY_S` late, as after a short silence: a resampler must see a little of what follows,
    and so a micro-turn is complete when its last sample has arrived, not a chunk (and a tick) later.
    """

    def __init__(self, form: SoundFormat, spec: StreamSpec) -> None:
        """Makes a fresh stream."""
        self._format, self._resampler = form, sound.Resampler(form.sample_rate, spec.sample_rate)
        delay_s = DELAY_S if form.sample_rate != spec.sample_rate else 0.0
        self._silence = np.zeros(round(delay_s * spec.sample_rate), np.float32)

    def push(self, pcm: bytes) -> np.ndarray:
        """One chunk of whole samples -> the samples that are ready.

        Raises:
          BadInputError: the chunk is empty, too long, cut inside a sample, or holds values that are no numbers.
        """
        dtype = np.dtype(self._format.samples.value)
        frame = dtype.itemsize * self._format.channels
        if not pcm or len(pcm) % frame:
            raise BadInputError(
                f"An audio chunk of {len(pcm)} bytes is not a whole number of samples of {frame} bytes (all channels)."
            )
        duration_ms = 1000 * len(pcm) / frame / self._format.sample_rate
        if duration_ms > MAX_CHUNK_MS:
            raise BadInputError(
                f"An audio chunk of {duration_ms:.0f} ms is too long: send at most {MAX_CHUNK_MS} ms at once."
            )
        samples = np.frombuffer(pcm, dtype).reshape(-1, self._format.channels)
        if dtype.kind == "i":
            mono = samples.astype(np.float32).mean(axis=1) / 32768
        else:
            mono = samples.mean(axis=1, dtype=np.float32)
            if not np.isfinite(mono).all():
                raise BadInputError("An audio chunk holds samples that are not finite numbers.")
        silence, self._silence = self._silence, self._silence[:0]
        return np.concatenate([silence, self._resampler.push(np.clip(mono, -1, 1).astype(np.float32))])

    def flush(self) -> np.ndarray:
        """What the resampler held back; no chunk may follow."""
        return self._resampler.flush()


def decode_frame(data: bytes, form: FrameFormat, width: int, height: int, spec: StreamSpec) -> np.ndarray:
    """One picture -> uint8 [spec.frame_height, spec.frame_width, 3], as the model sees it.

    Files are set upright as their EXIF orientation says, and shown over white where they are transparent.

    Raises:
      BadInputError: it cannot be decoded, or is too large.
    """
    if len(data) > MAX_FRAME_BYTES:
        raise BadInputError(f"A video frame of {len(data)} bytes is too large: send at most {MAX_FRAME_BYTES}.")
    if form is FrameFormat.FILE:
        frame = _decode_file(data, spec)
    elif data and len(data) == width * height * 3:
        frame = np.frombuffer(data, np.uint8).reshape(height, width, 3)
    else:
        raise BadInputError(f"An RGB24 frame of {len(data)} bytes is not {width} x {height} pixels of 3 bytes.")
    return pictures.resize(frame, spec.frame_width, spec.frame_height)


def is_heavy(data: bytes, form: FrameFormat) -> bool:
    """Whether `decode_frame` takes long, by what the file says of its size."""
    if form is not FrameFormat.FILE or len(data) > MAX_FRAME_BYTES:
        return False
    try:
        return math.prod(PIL.Image.open(io.BytesIO(data), formats=("JPEG", "PNG")).size) > HEAVY_PIXELS
    except Exception:  # `decode_frame` says what is wrong with it
        return False


def _decode_file(data: bytes, spec: StreamSpec) -> np.ndarray:
    try:
        image = PIL.Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
        if math.prod(image.size) > MAX_FRAME_PIXELS:
            raise PIL.Image.DecompressionBombError
        turn = _TURNS.get(image.getexif().get(PIL.ExifTags.Base.Orientation), pictures.Turn())
        # A large JPEG is decoded at an eighth, quarter or half of its size, where that still covers what is seen of it.
        side = max(spec.frame_width, spec.frame_height)
        image.draft("RGB", (side, side))
        return turn.apply(_to_rgb(image))
    except PIL.Image.DecompressionBombError:
        raise BadInputError(f"A video frame of more than {MAX_FRAME_PIXELS} pixels is too large.") from None
    except Exception as error:  # whatever the damage makes the decoder stumble over
        raise BadInputError(
            f"A video frame of {len(data)} bytes cannot be decoded: it is no whole JPEG or PNG file."
        ) from error


def _to_rgb(image: PIL.Image.Image) -> np.ndarray:
    """Uint8 [H, W, 3] of any kind of picture."""
    if image.mode.startswith("I"):  # 16 bits of grey
        grey = np.round(np.asarray(image).astype(np.float32) / 257).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def check_text(text: str) -> str:
    """Typed text without surrounding space.

    Raises:
      BadInputError: there is none, or too much.
    """
    if not text.strip():
        raise BadInputError("A text message is empty.")
    if len(text) > MAX_TEXT:
        raise BadInputError(f"A text message of {len(text)} characters is too long: send at most {MAX_TEXT}.")
    return text.strip()
