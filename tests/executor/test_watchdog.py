"""A pod of which one process is dead or stuck, over loopback."""

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time

import pytest

PROCESSES = 3
PROGRAM = """
    import logging, sys, time
    import jax
    from tml_jax.executor.watchdog import Watchdog

    address, process, stuck, processes = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    logging.basicConfig()
    jax.distributed.initialize(address, processes, process, heartbeat_timeout_seconds=50)
    with Watchdog(stuck_after_s=8, silent_after_s=2) as watchdog:
        for step in range(4):
            watchdog.at(step, "waiting for its data")
            if step == 3 and process == 1 and stuck == "data":
                print("there", flush=True)
                time.sleep(100)
            watchdog.at(step, "running the step")
            time.sleep(0.1)
        print("there", flush=True)
        time.sleep(100)  # for the others, as a collective does
"""


@pytest.fixture
def pod(tmp_path):
    """Starts three processes, and gives them when each is at step 3."""
    started = []

    def start(stuck):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        path = tmp_path / "program.py"
        path.write_text(textwrap.dedent(PROGRAM))
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        environment = os.environ | {"PYTHONPATH": os.getcwd()}
        for i in range(PROCESSES):
            command = [sys.executable, str(path), address, str(i), stuck, str(PROCESSES)]
            started.append(subprocess.Popen(command, env=environment, **pipes))
        assert [process.stdout.readline() for process in started] == ["there\n"] * PROCESSES
        return started

    yield start
    for process in started:
        process.kill()


def ends(processes, deadline_s):
    """Their statuses and what they said, once all have ended."""
    began = time.monotonic()
    said = [process.communicate(timeout=deadline_s)[1] for process in processes]
    assert time.monotonic() - began < deadline_s
    return [process.returncode for process in processes], "".join(said)


def test_a_stuck_process_ends_all_and_is_named_with_its_step_and_cause(pod):
    statuses, said = ends(pod("data"), 40)
    assert 0 not in statuses and os.EX_TEMPFAIL in statuses
    assert re.search(r"step 3 cannot end: process 1 is stuck: waiting for its data for \d+ s; process \d ends\n", said)


@pytest.mark.slow
def test_a_dead_process_ends_the_others_and_is_named(pod):
    processes = pod("")
    processes[2].send_signal(signal.SIGKILL)
    statuses, said = ends(processes, 40)
    assert statuses[2] == -signal.SIGKILL and 0 not in statuses and os.EX_TEMPFAIL in statuses
    assert re.search(r"step 3 cannot end: process 2 is dead: no word from it for 2 s; process \d ends\n", said)
