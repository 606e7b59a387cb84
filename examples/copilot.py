"""A copilot for a livestream: speaks when something happens in the picture, and reads the chat.

    python -m examples.copilot --video=stream.mp4 --chat=chat.txt --highlights=highlights.txt
    tail -f chat.log | python -m examples.copilot --mic --camera=/dev/video0 --chat=-

Lines of the chat are typed into the session: those of a file at their times, ``SECONDS:TEXT``; with ``--chat=-`` those
of stdin as they come. The model decides what to say to them. Whenever it begins to speak after a silence, that moment
is a highlight: its time and what was said are printed, and kept.

What the shipped tiny model can do of it: once the streamer has said "count the repetitions", it speaks at the end of
each motion that it sees, one thing that moves before a plain scene. Of typed text it was taught a few requests,
and no chat: it reads that, and says nothing to it.
"""

import asyncio
import pathlib
import sys
import threading

from absl import flags

from examples import devices
from launch import cli, reach
from tml_jax import client
from tml_jax.wire import events

_SERVER = reach.server()
_USER = devices.user()
_CHAT = flags.DEFINE_string("chat", None, "File of lines SECONDS:TEXT, or - for lines of stdin as they come.")
_HIGHLIGHTS = cli.out_file("highlights", None, "Leave the highlights in this text file.")
LONGEST = 200  # characters of a line
PAUSE_S = 0.8  # of silence, after which the model begins anew


class Highlights:
    """The moments at which the model began to speak, (seconds, what it said): `kept`."""

    def __init__(self) -> None:
        self.kept: list[tuple[float, str]] = []
        self._until = -PAUSE_S

    def observe(self, event: events.Event) -> None:
        """One event of the session."""
        if isinstance(event, events.Words):
            start_s, text = event.start_ms / 1000, event.text.strip()
            if start_s - self._until < PAUSE_S and self.kept:
                start_s, text = self.kept[-1][0], f"{self.kept.pop()[1]} {text}"
            self.kept.append((start_s, text))
            self._until = event.end_ms / 1000
            print(f"{start_s:6.1f} s  {text}", flush=True)


def read_chat(path: str) -> list[tuple[float, str]]:
    """The lines ``SECONDS:TEXT`` of a file. Raises ValueError for others."""
    lines = [line.partition(":") for line in pathlib.Path(path).read_text().splitlines() if line.strip()]
    if wrong := [head for head, _, text in lines if not head.replace(".", "", 1).isdecimal() or not text.strip()]:
        raise ValueError(f"A line of the chat {path} is no SECONDS:TEXT: it begins with {wrong[0]!r}.")
    return [(float(seconds), text.strip()[:LONGEST]) for seconds, _, text in lines]


async def watch(user: devices.User, typed: list[tuple[float, str]], highlights: Highlights) -> None:
    """One stream, to its end."""
    chat, loop = asyncio.Queue[client.Typed | client.Context](), asyncio.get_running_loop()

    def read() -> None:
        for line in filter(str.strip, sys.stdin):
            loop.call_soon_threadsafe(chat.put_nowait, client.Typed(line.strip()[:LONGEST]))

    if _CHAT.value == "-":
        threading.Thread(target=read, daemon=True).start()
    async with client.connect(_SERVER()) as channel:
        await client.converse(
            channel,
            client.Script(user.sound, user.pictures, typed),
            microphone=user.microphone,
            real_time=user.real_time,
            asides=chat,
            observe=highlights.observe,
        )


def main(argv: list[str]) -> None:
    """Watches the stream that the flags name."""
    del argv
    user, highlights = _USER(), Highlights()
    typed = read_chat(_CHAT.value) if _CHAT.value not in (None, "-") else []
    try:
        asyncio.run(watch(user, typed, highlights))
    except client.SessionError as error:
        sys.exit(str(error))
    if _HIGHLIGHTS.value:
        lines = [f"{time_s:.1f}: {text}\n" for time_s, text in highlights.kept]
        pathlib.Path(_HIGHLIGHTS.value).write_text("".join(lines))


if __name__ == "__main__":
    cli.run(main)
