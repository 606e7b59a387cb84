"""Hundreds of hostile acts at every door, and by the thousand: each is answered, nothing grows, two others talk on."""

import asyncio
import collections
import contextlib
import ctypes
import gc
import json
import logging
import os
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.serve import hostile_acts, hostile_clients, witnesses
from tests.serve.conftest import RunningWeb, start_web
from tests.serve.hostile_clients import KEY, Answer, Doors, frame
from tests.serve.hostile_messages import REQUEST
from tests.serve.witnesses import Talks, program, told_by
from tml_jax.serve.bundle import ModelBundle
from tml_jax.serve.config import SessionSettings
from tml_jax.serve.doors import web
from tml_jax.serve.engine import EngineStats
from tml_jax.serve.server import ServerSettings
from tml_jax.wire import protos

SLOTS = 12
WITNESSES = 2
WAIT_MS = 200  # longer than when they are alone
LATE_MS = 30_000  # silence that is put in is a matter of the clock; what is compared is bits


def held() -> tuple[int, int, int]:
    """Files, threads and tasks of this process."""
    return len(os.listdir("/proc/self/fd")), threading.active_count(), len(asyncio.all_tasks())


async def settle(server: RunningWeb) -> float:
    """Waits until all sessions are over, and gives the memory of this process then."""
    async with asyncio.timeout(60):
        while len(server.server.sessions) or server.server.engine.stats().live:
            await asyncio.sleep(0.1)
    await asyncio.sleep(0.5)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return hostile_clients.resident_mib()


async def throw(server: RunningWeb, seed: int, first: int, last: int) -> dict[str, Any]:
    """The acts of these numbers; what became of them, as `hostile_acts.main` tells it."""
    ports = server.address.rpartition(":")[2], server.server.web.port
    async with program(hostile_acts, *ports, seed, first, last) as acts:
        return await told_by(acts)


async def scenario(bundle, acts: int, seed: int) -> list[str]:
    """All of it; fails where anything grew or a witness's bits changed."""
    settings = ServerSettings(  # what else this machine has to do is no matter here
        slots=SLOTS,
        fullest=10.0,
        http_address="127.0.0.1:0",
        api_keys=[KEY],
        session=SessionSettings(resume_s=2.0, late_ms=LATE_MS),
    )
    async with start_web(bundle, settings) as server:
        async with program(witnesses, server.address, WITNESSES) as talking:
            alone = Talks(**await told_by(talking))
        warm = acts // 5
        first = await throw(server, seed, 0, warm)
        before, had = await settle(server), held()
        async with program(witnesses, server.address, WITNESSES) as talking:
            began = time.monotonic()
            rest = await throw(server, seed, warm, acts)
            took_s = time.monotonic() - began
            beside = Talks(**await told_by(talking))
        after, has = await settle(server), held()
        stats = server.server.engine.stats()
        answers, faults = (
            collections.Counter(first["answers"]) + collections.Counter(rest["answers"]),
            first["faults"] + rest["faults"],
        )
        table = "\n".join(f"  {count:6d} {code}" for code, count in sorted(answers.items()))
        told = (
            f"{acts} acts, the last {acts - warm} in {took_s:.0f} s; answers and errors:\n{table}\n"
            f"memory {before:.0f} -> {after:.0f} MiB; files, threads, tasks {had} -> {has}\n"
            f"{WITNESSES} witnesses alone {alone.told()}; beside {beside.told()}, {len(beside.replies)} conversations\n"
            f"{stats.steps} steps, p99 {stats.step_p99_ms:.1f} ms, {stats.deadline_misses} late, "
            f"{stats.compilations_after_warmup} compilations\n" + "\n".join(faults[:40])
        )
        print(told)
        assert all(reply in alone.replies for reply in beside.replies), "somebody heard something else"
        if acts >= 1000:  # of few micro-turns the slowest say what else this machine had to do
            assert beside.percentile(99) < alone.percentile(99) + WAIT_MS, "somebody waited for them"
        assert stats.compilations_after_warmup == 0
        assert all(now <= then + 3 for now, then in zip(has, had, strict=True)), (had, has)
        assert after < before + 32 + 0.1 * before * (acts < 1000), (before, after)
        return faults


