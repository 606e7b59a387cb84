"""The samples of docs/doors.md, word for word: other people's clients, unmodified, in an environment of their own."""

import asyncio
import collections
import json
import os
import pathlib
import re
import wave

import numpy as np
import pytest

from tests.serve.conftest import start_web
from tests.serve.test_openai_clients import GATE, sentences
from tml_jax.serve.bundle import ModelBundle, load_bundle
from tml_jax.serve.config import SessionConfig, SessionSettings
from tml_jax.serve.doors.access import Access
from tml_jax.serve.doors.grpc import GrpcDoor
from tml_jax.serve.doors.web import WebDoor
from tml_jax.serve.engine import Engine
from tml_jax.serve.server import ServerSettings
from tml_jax.serve.sessions import Sessions
from tml_jax.streams.sound import resample
from tml_jax.wire.pcm import to_pcm

pytestmark = pytest.mark.clients
HERE = pathlib.Path(__file__).parent / "clients"
DOCS = pathlib.Path("docs/doors.md")
FOREIGN = pathlib.Path(os.environ.get("CLIENTS_VENV", ".venv-clients"), "bin/python")
needs_clients = pytest.mark.skipif(not FOREIGN.exists(), reason="the clients are not installed: make test-clients")
RATE = 24_000


def samples() -> dict[str, str]:
    """The heading of each sample, and the sample."""
    found = re.findall(r"^### (.+?)\n(?:(?!^#).)*?^```python\n(.+?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    return dict(found)


async def start(python: pathlib.Path, *arguments: str, **environment: str) -> asyncio.subprocess.Process:
    known = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return await asyncio.create_subprocess_exec(
        *(python, *arguments), env=known | {"PYTHONPATH": str(HERE)} | environment, stderr=asyncio.subprocess.STDOUT
    )


@needs_clients
def test_the_samples_of_the_docs_hold_a_spoken_conversation(tmp_path: pathlib.Path) -> None:
    speech = tmp_path / "speech.wav"
    with wave.open(str(speech), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        spoken = sentences(gap_s=4.5, tail_s=2.0)  # LiveKit does not listen for the first 3 s in which it speaks
        file.writeframes(to_pcm(resample(spoken, 16_000, RATE)).tobytes())
    chosen = samples()
    assert len(chosen) == 5

    async def scenario() -> None:
        patient = SessionSettings(late_ms=3000)  # with clients that five of them keep waiting for their turn
        settings = ServerSettings(slots=len(chosen) + 1, http_address="127.0.0.1:0", session=patient)
        async with start_web(load_bundle("checkpoints/inkling_tiny"), settings) as server:
            running = []
            for number, code in enumerate(chosen.values()):
                script = tmp_path / f"{number}.py"
                script.write_text(code.replace("127.0.0.1:8080", f"127.0.0.1:{server.server.web.port}"))
                heard = str(tmp_path / f"{number}.json")
                running.append(await start(FOREIGN, str(script), SPEECH=str(speech), HEARD=heard))
            typed = str(tmp_path / "typed.json")
            running.append(await start(FOREIGN, str(HERE / "typed.py"), server.base_url, HEARD=typed))
            try:
                async with asyncio.timeout(240):
                    assert not any(await asyncio.gather(*(process.wait() for process in running)))
            finally:
                for process in running:
                    if process.returncode is None:
                        process.kill()

    asyncio.run(scenario())
    replies = json.loads((tmp_path / "typed.json").read_text())
    assert [model for model, _ in replies] == ["GPTLiveModel", "RealtimeModel"], "also where no sound is sent at all"
    assert all(reply.strip() for _, reply in replies)
    for number, name in enumerate(chosen):
        lines = json.loads((tmp_path / f"{number}.json").read_text())
        print(name, lines)
        said: dict[str, str] = collections.defaultdict(str)
        for who, text in lines:
            who = {"session.input": "user", "session.output": "assistant"}.get(who, who)
            said[who] = " ".join([*said[who].split(), *text.split()])  # clients cut turns where they like
        assert all(word in said["user"] for word in ("repeat", "six", "four", "please")), name
        assert "seven eight" in said["assistant"], name
        assert "seven" in said["user"], name  # a small model mishears a word, or hears it twice, at times
        if "Realtime" in name:
            assert "four" in said["asks"], name
        if name.startswith("OpenAI") or "Realtime" in name:
            assert "twenty four" in said["assistant"], name
        sound = np.frombuffer((tmp_path / f"{number}.json.pcm").read_bytes(), "<i2").astype(np.float32) / 32768
        level = np.sqrt(np.mean(sound[: len(sound) // 2400 * 2400].reshape(-1, 2400) ** 2, axis=1))
        assert (level > GATE).sum() >= 10, name


@needs_clients
def test_clients_that_are_refused_do_not_come_back_for_ever(bundle: ModelBundle) -> None:
    """A server that is full, one that drains, and one that does not know the key: each is asked a few times."""
    seconds = 15.0

    async def scenario() -> dict[str, collections.Counter[str]]:
        doors, asked = {}, {}
        for name in ("full", "draining", "locked"):
            sessions = Sessions(Engine(bundle, 1), SessionSettings(), None)
            door = WebDoor(sessions, GrpcDoor(sessions), Access(["s3cret"] if name == "locked" else ()))
            doors[name], asked[name] = door, collections.Counter[str]()
            if name == "full":
                sessions.open(SessionConfig())
            await door.open("127.0.0.1", 0)
            if name == "draining":
                door.drain()

            def counting(socket, denied=None, counter=asked[name], entered=door._entered, **options):
                counter[socket.url.path] += 1
                return entered(socket, denied, **options)

            door._entered = counting  # type: ignore[method-assign]
        urls = [f"http://127.0.0.1:{door.port}/v1" for door in doors.values()]
        process = await start(FOREIGN, str(HERE / "refused.py"), str(seconds), *urls)
        assert await asyncio.wait_for(process.wait(), seconds + 60) == 0
        for door in doors.values():
            await door.close()
        return asked

    asked = asyncio.run(scenario())
    print(asked)
    for name, counter in asked.items():
        assert set(counter) == {"/v1/live/sessions", "/v1/realtime"}, name
        assert counter["/v1/live/sessions"] <= 4 + 1, f"LiveKit tries four times, Pipecat once: {name}"
        assert counter["/v1/realtime"] <= 4, name
