"""What a client sends, made into what the model reads: bytes to samples at the stream's rate, files to pixels.

Everything that a client can get wrong is found here, and said in one sentence (`BadInputError`).
"""

import dataclasses
import enum
import math
from collections.abc import Iterator

import numpy as np

from tml_jax.serve.picture_decoder import PictureDecoder
from tml_jax.streams import pictures, sound
from tml_jax.streams.micro_turn import StreamSpec

MAX_CHUNK_MS = 1000
MAX_LOST_S = 10
MAX_FRAME_BYTES = 4 << 20
MAX_TEXT = 4096
MIN_RATE, MAX_RATE, MAX_CHANNELS = 4000, 192_000, 8
DELAY_S = sound.LOOK_AHEAD_S + 0.0005  # of sound at other rates than the stream's
_SETTLE_S = 0.05  # after which a resampler's beginning is forgotten; it remembers twice `sound.LOOK_AHEAD_S`

_CONTAINERS = {
    b"RIFF": "a WAV file (RIFF)",
    b"RIFX": "a WAV file (RIFX)",
    b"OggS": "an Ogg file",
    b"fLaC": "a FLAC file",
    b"ID3": "an MP3 file (ID3)",
    b"\x1aE\xdf\xa3": "a WebM or Matroska file",
    b"caff": "a CAF file",
    b".snd": "an AU file",
    b"FORM": "an AIFF file",
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

    Attributes:
      received: samples of each channel so far.
    """

    def __init__(self, form: SoundFormat, spec: StreamSpec, made: int = 0) -> None:
        """Makes a stream that goes on after the first `made` samples of another; it wants sound from `sent(made)` on.

        What comes out is the same as of one stream, bit for bit: a resampler begins again where the phases of its
        filter do, and has forgotten its beginning after `_SETTLE_S`.
        """
        self._format, self._resampler = form, sound.Resampler(form.sample_rate, spec.sample_rate)
        self._rate = spec.sample_rate
        self._delay = round(DELAY_S * spec.sample_rate) if form.sample_rate != spec.sample_rate else 0
        self._silence = np.zeros(max(0, self._delay - made), np.float32)
        self.received = self.sent(made)
        self._known = max(0, made - self._delay) - self.received * self._rate // form.sample_rate  # are not made again

    def sent(self, made: int) -> int:
        """Sound from this sample on is needed to make what follows the first `made` samples."""
        own = self._format.sample_rate
        if own == self._rate:
            return made
        period = own // math.gcd(own, self._rate)
        needed = max(0, made - self._delay) * own // self._rate - round(_SETTLE_S * own)
        return max(0, needed) // period * period

    def place(self, pcm: bytes, offset: int | None) -> tuple[bytes, int]:
        """Of sound that begins with sample `offset` (None: the next): what is new of it, and samples lost before it.

        Raises:
          BadInputError: more is lost than can be an accident.
        """
        if offset is None:
            return pcm, 0
        lost = max(0, offset - self.received)
        if lost > MAX_LOST_S * self._format.sample_rate:
            sentence = f"Sound from sample {offset} on came, but before it there were only {self.received} samples"
            raise BadInputError(f"{sentence}: at most {MAX_LOST_S} s may be missing.")
        return pcm[max(0, self.received - offset) * self._frame :], lost

    def silence(self, count: int) -> Iterator[bytes]:
        """So many silent samples, in chunks."""
        size = self._format.sample_rate * MAX_CHUNK_MS // 1000
        for start in range(0, count, size):
            yield bytes(min(size, count - start) * self._frame)

    @property
    def _frame(self) -> int:
        return np.dtype(self._format.samples.value).itemsize * self._format.channels

    def push(self, pcm: bytes) -> np.ndarray:
        """One chunk of whole samples -> the samples that are ready.

        Raises:
          BadInputError: the chunk is empty, too long, cut inside a sample, holds values that are no numbers, or is
            the first and begins as a file does.
        """
        dtype = np.dtype(self._format.samples.value)
        frame = self._frame
        if not self.received:
            check_is_raw(pcm, "PCM")
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
            if not np.isfinite(samples).all():  # before anything is computed with them
                raise BadInputError("An audio chunk holds samples that are not finite numbers.")
            mono = samples.mean(axis=1, dtype=np.float64)  # in which no sum of them overflows
        self.received += len(mono)
        silence, self._silence = self._silence, self._silence[:0]
        return np.concatenate([silence, self._new(self._resampler.push(np.clip(mono, -1, 1).astype(np.float32)))])

    def flush(self) -> np.ndarray:
        """What the resampler held back; no chunk may follow."""
        return self._new(self._resampler.flush())

    def _new(self, samples: np.ndarray) -> np.ndarray:
        known, self._known = self._known, max(0, self._known - len(samples))
        return samples[known:]


def decode_frame(
    decoder: PictureDecoder,
    data: bytes,
    form: FrameFormat,
    width: int,
    height: int,
    spec: StreamSpec,
    most_pixels: int = pictures.MAX_PIXELS,
) -> np.ndarray:
    """One picture -> uint8 [spec.frame_height, spec.frame_width, 3], as the model sees it; see `pictures.read`.

    Raises:
      BadInputError: it cannot be decoded, or is too large.
      HeavyError: it is a file of more than `most_pixels`.
    """
    if len(data) > MAX_FRAME_BYTES:
        raise BadInputError(f"A video frame of {len(data)} bytes is too large: send at most {MAX_FRAME_BYTES}.")
    if form is FrameFormat.FILE:
        width = height = 0
    elif not data or len(data) != width * height * 3:
        raise BadInputError(f"An RGB24 frame of {len(data)} bytes is not {width} x {height} pixels of 3 bytes.")
    try:
        return decoder.decode(data, width, height, spec.frame_width, spec.frame_height, most_pixels)
    except pictures.HeavyError:
        raise
    except ValueError as error:
        raise BadInputError(str(error)) from error


def check_is_raw(data: bytes, wanted: str) -> None:
    """Raises BadInputError where sound begins with the header of a file, which would be heard as a noise."""
    for head, name in _CONTAINERS.items():
        if data.startswith(head):
            raise BadInputError(f"The audio is {name}: send its samples alone, as raw {wanted}.")


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