def check(bundle, caplog: pytest.LogCaptureFixture, acts: int, seed: int) -> None:
    with caplog.at_level(logging.ERROR):
        faults = asyncio.run(scenario(bundle, acts, seed))
    for record in caplog.records[:10]:
        print(record.name, record.getMessage(), record.exc_info and repr(record.exc_info[1]))
    assert not faults, f"{len(faults)} faults, such as {faults[:3]}"
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def web_request(*head: str) -> bytes:
    return "\r\n".join([*head, f"Authorization: Bearer {KEY}", "", ""]).encode()


@contextlib.asynccontextmanager
async def doors_of(bundle: ModelBundle) -> AsyncIterator[Doors]:
    async with start_web(bundle, ServerSettings(slots=2, http_address="127.0.0.1:0", api_keys=[KEY])) as server:
        yield Doors(int(server.address.rpartition(":")[2]), server.server.web.port)


@pytest.mark.parametrize(
    "method",
    [
        f"{protos.SERVICE}/GetServerInfo",
        "grpc.health.v1.Health/Check",
        "grpc.health.v1.Health/Watch",
        "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ],
)
def test_what_is_no_message_of_a_method_is_told(bundle, run, method: str) -> None:
    async def scenario() -> list[Answer]:
        answers = [Answer(), Answer()]
        async with doors_of(bundle) as doors, hostile_clients.channel_to(doors.grpc_port) as channel:
            for key, answer in zip((KEY, "wrong"), answers, strict=True):
                await hostile_clients.call(channel, [b"\xff\xff"], answer, method=f"/{method}", key=key)
        return answers

    known, unknown = run(scenario())
    assert known.codes == ["INVALID_ARGUMENT"]
    assert known.sentences == ["A message of 2 bytes is none that this method takes."]
    assert unknown.codes == (["INVALID_ARGUMENT"] if "Health" in method else ["UNAUTHENTICATED"])


@pytest.mark.parametrize("bad", ["Host: [::1", "Host: 127.0.0.1\r\nOrigin: http://["])
def test_a_name_that_is_none_is_forbidden(bundle, run, bad: str) -> None:
    async def scenario() -> tuple[int, bytes]:
        async with doors_of(bundle) as doors:
            return await hostile_clients.bare(doors, web_request("GET /v1/info HTTP/1.1", bad))

    status, body = run(scenario())
    assert status == 403
    assert json.loads(body)["error"]["code"] == "forbidden"


@pytest.mark.parametrize(
    "head",
    [
        ("POST /v1/tokens HTTP/1.1", "Host: 127.0.0.1", "Transfer-Encoding: chunked", "", "zz"),
        ("HEAD /healthz HTTP/1.1", "Host: 127.0.0.1", "", "\0"),
        (
            "GET /v1/stream HTTP/1.1",
            "Host: 127.0.0.1",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Key: é",
            "Sec-WebSocket-Version: 13",
        ),
    ],
)
def test_what_is_no_request_is_no_error_of_the_server(bundle, run, caplog, head: tuple[str, ...]) -> None:
    async def scenario() -> int:
        async with doors_of(bundle) as doors:
            return (await hostile_clients.bare(doors, web_request(*head)))[0]

    assert run(scenario()) in (0, 200, 400)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_who_asks_for_nothing_is_sent_away(bundle, run, monkeypatch) -> None:
    monkeypatch.setattr(web, "REQUEST_S", 0.3)
    whole = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"

    async def scenario() -> list[bytes]:
        async with doors_of(bundle) as doors, hostile_clients.opened(doors, "/v1/live/sessions") as talking:
            got = []
            for sent in (b"", whole[:20], whole + whole[:20]):
                reader, writer = await asyncio.open_connection("127.0.0.1", doors.web_port)
                writer.write(sent)
                with contextlib.suppress(OSError):
                    got.append(await asyncio.wait_for(reader.read(), 4))
                writer.close()
            await talking.write(frame(b"{"))
            assert (await talking.read())[0] == 1, "a WebSocket stays"
            return got

    got = run(scenario())
    assert [b"200 OK" in data for data in got] == [False, False, True][: len(got)]


def test_a_flood_of_pings_closes_the_socket(bundle, run) -> None:
    async def scenario() -> Answer:
        answer = Answer()
        async with doors_of(bundle) as doors, hostile_clients.opened(doors, "/v1/live/sessions") as one:
            await one.write(frame(b"hi", 9) * 1000)
            await one.hear(answer)
        return answer

    assert run(scenario()).codes == ["close 1008"]


def test_text_that_is_none_closes_the_socket_and_is_no_error_of_the_server(bundle, run, caplog) -> None:
    async def scenario() -> tuple[int, bytes]:
        async with doors_of(bundle) as doors, hostile_clients.opened(doors, "/v1/stream") as one:
            await one.write(frame(b"\xc3\x28"))
            return await one.read()

    assert run(scenario()) == (8, (1007).to_bytes(2, "big"))
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("rounds", [2, pytest.param(200, marks=pytest.mark.soak)])
def test_odd_ends_of_one_session_are_not_its_neighbours(bundle, rounds: int) -> None:
    """Public case P6: reset in the middle of a chunk, silence alone, an end without a beginning, over and over."""
    config = REQUEST(config=protos.SessionConfig(sends_audio=True)).SerializeToString()
    close = REQUEST(close=protos.CloseInput()).SerializeToString()
    silence = REQUEST(audio=protos.AudioChunk(pcm=bytes(6400))).SerializeToString()

    async def odd(doors: Doors) -> list[str]:
        ended = []
        async with hostile_clients.opened(doors, "/v1/stream") as one:
            await one.write(frame(config, 2) + frame(silence, 2)[:3000])
            await asyncio.sleep(0.02)
            hostile_clients.reset(one.writer)
        for sent in ([config, silence, close], [close], [config, close]):
            async with hostile_clients.opened(doors, "/v1/stream") as one:
                await one.write(b"".join(frame(message, 2) for message in sent))
                answer = Answer()
                await one.hear(answer, seconds=20)
                ended += answer.codes[-1:]
        return ended

    async def scenario() -> tuple[Talks, Talks, list[str], EngineStats]:
        settings = ServerSettings(
            slots=4, http_address="127.0.0.1:0", api_keys=[KEY], session=SessionSettings(linger_ms=200, late_ms=LATE_MS)
        )
        async with start_web(bundle, settings) as server:
            doors = Doors(int(server.address.rpartition(":")[2]), server.server.web.port)
            async with program(witnesses, server.address, 3) as talking:
                alone = Talks(**await told_by(talking))
            ended: list[str] = []
            async with program(witnesses, server.address, 3) as talking:
                while len(ended) < 3 * rounds:
                    ended += await odd(doors)  # a slot that did not come back would be missed by the next
                beside = Talks(**await told_by(talking))
            await settle(server)
            return alone, beside, ended, server.server.engine.stats()

    alone, beside, ended, stats = asyncio.run(scenario())
    print(
        f"{rounds} rounds; alone {alone.told()}, beside {beside.told()}; "
        f"{stats.steps} steps, {stats.deadline_misses} late"
    )
    assert all(reply in alone.replies for reply in beside.replies)
    assert ended == ["close 1000", "close 1008", "close 1000"] * rounds


def test_hostile_acts_are_answered_and_touch_nobody_else(bundle, caplog) -> None:
    check(bundle, caplog, 250, seed=1)


@pytest.mark.soak
def test_ten_thousand_hostile_acts_are_answered_and_nothing_grows(bundle, caplog) -> None:
    check(bundle, caplog, 10_000, seed=2)
