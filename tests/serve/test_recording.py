"""Recordings: off by default, whole up to wherever they end, and the same bits when they are replayed."""

import asyncio
import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import shutil
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import soundfile
from websockets.asyncio.client import connect

from tests.serve.conftest import bursts, start_web, talk
from tests.serve.test_live_door import START, base64_of
from tests.serve.test_quiet import command
from tests.serve.test_resume import Breakable, Holding, OneServer, kept, script, uninterrupted
from tml_jax import client
from tml_jax.client import media
from tml_jax.eval import replay as replaying
from tml_jax.eval.replay import export, replay
from tml_jax.executor.live import LiveModel
from tml_jax.serve.bundle import ModelBundle, load_bundle
from tml_jax.serve.engine import Engine
from tml_jax.serve.recording import Recorded
from tml_jax.serve.server import Server, ServerSettings
from tml_jax.serve.session_log import SessionLog, pack, unpack
from tml_jax.wire.behaviour import text_of
from tml_jax.wire.journal import read_journal
from tml_jax.wire.pcm import to_pcm

RATE = 16_000


@contextlib.asynccontextmanager
async def server(bundle: ModelBundle, **settings: Any) -> AsyncIterator[str]:
    one = Server(bundle, ServerSettings(**({"slots": 2} | settings)))
    try:
        yield f"127.0.0.1:{await one.start()}"
    finally:
        await one.stop(0.0)


def everything() -> client.Script:
    """Sound, a picture, typed text, and a question for the background model."""
    shown = media.VideoFile([np.full((40, 40, 3), 90, np.uint8)], [0.5])
    return client.Script(bursts(0.9, 1), shown, texts=[(0.3, "what is six times seven")], tail_s=1.6, seed=11)


@pytest.fixture(scope="module")
def told(bundle, tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, client.Recording]:
    """A conversation with all that there is, in real time, and its recording."""
    folder = tmp_path_factory.mktemp("recorded")

    async def scenario() -> client.Recording:
        async with server(bundle, record_dir=folder / "deep") as address:
            return await talk(address, everything(), real_time=True)

    recording = asyncio.run(asyncio.wait_for(scenario(), 60))
    return folder / "deep" / recording.session_id, recording


def turns_of(folder: pathlib.Path) -> list[dict[str, Any]]:
    return [record for record in Recorded(folder).records() if "turn" in record]


def test_a_conversation_with_all_there_is_is_replayed_with_the_same_bits(bundle, told) -> None:
    folder, recording = told
    records = turns_of(folder)
    blocks = [record["block"] for record in records]
    assert any(block["patches"] is not None for block in blocks)
    notes = [(note["who"], note["text"]) for block in blocks for note in block["notes"]]
    assert ("user_text", "what is six times seven") in notes and ("background", "forty two") in notes
    assert sum(record["said"] is not None for record in records) >= 2, "an answer to the sound, and one to the question"
    assert len(records) == len([event for event in recording.events if event["type"] == "step"]) >= 12
    assert replay(Recorded(folder), bundle) == (len(records), "")


def changed(folder: pathlib.Path, turn: int, change: Callable[[dict[str, Any]], None]) -> None:
    """Has the record of a micro-turn hold something else, with a checksum that fits."""
    (path,) = folder.glob("*.log")
    records, _ = unpack(path.read_bytes())
    change(next(record for record in records if record.get("turn") == turn))
    path.write_bytes(b"".join(map(pack, records)))


def flip(name: str) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        bits = np.array(record[name])
        bits.view(np.uint8).reshape(-1)[0] ^= 1
        record[name] = bits

    return change


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("tokens", "the words said"),
        ("heard", "the words heard"),
        ("mel", "the mel frames"),
        ("said", "the sound"),
        ("decision", "the decision"),
    ],
)
def test_one_bit_of_a_recorded_output_is_found_and_named(bundle, told, tmp_path, name: str, what: str) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(told[0], folder)
    turn = next(one["turn"] for one in turns_of(folder) if one["said"] is not None and one["mel"] is not None)

    def silent(record: dict[str, Any]) -> None:
        record["tokens"] = np.full_like(record["tokens"], bundle.tokenizer.control.listen)

    changed(folder, turn, silent if name == "decision" else flip(name))
    assert replay(Recorded(folder), bundle) == (turn, what)


def test_an_input_that_was_changed_comes_out_otherwise(bundle, told, tmp_path) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(told[0], folder)

    def louder(record: dict[str, Any]) -> None:
        record["block"]["levels"] = record["block"]["levels"] ^ 1

    changed(folder, 1, louder)
    same, what = replay(Recorded(folder), bundle)
    assert 1 <= same < len(turns_of(folder)) and what


