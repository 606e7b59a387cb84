"""A coach: counts aloud the repetitions that the camera sees, and corrects the pace in the middle of a set.

    python -m examples.coach --wav=ask.wav --video=squats.mp4 --out=coach.wav
    python -m examples.coach --mic --camera=/dev/video0

The model sees, hears and counts. This program follows what it says: where two counts come closer together than
`--fastest_s`, it gives the model a correction to say (`client.Context`), at once, while the set goes on. It prints what
is said, and leaves both in `--out`: the user's sound on the left, the coach's on the right.

What the shipped tiny model can do of it: asked to "count the repetitions", it counts those of one thing that moves
before a plain scene. It says only results that it has asked for, so a correction reaches it, is printed, and is not
said; to say it takes a model that was taught to.
"""

import asyncio
import sys

import numpy as np
import soundfile
from absl import flags

from examples import devices
from launch import cli, reach
from tml_jax import client
from tml_jax.client import media
from tml_jax.streams import number_words
from tml_jax.wire import events

_SERVER = reach.server()
_USER = devices.user()
_OUT = cli.out_file("out", None, "Leave both sides' sound in this wav file.")
_FASTEST_S = flags.DEFINE_float("fastest_s", 1.0, "A repetition that takes less is too fast.", lower_bound=0)
_CORRECTION = flags.DEFINE_string("correction", "slow down", "What the coach is to say then.")
_INSTRUCTIONS = flags.DEFINE_string("instructions", "You are a coach. Count every repetition aloud.", "For the model.")


class Coach:
    """Follows the model's counting.

    Attributes:
      asides: what the model is to know meanwhile.
    """

    def __init__(self, fastest_s: float, correction: str) -> None:
        self.asides: asyncio.Queue[client.Typed | client.Context] = asyncio.Queue()
        self._fastest_s, self._correction = fastest_s, correction
        self._last_s: float | None = None

    def observe(self, event: events.Event) -> None:
        """One event of the session."""
        if not isinstance(event, events.Words):
            return
        time_s = event.start_ms / 1000
        print(f"{time_s:6.1f} s  coach: {event.text.strip()}", flush=True)
        if not number_words.parse_words(event.text.split()):
            return
        if self._last_s is not None and time_s - self._last_s < self._fastest_s:
            print(f"{time_s:6.1f} s  correction: {self._correction}", flush=True)
            self.asides.put_nowait(client.Context(self._correction, to_say=True))
        self._last_s = time_s


async def train(user: devices.User, coach: Coach) -> client.Recording:
    """One training, to the end of the user's sound."""
    script = client.Script(user.sound, user.pictures, instructions=_INSTRUCTIONS.value)
    async with client.connect(_SERVER()) as channel:
        return await client.converse(
            channel,
            script,
            microphone=user.microphone,
            real_time=user.real_time,
            asides=coach.asides,
            observe=coach.observe,
        )


def main(argv: list[str]) -> None:
    """Coaches whom the flags name."""
    del argv
    user = _USER()
    try:
        recording = asyncio.run(train(user, Coach(_FASTEST_S.value, _CORRECTION.value)))
    except client.SessionError as error:
        sys.exit(str(error))
    if _OUT.value:
        sides = user.heard(), recording.reply
        both = np.zeros((max(map(len, sides)), 2), np.float32)
        for channel, samples in enumerate(sides):
            both[: len(samples), channel] = samples
        soundfile.write(_OUT.value, both, media.RATE)


if __name__ == "__main__":
    cli.run(main)
