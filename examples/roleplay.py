"""A character to play with: a persona by instructions, who talks, and reacts to a gesture.

    python -m examples.roleplay --wav=hello.wav --video=wave.mp4 --persona="You are a shy ghost. Answer in a word."
    python -m examples.roleplay --mic --camera=/dev/video0 --persona=@ghost.txt --name=Ghost

The persona is the session's instructions, which the model is given before anything else. When it speaks though nobody
has just said anything, it has reacted to what it saw; the first time, a stage direction (`--direction`) is given to it
as further instructions, while the play goes on.

What the shipped tiny model can do of it: it answers "hello", "good morning" and "how are you", and once it was asked to
"count the repetitions" it reacts to each gesture, such as raised arms, with its number. It was taught three
instructions and no persona: one changes nothing for the better, and may cost the answer to a greeting.
"""

import asyncio
import pathlib
import sys

from absl import flags

from examples import devices
from launch import cli, reach
from tml_jax import client
from tml_jax.wire import events

_SERVER = reach.server()
_USER = devices.user()
_NAME = flags.DEFINE_string("name", "Ghost", "Of the character.")
_PERSONA = flags.DEFINE_string("persona", "You are a shy ghost. Greet who greets you.", "Who it is, or @FILE.")
_DIRECTION = flags.DEFINE_string("direction", "You have seen the player wave.", "Told to it after its first reaction.")
SPEECH = 0.01  # root mean square of the player's sound, full scale 1
REACTION_S = 1.2  # what is said so long after the player spoke is no answer


class Play:
    """Follows the play.

    Attributes:
      asides: what the character is to know meanwhile. reactions: (seconds, what it said) to what it saw.
    """

    def __init__(self, name: str, direction: str) -> None:
        self.asides: asyncio.Queue[client.Typed | client.Context] = asyncio.Queue()
        self.reactions: list[tuple[float, str]] = []
        self._name, self._direction = name, direction
        self._spoken_s, self._turn_s = 0.0, 0.2

    def observe(self, event: events.Event) -> None:
        """One event of the session."""
        match event:
            case events.Started(stream=stream):
                self._turn_s = stream.micro_turn_ms / 1000
            case events.Turn(turn=turn, input_level=level) if level > SPEECH:
                self._spoken_s = (turn + 1) * self._turn_s
            case events.Words(start_ms=start_ms, text=text):
                time_s, saw = start_ms / 1000, start_ms / 1000 - self._spoken_s > REACTION_S
                print(f"{time_s:6.1f} s  {self._name}{' (sees it)' if saw else ''}: {text.strip()}", flush=True)
                if saw and not self.reactions:
                    self.asides.put_nowait(client.Context(self._direction))
                if saw:
                    self.reactions.append((time_s, text.strip()))


async def perform(user: devices.User, persona: str, play: Play) -> None:
    """One play, to the end of the player's sound."""
    async with client.connect(_SERVER()) as channel:
        await client.converse(
            channel,
            client.Script(user.sound, user.pictures, instructions=persona),
            microphone=user.microphone,
            real_time=user.real_time,
            asides=play.asides,
            observe=play.observe,
        )


def main(argv: list[str]) -> None:
    """Plays with whom the flags name."""
    del argv
    persona = _PERSONA.value
    persona = pathlib.Path(persona[1:]).read_text() if persona.startswith("@") else persona
    user = _USER()
    try:
        asyncio.run(perform(user, persona, Play(_NAME.value, _DIRECTION.value)))
    except client.SessionError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    cli.run(main)