def test_a_recording_that_is_cut_anywhere_is_replayed_up_to_there(bundle, told, tmp_path) -> None:
    (path,) = told[0].glob("*.log")
    data = path.read_bytes()
    ends, at = [], 0
    for record in unpack(data)[0]:
        at += len(pack(record))
        ends.append(at)
    assert at == len(data)
    for cut in np.random.default_rng(0).integers(ends[0], len(data) - 1, 4):
        folder, out = tmp_path / f"cut{cut}", tmp_path / f"out{cut}"
        shutil.copytree(told[0], folder)
        (folder / path.name).write_bytes(data[:cut])
        out.mkdir()
        whole = sum(end <= cut for end in ends[:-1])
        assert export(Recorded(folder), out) == (whole, False)
        assert replay(Recorded(folder), bundle) == (whole, "")
    damaged = bytearray(data)
    damaged[ends[4] + 200] ^= 1
    (folder / path.name).write_bytes(damaged)
    assert len(turns_of(folder)) == 5, "what follows a damaged record is not taken for what follows the one before"
    (folder / path.name).write_bytes(data[: ends[4]] + data[ends[5] :])
    assert len(turns_of(folder)) == 5, "nor what follows one that is missing"
    (folder / path.name).write_bytes(data[: ends[0] - 1])
    with pytest.raises(ValueError, match="holds no whole micro-turn"):
        export(Recorded(folder), out)


