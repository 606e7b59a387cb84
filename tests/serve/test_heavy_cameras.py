"""Clients with large cameras: they are slowed down, and those who only speak don't notice."""

import asyncio
import contextlib

import pytest

from tests.serve import heavy_cameras, witnesses
from tests.serve.conftest import start_web
from tests.serve.hostile_clients import KEY
from tests.serve.witnesses import Talks, program, told_by
from tml_jax.serve.bundle import load_bundle
from tml_jax.serve.server import ServerSettings

CAMERAS, SPEAKERS = 8, 4


@pytest.mark.parametrize("seconds", [0, pytest.param(120, marks=pytest.mark.soak)])
def test_eight_cameras_put_no_silence_into_anybody_s_sound(bundle, seconds: int) -> None:
    """With the fake model, or for so long with the shipped one."""
    model = load_bundle("checkpoints/inkling_tiny") if seconds else bundle
    settings = ServerSettings(slots=CAMERAS + SPEAKERS, fullest=10.0, api_keys=[KEY])

    async def scenario() -> tuple:
        async with start_web(model, settings) as server:
            async with program(witnesses, server.address, SPEAKERS) as speaking:
                alone = Talks(**await told_by(speaking))
            before = server.server.engine.stats()
            async with program(heavy_cameras, server.address, CAMERAS) as watching:
                while server.server.engine.stats().live < CAMERAS:
                    await asyncio.sleep(0.1)
                async with program(witnesses, server.address, SPEAKERS) as speaking:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(speaking.wait(), seconds)
                    beside = Talks(**await told_by(speaking))
                cameras = await told_by(watching)
            return alone, beside, cameras, before, server.server.engine.stats()

    alone, beside, cameras, before, stats = asyncio.run(scenario())
    print(
        f"{SPEAKERS} speakers alone {alone.told()}; beside {CAMERAS} cameras {beside.told()}, "
        f"{beside.silence_ms} ms of silence\npictures a second of each camera: {cameras['fps']}, {cameras['told']}\n"
        f"{stats.steps} steps, p99 {stats.step_p99_ms:.0f} ms, {stats.deadline_misses - before.deadline_misses} late"
    )
    assert beside.silence_ms == 0
    assert not cameras["told"]
    assert min(cameras["fps"]) > 0
    # They send all 80 a second as long as they are read; of a few seconds much lies between, in buffers.
    assert sum(cameras["fps"]) < CAMERAS * heavy_cameras.FPS * (0.5 if seconds else 0.75)
    if seconds:
        assert beside.percentile(99) < 200
    else:  # of the shipped model's steps the time is their rounding's
        assert all(reply in alone.replies for reply in beside.replies)
        # A loaded machine keeps both waiting, and of so few micro-turns the 99th percentile is one of the slowest two.
        assert beside.percentile(99) < alone.percentile(99) + 200
