"""The user of an example: sound and pictures of files, or of this machine's microphone and camera."""

import dataclasses
from collections.abc import AsyncIterator, Callable

import numpy as np
from absl import flags

from tml_jax.client import camera, media, microphone

# A flag belongs to the command that asks for it here, whose --help lists it.
flags.disclaim_key_flags()


@dataclasses.dataclass(frozen=True, eq=False)
class User:
    """What `client.Script` and `client.converse` need of a user.

    Attributes:
      sound: of a file; empty with a microphone. microphone: live sound instead, or None; what was heard is in `kept`.
      pictures: of a file or a camera, or None.
      real_time: whether files are sent at the pace of time.
    """

    sound: media.SoundFile
    pictures: media.Pictures | None
    microphone: AsyncIterator[bytes] | None
    kept: list[bytes]
    real_time: bool

    def heard(self) -> np.ndarray:
        """The user's sound up to now, float32 mono at `media.RATE`."""
        if self.microphone is None:
            return self.sound.mono()
        return np.frombuffer(b"".join(self.kept), np.int16).astype(np.float32) / 32768


def user() -> Callable[[], User]:
    """Defines the flags that say who it is; the function reads them, and raises ValueError for what cannot be read."""
    wav = flags.DEFINE_string("wav", None, "Sound of the user, any format.")
    mic = flags.DEFINE_bool("mic", False, "Take the user's sound from the microphone instead.")
    seconds = flags.DEFINE_float("seconds", 60.0, "How long the microphone is open.", lower_bound=1)
    video = flags.DEFINE_string("video", None, "What the user shows; without --wav and --mic its sound is used.")
    webcam = flags.DEFINE_string("camera", None, "Take the pictures from this camera instead, such as /dev/video0.")
    real_time = flags.DEFINE_bool("real_time", True, "Send files at the pace of time.")

    def read() -> User:
        kept: list[bytes] = []
        if not (wav.value or mic.value or video.value):
            raise ValueError("Nobody is there: give --wav, --mic or --video.")
        live = microphone.listen(media.RATE, 20, seconds.value, kept) if mic.value else None
        if live:
            sound = media.SoundFile(np.zeros((0, 1), np.float32), media.RATE)
        else:
            sound = media.read_sound(wav.value) if wav.value else media.sound_of_video(video.value)
        pictures: media.Pictures | None = None
        if webcam.value:
            pictures = camera.Camera(webcam.value)
        elif video.value:
            pictures = media.read_video(video.value, 10)
        return User(sound, pictures, live, kept, real_time.value)

    return read
