"""Reading ahead: what comes while something is taken is taken together, in order, and not without bound."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tml_jax.serve.doors import ahead


class Client:
    """Sends messages as they are asked for, and says how many were."""

    def __init__(self, *messages: bytes | Exception, ends: bool = True) -> None:
        self.messages, self.ends, self.sent = messages, ends, 0

    async def send(self) -> AsyncIterator[bytes]:
        for message in self.messages:
            await asyncio.sleep(0)
            if isinstance(message, Exception):
                raise message
            self.sent += 1
            yield message
        if not self.ends:
            await asyncio.Event().wait()


async def settle() -> None:
    for _ in range(1000):
        await asyncio.sleep(0)


def test_what_came_meanwhile_is_taken_together(run) -> None:
    messages = [bytes([k]) for k in range(10)]

    async def scenario() -> list[list[bytes]]:
        taken = []
        async with contextlib.aclosing(ahead.read(Client(*messages).send())) as read:
            async for together in read:
                taken.append(together)
                await settle()
        return taken

    first, rest = run(scenario())
    assert first == messages[:1]
    assert rest == messages[1:]


@pytest.mark.parametrize(("size", "most"), [(1, ahead.MOST), (ahead.MOST_BYTES // 4, 4), (4 * ahead.MOST_BYTES, 1)])
def test_what_waits_is_bounded(run, size: int, most: int) -> None:
    async def scenario() -> tuple[int, int, int]:
        client, before = Client(*[bytes(size)] * 1000, ends=False), len(asyncio.all_tasks())
        async with contextlib.aclosing(ahead.read(client.send())) as read:
            taken = len(await anext(read))
            await settle()
            sent = client.sent
        await settle()
        return sent - taken, client.sent - sent, len(asyncio.all_tasks()) - before

    waiting, more, tasks = run(scenario())
    assert waiting == most
    assert more == 0
    assert tasks == 0, "who has gone is not read any more"


def test_an_error_comes_after_what_came_before_it(run) -> None:
    async def scenario() -> list[bytes]:
        taken = []
        with pytest.raises(KeyError):
            async for together in ahead.read(Client(b"a", b"b", KeyError()).send()):
                taken += together
                await settle()
        return taken

    assert run(scenario()) == [b"a", b"b"]
