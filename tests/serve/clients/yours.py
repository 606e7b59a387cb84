"""Microphone and speaker of the samples, in a test: a wav is spoken as time goes, what is played is written down."""

import asyncio
import json
import os
import time
import wave
from collections.abc import AsyncIterator

FRAME_S = 0.02
LONGEST_S, TAIL_S = 25.0, 2.0  # silence after the last word: until the answer has come, and a while longer
ANSWER = "twenty four"


def _speech() -> tuple[bytes, int]:
    if not os.environ.get("SPEECH"):
        return b"", 24_000
    with wave.open(os.environ["SPEECH"]) as file:
        return file.readframes(file.getnframes()), file.getframerate()


async def microphone() -> AsyncIterator[bytes]:
    """PCM16, mono, 24 kHz, as time goes; ends a while after the last word."""
    pcm, rate = _speech()
    size = round(rate * FRAME_S) * 2
    start, last = time.monotonic(), len(pcm) / 2 / rate + LONGEST_S
    for number in range(round(last / FRAME_S)):
        now = number * FRAME_S
        await asyncio.sleep(max(0.0, start + now - time.monotonic()))
        yield pcm[number * size : (number + 1) * size].ljust(size, b"\0")
        if heard.answered:
            last = min(last, now + TAIL_S)
        if now >= last:
            return


class Heard:
    """What was played and told; `save` writes it for the test."""

    def __init__(self) -> None:
        self.sound = bytearray()
        self.lines: list[list[str]] = []

    @property
    def answered(self) -> bool:
        """Whether what the model was to find out has been said."""
        return ANSWER in " ".join(" ".join(text for _, text in self.lines).split())

    def save(self) -> None:
        with open(os.environ["HEARD"] + ".pcm", "wb") as file:
            file.write(self.sound)
        with open(os.environ["HEARD"], "w") as file:
            json.dump(self.lines, file)


heard = Heard()


def play(pcm: bytes) -> None:
    """Plays PCM16, mono, 24 kHz."""
    heard.sound += pcm


def show(*words: object) -> None:
    """Shows a line."""
    heard.lines.append([str(word) for word in words])
    heard.save()
