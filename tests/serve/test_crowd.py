"""Sixteen people who talk with the shipped model, with sound and video, at the pace of time."""

import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import soundfile

from tests.serve.test_quiet import RATE, directed
from tml_jax.data import scenarios
from tml_jax.data.timeline import Conversation, user_sound
from tml_jax.serve.bundle import load_bundle

SESSIONS = 16
WARM_S = 60.0  # after which memory is to stay what it is


def _talk(path: pathlib.Path, seconds: float = 107.0) -> None:
    """Commands, things to count and timers of voices that the model never heard, one after another."""
    spec, said = load_bundle("checkpoints/inkling_tiny").spec, list[np.ndarray]()
    for number in itertools.count():
        if sum(map(len, said)) >= seconds * RATE:
            break
        scenario = (scenarios.command, scenarios.count, scenarios.timer)[number % 3]
        director = directed(scenario, spec, 77, number)
        if director.now <= 20.0:
            said.append(user_sound(Conversation(director.now, tuple(director.events), True, "command"), spec))
    soundfile.write(path, np.concatenate(said), RATE)


def _resident_mb(process: int) -> float:
    status = pathlib.Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1000


@pytest.mark.soak
@pytest.mark.parametrize("seconds", [300, 1800])
def test_sixteen_people_are_answered_in_time(tmp_path: pathlib.Path, seconds: int) -> None:
    """The server and its clients share the machine. Of `seconds` the first minute may take memory."""
    _talk(tmp_path / "talk.wav")
    flags = ("--checkpoint=checkpoints/inkling_tiny", "--port=0", f"--slots={SESSIONS}")
    command = [sys.executable, "-m", "launch.serve", *flags]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    memory: list[tuple[float, float]] = []
    over = threading.Event()

    def weigh() -> None:
        began = time.monotonic()
        while not over.wait(5.0):
            memory.append((time.monotonic() - began, _resident_mb(server.pid)))

    try:
        assert server.stdout is not None
        address = server.stdout.readline().strip().split()[-1]
        threading.Thread(target=weigh, daemon=True).start()
        load = ("--sessions=16", f"--seconds={seconds}", "--frames", f"--wav={tmp_path / 'talk.wav'}")
        told = ("--json=" + str(tmp_path / "load.json"), f"--server={address}")
        subprocess.run([sys.executable, "-m", "launch.load", *load, *told], check=True, env=os.environ)
    finally:
        over.set()
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=60)
    found = json.loads((tmp_path / "load.json").read_text())
    after = [size for at, size in memory if at > WARM_S]
    print(json.dumps(found), f"memory {after[0]:.0f} -> {after[-1]:.0f} MB", sep="\n")
    assert found["micro_turns"] >= SESSIONS * (seconds - 2) * 5
    assert found["deadline_misses"] == found["silence_inserted_ms"] == found["compilations_after_warmup"] == 0
    assert found["playback_underruns"] == 0
    assert found["step_p99_ms"] < 200
    assert after[-1] < 1.05 * after[0]
