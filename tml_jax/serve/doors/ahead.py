"""Reading ahead: while a client's messages are taken, those that follow are read, and are taken together.

One message at a time, a client that sends sound in pieces of 20 ms waits four turns of the event loop for each. Where
others keep the loop busy, 50 of them take longer than a second, and the client falls behind for good.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

MOST, MOST_BYTES = 50, 1 << 16  # that wait, and one message; what is more waits at the client


async def read(messages: AsyncIterator[bytes]) -> AsyncGenerator[list[bytes]]:
    """The messages, in order: each list holds, at least one, those that came while the last list was taken.

    Raises:
      Exception: what `messages` raised, after all that came before.
    """
    waiting: list[bytes] = []
    size = 0
    news, room = asyncio.Event(), asyncio.Event()

    async def read_on() -> None:
        nonlocal size
        try:
            async for message in messages:
                waiting.append(message)
                size += len(message)
                news.set()
                while len(waiting) >= MOST or size >= MOST_BYTES:
                    room.clear()
                    await room.wait()
        finally:
            news.set()

    reading = asyncio.create_task(read_on())
    try:
        while waiting or not reading.done():
            if waiting:
                taken, waiting, size = waiting, [], 0
                room.set()
                yield taken
            else:
                news.clear()
                await news.wait()
        reading.result()
    finally:
        reading.cancel()
