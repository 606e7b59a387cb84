"""Servers of the fake model, over real sockets."""

import asyncio
import contextlib
import functools
import pathlib
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

import numpy as np
import pytest

from tests.serve.fakes import SPEC, fake_bundle
from tml_jax import client
from tml_jax.client import media
from tml_jax.serve.bundle import ModelBundle
from tml_jax.serve.config import SessionSettings
from tml_jax.serve.reading import Reading
from tml_jax.serve.server import Server, ServerSettings
from tml_jax.streams.text import Tokenizer


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    return fake_bundle(tmp_path_factory.mktemp("fake"))


@functools.cache
def reading() -> Reading:
    """As the fake model reads."""
    return Reading(Tokenizer("checkpoints/inkling_tiny/tokenizer.json"), SPEC, SessionSettings().max_text_ms)


class Running:
    """A server that runs in this process, and its address."""

    def __init__(self, server: Server, port: int) -> None:
        self.server, self.address = server, f"127.0.0.1:{port}"


@pytest.fixture
def serving(bundle: ModelBundle) -> Callable[..., contextlib.AbstractAsyncContextManager[Running]]:
    @contextlib.asynccontextmanager
    async def start(
        slots: int = 2, *, real_time: bool = False, journal_dir: pathlib.Path | None = None, **session: Any
    ) -> AsyncIterator[Running]:
        settings = ServerSettings(
            slots=slots,
            journal_dir=journal_dir,
            faster_than_real_time=not real_time,
            session=SessionSettings(**session),
        )
        server = Server(bundle, settings)
        try:
            yield Running(server, await server.start())
        finally:
            await server.stop(0.0)

    return start


@pytest.fixture
def run() -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Runs a coroutine in a fresh event loop, for at most two minutes."""
    return lambda coroutine: asyncio.run(asyncio.wait_for(coroutine, 120))


def bursts(seconds: float, seed: int, rate: int = 16_000, channels: int = 1) -> media.SoundFile:
    """Noise that comes and goes: 0.6 s of sound, 0.4 s of silence."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(round(seconds * rate)) / rate
    mono = 0.2 * rng.standard_normal(len(time_s)) * ((time_s % 1.0) < 0.6)
    return media.SoundFile(np.repeat(mono[:, None], channels, axis=1).astype(np.float32), rate)


async def talk(address: str, script: client.Script, **options: Any) -> client.Recording:
    """One conversation as fast as the server goes."""
    channel = client.connect(address)
    async with channel:
        return await client.converse(channel, script, **({"real_time": False} | options))


class RunningWeb(Running):
    """A server with a web door beside gRPC's."""

    def __init__(self, server: Server, port: int) -> None:
        super().__init__(server, port)
        self.base_url = f"http://127.0.0.1:{server.web.port}/v1"
        self.url = f"ws://127.0.0.1:{server.web.port}/v1/live/sessions"


@contextlib.asynccontextmanager
async def start_web(bundle: ModelBundle, settings: ServerSettings) -> AsyncIterator[RunningWeb]:
    server = Server(bundle, settings)
    try:
        port = await server.start()
        yield RunningWeb(server, port)
    finally:
        await server.stop(0.0)


@pytest.fixture
def serving_web(bundle: ModelBundle) -> Callable[..., contextlib.AbstractAsyncContextManager[RunningWeb]]:
    """A server of the fake model in real time, with a web door."""

    def start(
        slots: int = 2, host: str = "127.0.0.1", api_keys: Sequence[str] = (), **session: Any
    ) -> contextlib.AbstractAsyncContextManager[RunningWeb]:
        settings = ServerSettings(
            slots=slots, http_address=f"{host}:0", api_keys=api_keys, session=SessionSettings(**session)
        )
        return start_web(bundle, settings)

    return start
