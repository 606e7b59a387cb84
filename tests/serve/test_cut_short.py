"""What is left of a session that did not end well, and of the one before it."""

import asyncio
import contextlib
import json
import pathlib
import signal
import sys
from collections.abc import AsyncIterator

import numpy as np
import pytest
import soundfile

from tests.serve.conftest import bursts
from tml_jax import client
from tml_jax.eval import conversation
from tml_jax.wire.journal import read_journal

FILES = {"reply.wav", "session.jsonl", "timeline.png", "summary.json"}
LONG = client.Script(bursts(60.0, seed=1))


@contextlib.asynccontextmanager
async def breakable(address: str) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """A way to a server, and the event that cuts it: to its client the server's machine is gone."""
    host, port = address.split(":")
    broken = asyncio.Event()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection(host, int(port))
        pumps = [asyncio.create_task(pump(reader, to_writer)), asyncio.create_task(pump(to_reader, writer))]
        with contextlib.suppress(asyncio.CancelledError):
            await broken.wait()
        for task in pumps:
            task.cancel()
        writer.transport.abort()
        to_writer.transport.abort()

    proxy = await asyncio.start_server(connected, "127.0.0.1", 0)
    yield f"127.0.0.1:{proxy.sockets[0].getsockname()[1]}", broken
    broken.set()
    proxy.close()


def former(out: pathlib.Path) -> dict[str, bytes]:
    """Fills a folder as a former session would have."""
    out.mkdir()
    for name in FILES:
        (out / name).write_text('{"t": 0.0, "turn": 0, "type": "end"}\n')
    return contents(out)


