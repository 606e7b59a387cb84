"""What a recording is left as: two channels that line up with the journal, and a trace that viewers take."""

import asyncio
import itertools
from typing import Any

import grpc
import numpy as np
import pytest

from tests.serve import test_recording
from tests.serve.conftest import bursts, talk
from tests.serve.test_recording import RATE, exported, server
from tml_jax import client
from tml_jax.client import media
from tml_jax.wire import protos
from tml_jax.wire.pcm import to_pcm

told = test_recording.told  # a fixture


def test_the_exported_journal_is_the_server_s(bundle, run, tmp_path) -> None:
    async def scenario() -> str:
        settings = {"record_dir": tmp_path / "r", "journal_dir": tmp_path / "j", "faster_than_real_time": True}
        async with server(bundle, **settings) as address:
            return (await talk(address, client.Script(bursts(2.0, 1), instructions="be kind"))).session_id

    name = run(scenario())
    exported(tmp_path / "r" / name, tmp_path)
    assert (tmp_path / "session.jsonl").read_text() == (tmp_path / "j" / f"{name}.jsonl").read_text()


def test_the_trace_is_one_that_viewers_take(told, tmp_path) -> None:
    sound, journal, trace = exported(told[0], tmp_path / "out")
    events = trace["traceEvents"]
    length = 200_000 * len(sound)
    named = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "thread_name"}
    tracks: dict[str, list[dict[str, Any]]] = {name: [] for name in named.values()}
    for event in events:
        assert event["pid"] == 1 and event["ph"] in "XiM"
        if event["ph"] == "M":
            continue
        assert type(event["ts"]) is int and event["name"]
        assert event.get("s") == (None if event["ph"] == "X" else "t")
        assert 0 <= event["ts"] <= event["ts"] + event.get("dur", 0) <= length
        tracks[named[event["tid"]]].append(event)
    for spans in ([e for e in track if e["ph"] == "X"] for track in tracks.values()):
        assert all(type(e["dur"]) is int and e["dur"] >= 0 for e in spans)
        spans.sort(key=lambda e: e["ts"])
        assert all(one["ts"] + one["dur"] <= next["ts"] for one, next in itertools.pairwise(spans))
    steps = [e for e in journal if e["type"] == "step"]
    assert [(e["ts"], e["dur"]) for e in tracks["steps"]] == [
        (200_000 * (e["turn"] + 1), min(200_000, round(e["ms"] * 1000))) for e in steps
    ]
    started, finished = (e for e in journal if e["type"] == "background")
    (task,) = tracks[f"background task {started['task']}"]
    assert task["ts"] == round(started["t"] * 1e6) and task["ts"] + task["dur"] == round(finished["t"] * 1e6)
    assert task["args"]["text"] == "forty two"
    (seen,) = tracks["user: pictures"]
    assert seen["ph"] == "i" and seen["ts"] == next(e["turn"] for e in journal if e["type"] == "frame") * 200_000
    words = [(e["name"], e["ts"]) for e in tracks["model: words"] if e["ph"] == "X"]
    assert words == [(e["text"].strip(), round(e["t"] * 1e6)) for e in journal if e["type"] == "word"]
    assert tracks["user: words heard"] and tracks["user: text"][0]["name"] == "what is six times seven"


def test_both_channels_lie_where_the_journal_says(bundle, run, tmp_path) -> None:
    loud = np.zeros((48_000, 1), np.float32)
    loud[17_600:20_800, 0] = np.where(np.random.default_rng(0).random(3200) < 0.5, 0.5, -0.5)  # 1.1 s to 1.3 s
    spoken = client.Script(media.SoundFile(loud, RATE), tail_s=0.4)

    async def scenario() -> str:
        async with server(bundle, record_dir=tmp_path, faster_than_real_time=True) as address:
            return (await talk(address, spoken)).session_id

    sound, journal, _ = exported(tmp_path / run(scenario()), tmp_path / "out")
    user, model = sound[:, 0].reshape(-1), sound[:, 1]
    assert np.flatnonzero(user)[[0, -1]].tolist() == [17_600, 20_799]
    assert abs(user[17_600:20_800].astype(int) - to_pcm(loud[17_600:20_800, 0])).max() <= 1
    assert [e["turn"] for e in journal if e["type"] == "sound" and e["level"] > 0.01] == [5, 6]
    voices = [e for e in journal if e["type"] == "voice"]
    assert voices and [k for k in range(len(model)) if model[k].any()] == [round(5 * e["t"]) for e in voices]
    for voice in voices:
        level = np.sqrt(np.mean(np.square(model[round(5 * voice["t"])] / 32767)))
        assert level == pytest.approx(voice["level"], abs=1e-4)


def test_silence_that_was_put_in_is_in_the_sound(bundle, run, tmp_path) -> None:
    """What comes after a gap of the network is where the model heard it."""
    pcm = np.full(3200, 9000, "<i2")

    async def scenario() -> str:
        async with server(bundle, record_dir=tmp_path) as address, client.connect(address) as channel:
            call = protos.converse_method(channel)()
            await call.write(protos.ConverseRequest(config=protos.SessionConfig(sends_audio=True)))
            for wait_s in (0.2, 0.1, 1.3, 0.2, 0.3):
                await call.write(protos.ConverseRequest(audio=protos.AudioChunk(pcm=pcm[:2400].tobytes())))
                await asyncio.sleep(wait_s)
            await call.write(protos.ConverseRequest(close=protos.CloseInput()))
            name = ""
            while (message := await call.read()) is not grpc.aio.EOF:
                name = message.started.session_id or name
            return name

    sound, journal, trace = exported(tmp_path / run(scenario()), tmp_path / "out")
    user = sound[:, 0]
    silences = {e["turn"]: e["ms"] for e in journal if e["type"] == "silence"}
    assert sum(silences.values()) >= 400
    assert np.count_nonzero(user) == 5 * 2400, "all that was sent is there, once"
    for turn, ms in silences.items():
        assert not user[turn, 3200 - 16 * ms :].any() and user[turn, : 3200 - 16 * ms].all()
    put_in = [e for e in trace["traceEvents"] if e["ph"] == "i" and e["name"] == "silence"]
    assert [(e["ts"], e["args"]["ms"]) for e in put_in] == [(200_000 * turn, ms) for turn, ms in silences.items()]
