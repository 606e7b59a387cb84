"""One server on several processes, over loopback: real commands, and real clients at the first one's door."""

import asyncio
import contextlib
import os
import pathlib
import re
import signal
import time
from collections.abc import Iterator

import numpy as np
import pytest

from tests.pod import Pod, started
from tests.serve.conftest import bursts, talk
from tests.serve.pod_server import Written, recorded
from tml_jax import client
from tml_jax.client import media
from tml_jax.data.speech_bank import SAMPLE_RATE, SpeechBank
from tml_jax.executor.live import LiveModel
from tml_jax.serve.bundle import ModelBundle, load_bundle
from tml_jax.serve.server import Server, ServerSettings
from tml_jax.serve.sessions import SessionSettings

SLOTS = 4  # two of them on each process
TEXTS = ["seven please", "say beep", "count to ten", "repeat five two eight please"]
SCRIPTS = [
    client.Script(bursts(1.2, seed=seed), texts=[(0.5, text)], seed=seed, tail_s=0.0) for seed, text in enumerate(TEXTS)
]
TURNS = 8  # of all of them
LINGER_MS = 400


@contextlib.contextmanager
def serving(folder: pathlib.Path, checkpoint: str, mesh: str, devices: int) -> Iterator[tuple[Pod, str]]:
    """A pod that serves, and the address of its door."""
    flags = ["--faster_than_real_time", f"--slots={SLOTS}", "--port=0", f"--longest_linger_ms={LINGER_MS}"]
    command = ["-m", "tests.serve.pod_server", folder / "out.npz", f"--checkpoint={checkpoint}", f"--mesh={mesh}"]
    with started(folder, *command, *flags, devices=devices) as pod:
        lines = (re.search(r" on (\S+:\d+)$", line.strip()) for line in pod.processes[0].stdout or ())
        address = next((found[1] for found in lines if found), None)
        assert address, pod.said()[-3000:]
        yield pod, address


def spoken() -> list[client.Script]:
    """Conversations in which the shipped model has something to say."""
    bank = SpeechBank.load("checkpoints/speech_bank")
    clips = bank.select(split="heldout", kind="command", text=["count to three", "count to four", "count to five"])
    sounds = [media.SoundFile(bank.audio(clip)[:, None], SAMPLE_RATE) for clip in clips[:SLOTS]]
    return [client.Script(sound, seed=seed, tail_s=1.5) for seed, sound in enumerate(sounds)]


async def together(address: str, scripts: list[client.Script]) -> int:
    """All conversations at once; what the server has compiled for them."""
    await asyncio.gather(*(talk(address, script) for script in scripts))
    channel = client.connect(address)
    async with channel:
        return (await client.server_info(channel)).compilations_after_warmup


def alone(bundle: ModelBundle, scripts: list[client.Script], run, monkeypatch) -> Written:
    """What the model writes in these conversations on one device."""
    written: Written = {}
    monkeypatch.setattr(LiveModel, "step", recorded(written))
    session = SessionSettings(longest_linger_ms=LINGER_MS)

    async def scenario() -> None:
        server = Server(bundle, ServerSettings(slots=SLOTS, faster_than_real_time=True, session=session))
        try:
            await together(f"127.0.0.1:{await server.start()}", scripts)
        finally:
            await server.stop(0.0)

    run(scenario())
    return written


def check(folder: pathlib.Path, want: Written, speaking: int) -> None:
    """The pod's model wrote the same, its sound within 1e-5, and it speaks in so many of the conversations."""
    with np.load(folder / "out.npz") as file:
        have = dict(file)
    # How long a session goes on after its client's last word depends on who is faster.
    both = have.keys() & want.keys()
    assert {f"{seed} {turn} mel" for seed in range(SLOTS) for turn in range(TURNS)} <= both
    for name in both:
        if name.endswith(" mel"):
            assert np.abs(have[name] - want[name]).max() <= 1e-5
        else:
            assert np.array_equal(have[name], want[name])
    spoke = {name.split()[0] for name in both if name.endswith(" speaking") and want[name]}
    assert len(spoke) >= speaking


def test_sessions_on_every_process_are_those_of_one_and_sigterm_on_any_ends_all_in_order(
    bundle, tmp_path, run, monkeypatch
):
    with serving(tmp_path, "fake", "4,1,1,1", devices=2) as (pod, address):
        compiled = run(together(address, SCRIPTS))
        pod.processes[1].send_signal(signal.SIGTERM)
        assert pod.ends(60) == [0, 0], pod.said()[-3000:]
    assert compiled == 0 and "SIGTERM on process 1: the whole pod ends" in pod.said()
    check(tmp_path, alone(bundle, SCRIPTS, run, monkeypatch), speaking=SLOTS)


def test_a_dead_process_ends_the_server_which_names_it(tmp_path, run):
    with serving(tmp_path, "fake", "2,1,1,1", devices=1) as (pod, address):
        run(together(address, SCRIPTS))
        pod.processes[1].kill()
        assert pod.ends(30) == [os.EX_TEMPFAIL, -signal.SIGKILL], pod.said()[-3000:]
    assert re.search(r"step \d+ cannot end: process 1 is dead: its connection has ended; process 0 ends", pod.said())


def test_a_mesh_that_leaves_a_process_out_is_one_sentence(tmp_path):
    with started(tmp_path, "-m", "launch.serve", "--mesh=1,1,1,1", devices=2) as pod:
        assert 0 not in pod.ends(30)
    assert "launch.serve: Mesh (1, 1, 1, 1) needs devices of all 2 processes, which have 4.\n" in pod.said()


@pytest.mark.slow
def test_a_stuck_process_ends_the_server_which_names_it(tmp_path):
    with serving(tmp_path, "fake", "2,1,1,1", devices=1) as (pod, _):
        pod.processes[1].send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        assert pod.processes[0].wait(60) == os.EX_TEMPFAIL
        assert time.monotonic() - stopped < 40
    assert re.search(r"cannot end: process 1 is dead: no word from it for 20 s; process 0 ends", pod.said())


@pytest.mark.slow
def test_the_shipped_model_on_two_times_four_devices_is_itself_on_one(tmp_path, monkeypatch):
    scripts = spoken()
    with serving(tmp_path, "checkpoints/inkling_tiny", "1,2,2,2", devices=4) as (pod, address):
        assert asyncio.run(together(address, scripts)) == 0
        pod.processes[0].send_signal(signal.SIGTERM)
        assert pod.ends(60) == [0, 0], pod.said()[-3000:]
    check(tmp_path, alone(load_bundle("checkpoints/inkling_tiny"), scripts, asyncio.run, monkeypatch), speaking=2)