def contents(out: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


async def begun(out: pathlib.Path, turns: int = 8) -> None:
    """Until the session that writes to the folder is some micro-turns old."""
    while sum('"step"' in line for line in _lines(out / "session.jsonl")) < turns:
        await asyncio.sleep(0.05)


def _lines(path: pathlib.Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def check_what_was(out: pathlib.Path, reason: str) -> None:
    """Everything of the session, up to where it was cut, and nothing of the former one."""
    assert {path.name for path in out.iterdir()} == FILES
    journal = read_journal(out / "session.jsonl")
    assert journal[0]["type"] == "session"
    assert (journal[-1]["type"], journal[-1]["text"]) == ("error", reason)
    steps = sum(event["type"] == "step" for event in journal)
    figures = json.loads((out / "summary.json").read_text())
    assert figures["micro_turns"] == steps >= 8
    assert figures["round_trip_p50_ms"] > 0
    reply, rate = soundfile.read(out / "reply.wav")
    assert reply.any(), "the fake model answers in the first pause, after 0.6 s"
    assert steps * 0.2 - 1 < len(reply) / rate < 60
    assert (out / "timeline.png").read_bytes().startswith(b"\x89PNG")


def test_a_server_that_is_gone_leaves_what_was(serving, run, tmp_path: pathlib.Path) -> None:
    former(tmp_path / "out")

    async def scenario() -> str:
        async with serving(real_time=True) as server, breakable(server.address) as (address, broken):
            holding = asyncio.create_task(asyncio.to_thread(conversation.hold, address, LONG, tmp_path / "out", 20.0))
            await begun(tmp_path / "out")
            broken.set()
            with pytest.raises(client.SessionError, match=r"^The server has gone: .*\.$") as gone:
                await holding
            return str(gone.value)

    reason = run(scenario())
    check_what_was(tmp_path / "out", reason)


async def command(module: str, *arguments: object) -> asyncio.subprocess.Process:
    words = ["-m", module, *map(str, arguments)]
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(sys.executable, *words, stdout=pipe, stderr=pipe)


def test_ctrl_c_leaves_what_was(serving, run, tmp_path: pathlib.Path) -> None:
    former(tmp_path / "out")
    soundfile.write(tmp_path / "long.wav", LONG.sound.samples, 16_000)

    async def scenario() -> tuple[int | None, bytes]:
        async with serving(real_time=True) as server:
            flags = (f"--wav={tmp_path / 'long.wav'}", f"--server={server.address}", f"--out={tmp_path / 'out'}")
            chat = await command("launch.chat", *flags)
            await begun(tmp_path / "out")
            chat.send_signal(signal.SIGINT)
            _, errors = await chat.communicate()
            return chat.returncode, errors

    status, errors = run(scenario())
    assert status == 130
    assert errors.decode().strip() == f"Stopped by Ctrl-C: what there was of a session is in {tmp_path / 'out'}."
    check_what_was(tmp_path / "out", client.STOPPED)


def test_ctrl_c_leaves_the_figures_of_a_load(serving, run, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "load.json"

    async def scenario() -> tuple[int | None, bytes]:
        async with serving(real_time=True) as server:
            load = await command("launch.load", f"--server={server.address}", "--sessions=2", f"--json={path}")
            while server.server.engine.stats().steps < 8:
                await asyncio.sleep(0.05)
            load.send_signal(signal.SIGINT)
            _, errors = await load.communicate()
            return load.returncode, errors

    status, errors = run(scenario())
    assert status == 130
    assert errors.decode().strip().endswith("Stopped by Ctrl-C: the figures are of what was until then.")
    figures = json.loads(path.read_text())
    assert 8 <= figures["micro_turns"] < 600
    assert figures["step_p50_ms"] > 0 and figures["round_trip_p50_ms"] > 0


@pytest.mark.parametrize("fault", ["nobody there", "full", "nothing to write to"])
def test_what_never_began_touches_nothing_of_a_former_session(serving, run, tmp_path: pathlib.Path, fault: str) -> None:
    out = tmp_path / "out"
    before = former(out)
    sentence = {
        "nobody there": "^The server does not answer: ",
        "full": "^All 1 sessions of this server are taken",
        "nothing to write to": r"cannot be replaced\): give another --out",
    }[fault]
    if fault == "nothing to write to":
        (out / "reply.wav").unlink()
        (out / "reply.wav").mkdir()
        before = {}

    async def scenario() -> None:
        async with serving(slots=1, real_time=True) as server:
            other = (
                asyncio.create_task(asyncio.to_thread(_talk_for_a_while, server.address)) if fault == "full" else None
            )
            while other and not server.server.engine.stats().steps:
                await asyncio.sleep(0.02)
            address = "127.0.0.1:9" if fault == "nobody there" else server.address
            with pytest.raises((client.SessionError, ValueError), match=sentence):
                await asyncio.to_thread(conversation.hold, address, LONG, out, 20.0)
            if other:
                await other

    run(scenario())
    if before:
        assert contents(out) == before


def _talk_for_a_while(address: str) -> None:
    async def talk() -> None:
        async with client.connect(address) as channel:
            await client.converse(channel, client.Script(bursts(2.0, seed=2), tail_s=0.0))

    asyncio.run(talk())


def test_a_time_that_is_none_is_one_sentence(run, tmp_path: pathlib.Path) -> None:
    async def told(time: str) -> tuple[int | None, bytes, bytes]:
        chat = await command("launch.chat", f"--text={time}:x", f"--out={tmp_path}", "--server=127.0.0.1:9")
        out, errors = await chat.communicate()
        return chat.returncode, out, errors

    async def scenario(*times: str) -> list[tuple[int | None, bytes, bytes]]:
        return await asyncio.gather(*map(told, times))

    for time, result in zip(("inf", "nan", "-1"), run(scenario("inf", "nan", "-1")), strict=True):
        sentence = f"--text={time}:x cannot be typed at {time} s: give seconds from 0 on.\n"
        assert result == (1, b"", sentence.encode())


def test_a_microphone_s_session_is_as_long_as_it_was_open(serving, run, tmp_path: pathlib.Path, monkeypatch) -> None:
    sound = bursts(4.0, seed=3)
    sound.samples[np.arange(64_000) % 32_000 > 9_000] = 0  # two utterances

    async def listen(rate: int, chunk_ms: float, seconds: float, kept: list[bytes]) -> AsyncIterator[bytes]:
        for piece in np.split(sound.pcm(), round(1000 * seconds / chunk_ms)):
            await asyncio.sleep(chunk_ms / 1000)
            kept.append(piece.tobytes())
            yield piece.tobytes()

    monkeypatch.setattr(conversation.microphone, "listen", listen)
    script = client.Script(client.media.SoundFile(sound.samples[:0], 16_000), tail_s=0.5)

    async def scenario() -> dict:
        async with serving(real_time=True) as server:
            return await asyncio.to_thread(conversation.hold, server.address, script, tmp_path, 100.0, 4.0)

    figures = run(scenario())
    assert figures["user_utterances"] == 2, "of all that was heard, not of the first `tail_s`"
    assert len(soundfile.read(tmp_path / "reply.wav")[0]) >= 4 * 16_000
