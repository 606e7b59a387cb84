"""A run on two processes, over loopback."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

COMMAND = [sys.executable, "-m", "launch.train", "--config=tests/train/experiment_small.py", "--workers=0", "--steps=6"]
# What is replayed is drawn from a process's own groups: without it a batch is the same, whoever makes it.
COMMAND += ["--replay=0"]
DEADLINE_S = 300


def start(workdir: pathlib.Path, *flags: str) -> subprocess.Popen[str]:
    log = (workdir.parent / f"{workdir.name}.log").open("a")
    return subprocess.Popen(
        [*COMMAND, f"--workdir={workdir}", *flags], stdout=log, stderr=log, text=True, env=os.environ
    )


def start_pod(workdir: pathlib.Path) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    pod = [f"--coordinator_address={address}", "--num_processes=2"]
    return [start(workdir, *pod, f"--process_id={i}") for i in range(2)]


def losses(workdir: pathlib.Path) -> dict[int, float]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if line["split"] == "train"}


@pytest.mark.slow
def test_two_processes_end_together_and_learn_what_one_does(tmp_path):
    alone = tmp_path / "alone"
    assert start(alone).wait(DEADLINE_S) == 0
    pod = tmp_path / "pod"
    processes = start_pod(pod)
    deadline = time.monotonic() + DEADLINE_S
    while not ((pod / "metrics.jsonl").exists() and losses(pod)) and time.monotonic() < deadline:
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    assert [process.wait(DEADLINE_S) for process in processes] == [128 + signal.SIGTERM] * 2
    done = max(losses(pod))
    assert done < 6 and (pod / "checkpoints" / str(done)).is_dir()
    assert [process.wait(DEADLINE_S) for process in start_pod(pod)] == [0, 0]
    assert losses(pod) == pytest.approx(losses(alone), rel=1e-5)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_within_a_minute(tmp_path):
    pod = tmp_path / "pod"
    processes = start_pod(pod)
    deadline = time.monotonic() + DEADLINE_S
    while not (pod / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    processes[1].kill()
    killed = time.monotonic()
    assert processes[0].wait(DEADLINE_S) not in (0, None)
    assert time.monotonic() - killed < 60
    assert re.search(r"tasks are unhealthy \(stopped sending heartbeats\):\s+1\s", (tmp_path / "pod.log").read_text())
