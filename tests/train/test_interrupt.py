"""Signals to a real process: what they end, when, and with which status."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

PROGRAM = """
    import hashlib, multiprocessing, sys, time
    from tml_jax.train.interrupt import Interruption
    if __name__ == "__main__":
        worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,), daemon=True)
        with Interruption() as interruption:
            if "worker" in sys.argv:
                worker.start()
                print(worker.pid)
            if "work" in sys.argv:
                interruption.after(1)
            print("ready", flush=True)
            while not interruption.requested:
                time.sleep(0.01)
            print("saving", flush=True)
            if "stuck" in sys.argv:
                hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # as compiling: no Python handler runs within
            print("saved", flush=True)
        print("never", flush=True)
"""


@pytest.fixture
def start(tmp_path):
    """Starts the program, and gives it with the lines that it wrote until it was ready."""
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(PROGRAM))
    processes = []

    def start(*words):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        path_of_package = os.environ | {"PYTHONPATH": os.getcwd()}
        process = subprocess.Popen([sys.executable, str(path), *words], env=path_of_package, **pipes)
        processes.append(process)
        return process, list(iter(process.stdout.readline, "ready\n"))

    yield start
    for process in processes:
        process.kill()


SIGNALS = pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])


@SIGNALS
def test_the_first_signal_lets_the_work_end_in_order(start, number, status):
    process, _ = start("work")
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (status, "saving\nsaved\n")
    assert "once more ends at once" in err and "Traceback" not in err


@SIGNALS
def test_before_there_is_work_to_save_it_ends_the_process_and_its_workers_at_once(start, number, status):
    process, (worker,) = start("worker")
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (status, "") and "Traceback" not in err
    deadline = time.monotonic() + 10
    while _runs(int(worker)):
        assert time.monotonic() < deadline, "the worker outlived its parent"
        time.sleep(0.02)


@SIGNALS
def test_a_second_signal_ends_it_at_once_in_the_middle_of_compiled_code(start, number, status):
    process, _ = start("work", "stuck")
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "saving\n"
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (status, "")


def _runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] != "Z"
