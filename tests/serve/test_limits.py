"""What a session may take."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import pytest

from tests.serve.test_resume import CONFIG, OneServer, call, refusal, sound
from tml_jax import client
from tml_jax.serve.engine import Engine
from tml_jax.wire import protos


@pytest.fixture(scope="module")
def engine(bundle) -> Iterator[Engine]:
    engine = Engine(bundle, 2, faster_than_real_time=True)
    engine.start()
    yield engine
    engine.stop()


def test_a_session_s_limits_are_told_in_one_sentence(engine, run, monkeypatch) -> None:
    monkeypatch.setattr("tml_jax.serve.doors.grpc.FIRST_S", 0.1)
    said = (CONFIG, sound(0), sound(3200))
    limits: list[tuple[dict[str, Any], Sequence[Any]]] = [
        ({"most_bytes": 7000}, said),
        ({"most_bytes": 3}, [CONFIG, protos.ConverseRequest(context=protos.ContextInput(text="four"))]),
        ({"longest_s": 0.2}, said),
        ({"longest_s": 0.2}, [CONFIG]),  # its time stands still
        ({"idle_s": 0.1}, said),
        ({"first_s": 0.1}, [CONFIG]),
        ({}, []),
    ]

    async def scenario() -> list[tuple[grpc.StatusCode, str]]:
        found = []
        for limit, requests in limits:
            async with OneServer(engine, **limit) as server, client.connect(server.address) as channel:
                found.append(await refusal(await call(channel, *requests)))
        return found

    assert run(scenario()) == [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "This session has sent 7000 bytes, as much as it may."),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "This session has sent 3 bytes, as much as it may."),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "This session has lasted 0.2 s, as long as it may."),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "This session has lasted 0.2 s, as long as it may."),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "For 0.1 s nothing was sent or said, so the session was ended."),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Nothing was sent within 0.1 s, so the session was ended."),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "No first message came within 0.1 s."),
    ]


def test_who_is_quiet_on_purpose_is_not_ended(engine, run) -> None:
    """Nothing was ever typed into a session whose time goes on by itself; or sound came, and then none."""
    typing = protos.ConverseRequest(config=protos.SessionConfig())

    async def scenario() -> int:
        async with OneServer(engine, first_s=0.1) as server, client.connect(server.address) as channel:
            calls = [await call(channel, *sent) for sent in ([typing], [CONFIG, sound(0)])]
            for one in calls:
                await one.read()
            await asyncio.sleep(0.5)
            return len(server.sessions)

    assert run(scenario()) == 2