def test_nothing_is_recorded_unless_asked(bundle, run, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert ServerSettings().record_dir is None

    async def scenario(**settings: Any) -> None:
        async with server(bundle, faster_than_real_time=True, **settings) as address:
            await talk(address, client.Script(bursts(0.4, 1), tail_s=0.0))

    run(scenario())
    assert not list(tmp_path.iterdir())
    run(scenario(record_dir=tmp_path / "here"))
    assert list(tmp_path.iterdir())


def test_recordings_are_the_servers_user_s_alone(told) -> None:
    mask = os.umask(0)
    os.umask(mask)
    assert mask != 0o77, "or this proves nothing"
    folder, _ = told
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {
        "head": 0o600,
        "00000.log": 0o600,
    }


def exported(folder: pathlib.Path, out: pathlib.Path) -> tuple[np.ndarray, list[dict[str, Any]], dict[str, Any]]:
    """Both channels, int16 [micro-turns + 1, 2, 3200]; the journal; the trace."""
    out.mkdir(exist_ok=True)
    export(Recorded(folder), out)
    sound, rate = soundfile.read(out / "conversation.wav", dtype="int16")
    assert rate == RATE and soundfile.info(out / "conversation.wav").subtype == "PCM_16"
    trace = json.loads((out / "trace.json").read_text())
    return sound.reshape(-1, 3200, 2).swapaxes(1, 2), read_journal(out / "session.jsonl"), trace


@pytest.fixture(scope="module")
def engine(bundle) -> Iterator[Engine]:
    engine = Engine(bundle, 4, faster_than_real_time=True)
    engine.start(identify=True)
    yield engine
    engine.stop()


def recorder(engine: Engine, sessions: pathlib.Path | None, recordings: pathlib.Path, every: int = 6) -> OneServer:
    one = OneServer(engine, sessions, snapshot_turns=every)
    one.sessions._folders = None, recordings
    return one


def test_a_session_that_waits_for_its_client_is_one_recording(bundle, engine, run, tmp_path) -> None:
    async def scenario() -> int:
        way = Breakable()
        async with recorder(engine, None, tmp_path) as one, way.listening() as there:
            way.target = one.address
            async with client.connect(there, resume=True) as channel:
                holding = Holding(channel, script(3))
                for count in (9, 25):
                    await holding.until(count)
                    way.cut()
                await holding.all()
                return one.sessions.resumed

    assert run(scenario()) >= 1
    (folder,) = tmp_path.iterdir()
    assert replay(Recorded(folder), bundle) == (len(turns_of(folder)), "")
    assert export(Recorded(folder), tmp_path)[1]


@pytest.mark.parametrize("every", [1000, 6])
def test_a_session_that_moves_goes_on_in_another_recording(bundle, engine, run, tmp_path, every: int) -> None:
    """From its beginning, where no state was kept yet, or from the newest one."""
    recordings, sessions, out = tmp_path / "r", tmp_path / "s", tmp_path / "out"
    long = dataclasses.replace(script(7), sound=bursts(8.0, 7))  # more than waits when the first server goes

    async def scenario() -> tuple[list, list]:
        whole = await uninterrupted(engine, long)
        async with (
            recorder(engine, sessions, recordings, every) as first,
            recorder(engine, sessions, recordings, every) as second,
            client.connect(first.address, second.address, resume=True) as channel,
        ):
            holding = Holding(channel, long)
            await holding.until(20)
            await first.door.drain(60.0)
            return whole, await holding.all()

    whole, told = run(scenario())
    assert kept(told) == kept(whole)
    first, second = sorted(recordings.iterdir())
    assert second.name == f"{first.name}.1"
    begun, went_on = Recorded(first), Recorded(second)
    assert (went_on.turn > 0) == (every == 6)
    assert replay(begun, bundle) == (len(turns_of(first)), "")
    assert replay(went_on, bundle) == (len(turns_of(second)), "")
    last, beginning = turns_of(first)[-1]["turn"], turns_of(second)[0]["turn"]
    assert beginning == went_on.turn <= last + 1
    sound, journal, _ = exported(second, out)
    assert journal[0]["type"] == "session" and len(sound) == turns_of(second)[-1]["turn"] + 2
    sent = np.pad(to_pcm(long.sound.mono()), (0, 32_000)).reshape(-1, 3200).astype(int)
    heard = [k for k in range(len(sound)) if sound[k, 0].any()]
    assert heard and all(abs(sound[k, 0] - sent[k]).max() <= 1 for k in heard), "it is where it was sent"


@dataclasses.dataclass
class Broken:
    """Records that can be written before the disk is full."""

    left: int = 5

    def __call__(self, log: SessionLog, turn: int, record: dict[str, Any]) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        WRITE(log, turn, record)


WRITE = SessionLog.write


def test_a_recording_that_cannot_be_written_ends_its_session(bundle, run, tmp_path, monkeypatch) -> None:
    (tmp_path / "in the way").touch()
    broken = Broken()

    async def scenario(folder: pathlib.Path) -> client.SessionError:
        async with server(bundle, record_dir=folder, faster_than_real_time=True) as address:
            with pytest.raises(client.SessionError) as ended:
                await talk(address, client.Script(bursts(4.0, 1)))
            return ended.value

    refused = run(scenario(tmp_path / "in the way"))
    monkeypatch.setattr(SessionLog, "write", lambda *arguments: broken(*arguments))
    full = run(scenario(tmp_path / "r"))
    sentence = "The recording of this session cannot be written: {}."
    assert (refused.code, str(refused)) == (grpc.StatusCode.UNAVAILABLE, sentence.format("File exists"))
    assert (full.code, str(full)) == (grpc.StatusCode.UNAVAILABLE, sentence.format("No space left on device"))
    (folder,) = (tmp_path / "r").iterdir()
    assert replay(Recorded(folder), bundle) == (5, "")


def test_recordings_are_not_swept_away_with_sessions(tmp_path) -> None:
    with pytest.raises(ValueError, match="Recordings would be removed with sessions: --record_dir"):
        ServerSettings(session_dir=tmp_path / "a", record_dir=tmp_path / "b" / ".." / "a")


def test_another_door_s_session_is_recorded_too(bundle, run, tmp_path) -> None:
    async def scenario() -> None:
        settings = ServerSettings(slots=1, http_address="127.0.0.1:0", record_dir=tmp_path)
        async with start_web(bundle, settings) as server, connect(server.url) as socket:
            await socket.send(json.dumps(START))
            sound = {"type": "session.input_audio.append", "audio": base64_of(bursts(0.5, 1, 24_000).mono())}
            await socket.send(json.dumps(sound))
            await asyncio.sleep(1.0)

    run(scenario())
    (folder,) = tmp_path.iterdir()
    records = turns_of(folder)
    assert records[0]["user"].any() and replay(Recorded(folder), bundle) == (len(records), "")


async def together(bundle: ModelBundle, folder: pathlib.Path, sound: np.ndarray) -> client.Recording:
    """One who speaks, recorded beside one who types: text makes the block longer for both."""
    texts = [(0.4 * k, "seven please") for k in range(1, round(len(sound) / RATE / 0.4))]
    speaker = client.Script(media.SoundFile(sound[:, None], RATE), tail_s=1.0, seed=3)
    typist = client.Script(media.SoundFile(0 * sound[:, None], RATE), texts=texts, tail_s=1.0)
    async with server(bundle, record_dir=folder, faster_than_real_time=True) as address:
        return (await asyncio.gather(talk(address, speaker), talk(address, typist)))[0]


def test_each_micro_turn_is_replayed_in_the_block_that_it_was_stepped_in(bundle, run, tmp_path, monkeypatch) -> None:
    recording = run(together(bundle, tmp_path, bursts(2.0, 5).mono()))
    records = turns_of(tmp_path / recording.session_id)
    assert any(record["rung"] and not record["block"]["tokens"] for record in records)
    rungs: list[int] = []

    class Spied(LiveModel):
        def step(self, *arguments: Any) -> Any:
            rungs.append(arguments[-1])
            return super().step(*arguments)

    monkeypatch.setattr(replaying, "LiveModel", Spied)
    assert replay(Recorded(tmp_path / recording.session_id), bundle) == (len(records), "")
    assert rungs == [record["rung"] for record in records]


@pytest.mark.slow
def test_the_shipped_model_in_company_is_replayed_with_the_same_bits(run, tmp_path, monkeypatch) -> None:
    """A longer block sums in another order."""
    shipped = load_bundle("checkpoints/inkling_tiny")
    sound, answer = command(shipped.spec, seed=1)
    recording = run(together(shipped, tmp_path, sound))
    assert text_of(recording.events, "word") == answer
    folder = tmp_path / recording.session_id
    assert replay(Recorded(folder), shipped) == (len(turns_of(folder)), "")

    class Shortest(LiveModel):
        def step(self, *arguments: Any) -> Any:
            return super().step(*arguments[:4])

    monkeypatch.setattr(replaying, "LiveModel", Shortest)
    assert replay(Recorded(folder), shipped)[1], "or this proves nothing"
