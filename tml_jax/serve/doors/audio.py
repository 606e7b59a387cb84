"""The sound of OpenAI's protocols: raw mono samples in base64, as 16-bit PCM or G.711, to and from a session's own."""

import base64
import binascii
import dataclasses

import numpy as np

from tml_jax.serve import intake
from tml_jax.streams.sound import Resampler
from tml_jax.wire.pcm import to_pcm


def _mu_law() -> np.ndarray:
    """int16 [256]: the sample of each code of ITU-T G.711's mu-law."""
    code = ~np.arange(256) & 0xFF
    size = (((code & 0x0F) << 3) + 0x84) << ((code & 0x70) >> 4)
    return np.where(code & 0x80, 0x84 - size, size - 0x84).astype("<i2")


def _a_law() -> np.ndarray:
    """int16 [256]: the sample of each code of ITU-T G.711's A-law."""
    code = np.arange(256) ^ 0x55
    step, size = (code & 0x70) >> 4, (code & 0x0F) << 4
    size = np.where(step == 0, size + 8, (size + 0x108) << np.maximum(step - 1, 0))
    return np.where(code & 0x80, size, -size).astype("<i2")


_LAWS = {"audio/pcmu": _mu_law(), "audio/pcma": _a_law()}
_RATES = {"audio/pcm": (16_000, 24_000), "audio/pcmu": (8_000,), "audio/pcma": (8_000,)}


@dataclasses.dataclass(frozen=True)
class AudioFormat:
    """How sound is written, in both directions; the rate in Hz.

    Raises:
      BadInputError: no such type, or not at this rate.
    """

    type: str = "audio/pcm"
    rate: int = 24_000

    def __post_init__(self) -> None:
        if self.type not in _RATES:
            raise intake.BadInputError(f"Audio of type {self.type[:100]!r} is not known here: {', '.join(_RATES)} are.")
        if self.rate not in _RATES[self.type]:
            allowed = " or ".join(map(str, _RATES[self.type]))
            raise intake.BadInputError(f"{self.type} at {self.rate} Hz is not known here: send {allowed} Hz.")

    def decode(self, text: str) -> bytes:
        """Base64 -> 16-bit PCM at this rate.

        Raises:
          BadInputError: it is no base64, holds no sound, cuts a sample in two, or begins like a file.
        """
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise intake.BadInputError("The audio is not valid base64.") from None
        intake.check_is_raw(data, self.type)
        if not data:
            raise intake.BadInputError("The audio is empty.")
        if self.type in _LAWS:
            return _LAWS[self.type][np.frombuffer(data, np.uint8)].tobytes()
        if len(data) % 2:
            raise intake.BadInputError(f"The audio of {len(data)} bytes is not a whole number of 16-bit samples.")
        return data


class AudioEncoder:
    """A session's sound, piece by piece, in one format: as long as what goes in, and where that is zero, silence.

    At another rate it is `intake.DELAY_S` later than what goes in: a resampler must see a little of what follows.
    """

    def __init__(self, form: AudioFormat, rate: int) -> None:
        """Makes a fresh stream of sound at `rate` Hz."""
        self._form, self._resampler = form, Resampler(rate, form.rate)
        self._own = np.zeros(0, np.float32)
        self._ratio = form.rate / rate
        self._silence = np.zeros(round(intake.DELAY_S * rate) if rate != form.rate else 0, np.float32)

    def push(self, samples: np.ndarray) -> bytes:
        """Float32 in [-1, 1] -> the bytes of as much sound."""
        silence, self._silence = self._silence, self._silence[:0]
        self._own = np.concatenate([self._own, self._resampler.push(np.concatenate([silence, samples]))])
        ready, self._own = np.split(self._own, [round(len(samples) * self._ratio)])
        pcm = to_pcm(ready)
        return _to_law(pcm, _LAWS[self._form.type]) if self._form.type in _LAWS else pcm.tobytes()


def _to_law(pcm: np.ndarray, law: np.ndarray) -> bytes:
    """The code whose sample is nearest."""
    order = np.argsort(law, kind="stable").astype(np.uint8)
    sizes = law[order].astype(np.int32)
    return order[np.searchsorted((sizes[1:] + sizes[:-1]) / 2, pcm, side="right")].tobytes()
