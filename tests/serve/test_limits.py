"""What a session may take, by itself and with the others of its key and server."""

import asyncio
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import pytest

from tests.serve.conftest import start_web
from tests.serve.test_resume import CONFIG, OneServer, call, refusal, resume, sound, turns
from tml_jax import client
from tml_jax.serve.doors.access import Quota
from tml_jax.serve.engine import Engine
from tml_jax.serve.server import ServerSettings
from tml_jax.serve.sessions import Sessions
from tml_jax.serve.waiting import FOR_EACH_SLOT, one_too_many
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


async def left(sessions: Sessions, channel: grpc.aio.Channel, count: int) -> str:
    """A session of so many micro-turns whose client has gone; its token."""
    one = await call(channel, CONFIG, *(sound(3200 * k) for k in range(count)))
    token = (await one.read()).started.resume_token
    await turns(one, count)
    one.cancel()
    async with asyncio.timeout(10):
        while not sessions._resumable[token.partition(".")[0]].parked:
            await asyncio.sleep(0.002)
    return token


def test_no_more_sessions_wait_than_there_is_room_for(engine, run) -> None:
    """Who opens sessions and goes, again and again, drives out what is shorter than a conversation."""
    most = FOR_EACH_SLOT * engine.num_slots

    async def scenario() -> tuple[list[int], int, list[tuple[grpc.StatusCode, str]]]:
        async with OneServer(engine) as server, client.connect(server.address) as channel:
            sessions, counts, tokens = server.sessions, list[int](), list[str]()
            talk = await left(sessions, channel, 5)
            for _ in range(most + 4):
                tokens.append(await left(sessions, channel, 1))
                counts.append(sessions.parked)
            again = await call(channel, resume(talk))
            received = (await again.read()).started.received.sound
            gone = [token for token in tokens if token.partition(".")[0] not in sessions._resumable]
            return counts, received, [await refusal(await call(channel, resume(token))) for token in gone]

    counts, received, refusals = run(scenario())
    assert max(counts) == counts[-1] == most
    assert received == 5 * 3200
    assert len(refusals) == 5
    assert {code for code, _ in refusals} == {grpc.StatusCode.NOT_FOUND}
    assert all("too many others waited" in sentence for _, sentence in refusals)


def test_what_waits_for_a_key_s_clients_counts_among_its_sessions(bundle, run) -> None:
    settings = ServerSettings(slots=4, api_keys=["one", "two"], quota=Quota(sessions=2), faster_than_real_time=True)

    async def scenario() -> tuple[list[int], list[bool]]:
        async with start_web(bundle, settings) as server:
            sessions, counts = server.server.sessions, list[int]()
            mine, other = (client.connect(client.Address(server.address, key)) for key in ("one", "two"))
            async with mine, other:
                tokens = [await left(sessions, other, 1)]
                for count in (3, 1, 2):
                    tokens.append(await left(sessions, mine, count))
                    counts.append(sessions.parked)
            return counts, [token.partition(".")[0] in sessions._resumable for token in tokens]

    counts, kept = run(scenario())
    assert counts == [2, 3, 3]
    assert kept == [True, True, False, True], "the shortest of its own"


@dataclasses.dataclass
class Away:
    """A session that waits, or does not."""

    owner: str
    turns: int
    parked: bool = True


def test_who_leaves_most_sessions_behind_loses_one() -> None:
    few, many, here = Away("few", 1), [Away("many", turns) for turns in (9, 3, 7)], Away("many", 2, parked=False)
    sessions = [few, *many, here]
    assert one_too_many(sessions, 2, "few", 0) is None
    assert one_too_many(sessions, 1, "few", 0) is many[1]
    assert one_too_many(sessions, 2, "many", 3) is many[1], "those that have a slot count"
    assert one_too_many(sessions, 2, "many", 4) is None
    assert one_too_many([Away("", 1), Away("", 2)], 2, "", 1) is None, "whom no quota holds"
