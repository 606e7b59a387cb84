"""What a server says of itself: metrics, health and spans."""

import asyncio
import contextlib
import itertools
import json
import urllib.error
import urllib.request
from typing import Any

import numpy as np
import pytest
import websockets
from prometheus_client.parser import text_string_to_metric_families
from websockets.asyncio.client import connect

from tests.serve.conftest import bursts, start_web
from tests.serve.test_live_door import START
from tests.serve.test_resume import CONFIG, call, refusal, resume, sound
from tml_jax import client
from tml_jax.serve import watch
from tml_jax.serve.config import SessionConfig
from tml_jax.serve.doors import live, realtime, stream
from tml_jax.serve.doors.access import Quota
from tml_jax.serve.server import ServerSettings
from tml_jax.wire import events, protos

HTTP = "127.0.0.1:0"


def fetch(url: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def samples(text: str) -> dict[str, float]:
    """Every sample, as ``name{label}``."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(sample.labels.values())
            found[sample.name + (f"{{{labels}}}" if labels else "")] = sample.value
    return found


def test_a_conversation_is_counted(bundle, run) -> None:
    async def scenario() -> tuple[list[dict[str, float]], list[tuple[int, str]], client.Recording]:
        settings = ServerSettings(slots=1, http_address=HTTP, api_keys=["k"], faster_than_real_time=True)
        async with start_web(bundle, settings) as server:
            url, found = f"http://127.0.0.1:{server.server.web.port}", list[dict[str, float]]()
            key = {"Authorization": "Bearer k"}

            async def scrape() -> None:
                found.append(samples((await asyncio.to_thread(lambda: fetch(f"{url}/metrics", **key)))[1]))

            probes = [await asyncio.to_thread(fetch, url + path) for path in ("/metrics", "/healthz", "/readyz")]
            await scrape()
            script = client.Script(bursts(3.0, seed=1), texts=[(0.5, "what is two plus two")], tail_s=1.0)
            async with client.connect(client.Address(server.address, "k")) as channel:
                recording = await client.converse(channel, script, real_time=False)
                await scrape()
                blocked = asyncio.create_task(client.converse(channel, script))
                while not len(server.server.sessions):
                    await asyncio.sleep(0.02)
                with pytest.raises(client.SessionError, match="All 1 sessions"):
                    await client.converse(channel, script)
                await scrape()
                probes.append(await asyncio.to_thread(fetch, f"{url}/readyz"))
                blocked.cancel()
                await asyncio.gather(blocked, return_exceptions=True)
            server.server.web.drain()
            probes.append(await asyncio.to_thread(fetch, f"{url}/readyz"))
            return found, probes, recording

    (before, after, full), probes, recording = run(scenario())
    assert [status for status, _ in probes] == [401, 200, 200, 503, 503]
    assert [text.strip() for _, text in probes[1:]] == ["ok", "ok", "full", "draining"]

    def grew(name: str, later: dict[str, float] = after) -> float:
        return later.get(name, 0) - before.get(name, 0)

    turns = sum(event["type"] == "step" for event in recording.events)
    # A session that no clock paces is stepped a little beyond its end.
    assert grew("tml_step_seconds_count{1}") == grew("tml_queue_age_seconds_count") >= turns
    assert grew("tml_admitted_total{new}") == 1
    assert grew("tml_sessions_over_total{ended}") == 1
    assert grew("tml_delegations_total{started}") == grew("tml_delegations_total{finished}") == 1
    assert grew("tml_spoke_total") == sum(event["type"] == "speak" for event in recording.events) > 0
    assert grew("tml_spoke_silent_total") == 0
    assert grew("tml_refused_total{server_full}", full) == 1
    assert (after["tml_slots"], after["tml_live_sessions"], full["tml_live_sessions"]) == (1, 0, 1)
    assert after["tml_compilations_after_warmup"] == 0
    assert "process_resident_memory_bytes" in after


def test_who_asks_for_a_session_is_counted_once_whatever_becomes_of_it(bundle, run) -> None:
    key = {"Authorization": "Bearer k"}
    settings = ServerSettings(slots=1, http_address=HTTP, api_keys=["k"], quota=Quota(sessions=3))

    async def scenario() -> list[tuple[str, dict[str, float]]]:
        found = list[tuple[str, dict[str, float]]]()
        async with (
            start_web(bundle, settings) as server,
            client.connect(client.Address(server.address, "k")) as channel,
        ):
            here, access = f"127.0.0.1:{server.server.web.port}", server.server.web._access
            ways = {live.PATH: json.dumps(START), realtime.PATH: "{}", stream.PATH: CONFIG.SerializeToString()}

            async def count(what: str) -> None:
                text = (await asyncio.to_thread(lambda: fetch(f"http://{here}/metrics", **key)))[1]
                found.append((what, samples(text)))

            async def ask_everywhere(what: str) -> None:
                await refusal(await call(channel, CONFIG))
                for path, first in ways.items():
                    with contextlib.suppress(websockets.InvalidStatus, websockets.ConnectionClosed):
                        async with connect(f"ws://{here}{path}", additional_headers=key) as socket:
                            await socket.send(first)
                            while True:
                                await socket.recv()
                await count(what)

            await count("")
            one = await call(channel, CONFIG, sound(0))
            token = (await one.read()).started.resume_token
            await count("opened")
            again = await call(channel, resume(token))
            await again.read()
            await refusal(one)
            await count("taken over")
            await ask_everywhere("full")
            again.cancel()
            while not server.server.sessions.parked:
                await asyncio.sleep(0.01)
            other = await call(channel, CONFIG)
            await other.read()
            await refusal(await call(channel, resume(token)))
            await count("resumed where it is full")
            calls = [other, *(protos.converse_method(channel)() for _ in range(2))]
            while access._live.total() < len(calls):
                await asyncio.sleep(0.01)
            await ask_everywhere("as many as the key may have")
            for one in calls:
                one.cancel()
            while access._live.total():
                await asyncio.sleep(0.01)
            server.server.web.drain()
            await ask_everywhere("draining")
            return found

    found, grew = run(scenario()), dict[str, dict[str, float]]()
    for (_, before), (what, after) in itertools.pairwise(found):
        names = [name for name in after if name.startswith(("tml_admitted_total", "tml_refused_total"))]
        grew[what] = {name: more for name in names if (more := after[name] - before.get(name, 0))}
    assert grew == {
        "opened": {"tml_admitted_total{new}": 1},
        "taken over": {"tml_admitted_total{resumed}": 1},
        "full": {"tml_refused_total{server_full}": 4},
        "resumed where it is full": {"tml_admitted_total{new}": 1, "tml_refused_total{server_full}": 1},
        "as many as the key may have": {"tml_refused_total{quota}": 4},
        "draining": {"tml_refused_total{drained}": 4},
    }


@pytest.mark.parametrize(("level", "counted"), [(0.0, 1), (1e-3, 1), (0.2, 0)])
def test_words_without_sound_are_counted(level: float, counted: int) -> None:
    turn = events.Turn(4, events.Decision.SPEAK, 1.0, False, 0, 0.0, 0)
    sound = events.Sound(4, 1000, 1200, np.full(3200, level, np.float32), level)
    told = [turn, events.Words(4, " seven", 1000, 1200), *([sound] if level else [])]
    before = watch.SPOKE_SILENT._value.get()
    watch.SessionWatch(SessionConfig(), 0.2).told(told)
    assert watch.SPOKE_SILENT._value.get() - before == counted
    watch.SessionWatch(SessionConfig(wants_audio=False), 0.2).told(told)
    watch.SessionWatch(SessionConfig(), 0.2).told([turn])  # speaks on, without a new word
    assert watch.SPOKE_SILENT._value.get() - before == counted


def test_spans_of_a_session_its_steps_and_its_tasks(bundle, run, monkeypatch) -> None:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    monkeypatch.setattr(watch, "_tracer", None)
    watch.send_spans(exporter)

    async def scenario() -> int:
        async with start_web(bundle, ServerSettings(slots=1, faster_than_real_time=True)) as server:
            script = client.Script(None, texts=[(0.0, "what is two plus two")], tail_s=0.4)
            async with client.connect(server.address) as channel:
                await client.converse(channel, script, real_time=False)
        return server.server.engine.stats().steps

    steps = run(scenario())
    watch._tracer.span_processor.force_flush()
    spans: dict[str, list[Any]] = {}
    for span in exporter.get_finished_spans():
        spans.setdefault(span.name, []).append(span)
    (session,), (task,) = spans["session"], spans["background task"]
    assert len(spans["step"]) == steps > 0
    assert session.attributes["tml.over"] == "ended"
    assert task.parent.span_id == session.context.span_id
    assert task.attributes["tml.state"] == "finished"
    assert all(span.end_time > span.start_time for span in spans["step"])


def test_spans_are_asked_for_by_opentelemetrys_own_variables(monkeypatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    assert not watch.spans_wanted()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    assert watch.spans_wanted()
