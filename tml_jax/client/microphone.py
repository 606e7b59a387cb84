"""Live sound from this machine's microphone, where it has one."""

import asyncio
from collections.abc import AsyncIterator


async def listen(sample_rate: int, chunk_ms: float, seconds: float, kept: list[bytes]) -> AsyncIterator[bytes]:
    """Yields chunks of 16-bit mono until `seconds` are over, and appends each to `kept`.

    Raises:
      ValueError: no microphone can be opened.
    """
    try:
        import sounddevice
    except (ImportError, OSError) as error:
        raise ValueError(
            "The microphone needs the `sounddevice` package and the PortAudio library: install both, or use --wav."
        ) from error
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[bytes]()

    def take(data: bytes, frames: int, when: object, status: object) -> None:
        del frames, when, status
        loop.call_soon_threadsafe(queue.put_nowait, bytes(data))

    size = round(sample_rate * chunk_ms / 1000)
    try:
        stream = sounddevice.RawInputStream(sample_rate, size, channels=1, dtype="int16", callback=take)
    except sounddevice.PortAudioError as error:
        raise ValueError(f"No microphone can be opened ({error.args[0]}): connect one, or use --wav.") from error
    with stream:
        for _ in range(round(seconds * 1000 / chunk_ms)):
            pcm = await queue.get()
            kept.append(pcm)
            yield pcm
