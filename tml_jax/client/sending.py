"""How a client sends: each message at its time, sound never kept waiting by pictures."""

import asyncio
import contextlib
import heapq
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from tml_jax.wire import protos

# A block of sound ends this long before the server's tick that takes it.
MARGIN_S = 0.03
WINDOW = 8  # pictures that are made before it is time to send them

Timed = tuple[float, Any]  # (seconds of session time, `ConverseRequest`)


class Pace:
    """The client's clock: session time 0 is when its microphone opens.

    Attributes:
      real_time: whether anything waits for the clock at all.
    """

    def __init__(self, real_time: bool) -> None:
        """Makes a clock that starts now."""
        self.real_time = real_time
        self._start = time.monotonic()

    def align(self, next_tick_s: float, period_s: float) -> None:
        """Starts so that micro-turns end just before the server's ticks."""
        now = time.monotonic()
        self._start = now + (next_tick_s - MARGIN_S) % period_s if self.real_time else now

    def now(self) -> float:
        """Session time."""
        return time.monotonic() - self._start

    async def wait(self, time_s: float) -> None:
        """Until session time `time_s`, in real time."""
        if self.real_time and (left := time_s - self.now()) > 0:
            await asyncio.sleep(left)


async def send(
    call: Any,
    pace: Pace,
    *,
    sounds: Iterator[Timed] | AsyncIterator[bytes],
    pictures: Iterator[Timed],
    texts: Iterator[Timed],
    end_s: float,
    sent: Callable[[float], None],
    asides: Sequence[asyncio.Queue[Any]] = (),
) -> None:
    """Sends everything, then says that no more will come.

    In real time sound, pictures and texts go side by side, so that a picture that is late (its file is read as it is
    sent) keeps no sound waiting. Otherwise they go in the order of their times.

    Args:
      call: the RPC.
      pace: the clock.
      sounds: pieces of sound, or what a microphone hears; the microphone's end is that of the session.
      pictures: may take long to make: they are made in a thread, at most `WINDOW` ahead.
      texts: what is typed.
      end_s: session time at which the input is closed (not with a microphone).
      sent: called with the session time up to which sound has been sent.
      asides: queues of what comes up meanwhile, each with a `request`; sent at once, until all the rest is.
    """
    one_at_a_time = asyncio.Lock()

    async def write(request: Any) -> None:
        async with one_at_a_time:
            await call.write(request)

    async def send_timed(messages: AsyncGenerator[Timed]) -> None:
        async with contextlib.aclosing(messages):
            async for time_s, request in messages:
                await pace.wait(time_s)
                await write(request)
                if request.HasField("audio"):
                    sent(time_s)

    async def interject(queue: asyncio.Queue[Any]) -> None:
        while True:
            await write((await queue.get()).request())

    async def send_all() -> None:
        if pace.real_time:
            await _while_it_lasts(speak(), send_timed(made_ahead(pictures, WINDOW)), send_timed(_each(texts)))
        else:
            assert not isinstance(sounds, AsyncIterator), "a microphone hears in real time"
            merged = heapq.merge(sounds, pictures, texts, key=lambda timed: timed[0])
            await send_timed(made_ahead(merged, WINDOW))

    async def speak() -> None:
        if isinstance(sounds, AsyncIterator):
            async for pcm in sounds:
                await write(protos.ConverseRequest(audio=protos.AudioChunk(pcm=pcm)))
        else:
            await send_timed(_each(sounds))
            await pace.wait(end_s)

    await _while_it_lasts(send_all(), *map(interject, asides))
    await write(protos.ConverseRequest(close=protos.CloseInput()))
    await call.done_writing()


async def _while_it_lasts(main: Any, *others: Any) -> None:
    """Runs all of them until the first has ended; any one's failure is that of all."""
    first, *_ = tasks = [asyncio.create_task(one) for one in (main, *others)]
    pending = set(tasks)
    try:
        while not first.done():
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _each(items: Iterator[Timed]) -> AsyncGenerator[Timed]:
    for item in items:
        yield item


async def made_ahead(items: Iterator[Any], window: int) -> AsyncGenerator[Any]:
    """The items, made in a thread of their own, at most `window` of them before they are asked for.

    An exception there comes out here. Closing this ends the thread, after the item that it is making.
    """
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[tuple[Any, BaseException | None]]()
    room, over = threading.Semaphore(window), threading.Event()

    def tell(item: Any, error: BaseException | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits any more
            loop.call_soon_threadsafe(queue.put_nowait, (item, error))

    def make() -> None:
        try:
            while room.acquire() and not over.is_set():
                tell(next(items), None)
        except Exception as error:
            tell(None, error)

    threading.Thread(target=make, name="made_ahead", daemon=True).start()
    try:
        while True:
            item, error = await queue.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
            room.release()
    finally:
        over.set()
        room.release()
