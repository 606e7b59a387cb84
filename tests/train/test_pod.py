"""A run on several processes, over loopback."""

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

COMMAND = [sys.executable, "-m", "launch.train", "--config=tests/train/experiment_pod.py"]
DEADLINE_S = 900


def start(workdir: pathlib.Path, *flags: str) -> subprocess.Popen[str]:
    env = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # half the time to compile
    log = (workdir.parent / f"{workdir.name}.log").open("a")
    return subprocess.Popen([*COMMAND, f"--workdir={workdir}", *flags], stdout=log, stderr=log, text=True, env=env)


def start_pod(workdir: pathlib.Path, processes: int, *flags: str) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    pod = [f"--coordinator_address={address}", f"--num_processes={processes}", *flags]
    return [start(workdir, *pod, f"--process_id={i}") for i in range(processes)]


def wait_for(workdir: pathlib.Path, steps: int) -> None:
    """Until the run has taken so many."""
    deadline = time.monotonic() + DEADLINE_S
    while not ((workdir / "metrics.jsonl").exists() and max(losses(workdir), default=0) >= steps):
        assert time.monotonic() < deadline, (workdir.parent / f"{workdir.name}.log").read_text()[-3000:]
        time.sleep(0.05)


def losses(workdir: pathlib.Path) -> dict[int, float]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if line["split"] == "train"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The losses of a run on one process that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("one") / "alone"
    assert start(workdir).wait(DEADLINE_S) == 0
    return losses(workdir)


@pytest.mark.slow
def test_two_processes_end_together_and_learn_what_one_does(alone, tmp_path):
    pod = tmp_path / "pod"
    processes = start_pod(pod, 2)
    wait_for(pod, 1)
    processes[1].send_signal(signal.SIGTERM)
    assert [process.wait(DEADLINE_S) for process in processes] == [128 + signal.SIGTERM] * 2
    done = max(losses(pod))
    assert done < 10 and (pod / "checkpoints" / str(done)).is_dir()
    assert [process.wait(DEADLINE_S) for process in start_pod(pod, 2)] == [0, 0]
    assert losses(pod) == pytest.approx(alone, rel=1e-5)


@pytest.mark.slow
def test_a_dead_process_ends_the_others_and_the_run_goes_on_with_two_then_one_then_four(alone, tmp_path):
    """Half of each batch is replayed. The conversations are those that would have come, or the losses would differ."""
    pod = tmp_path / "pod"
    processes = start_pod(pod, 4)
    wait_for(pod, 3)
    processes[2].kill()
    killed = time.monotonic()
    assert 0 not in [process.wait(DEADLINE_S) for process in processes]
    assert time.monotonic() - killed < 60
    log = (tmp_path / "pod.log").read_text()
    assert re.search(r"step \d+ cannot end: process 2 is dead: no word from it for 20 s; process \d ends", log)
    saved = max(int(path.name) for path in (pod / "checkpoints").iterdir() if path.name.isdigit())
    assert 2 <= saved <= 6
    for count, mesh, stop in ((2, "1,2,1,1", 7), (1, "1,1,1,1", 8), (4, "1,2,2,1", 10)):
        parts = start_pod(pod, count, f"--mesh={mesh}", f"--stop_after={stop}")
        assert [process.wait(DEADLINE_S) for process in parts] == [0] * count
        assert max(losses(pod)) == stop
    assert losses(pod) == pytest.approx(alone, rel=1e-5)
    assert len({round(loss, 4) for loss in alone.values()}) == 10
