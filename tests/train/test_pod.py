"""A run on several processes, over loopback."""

import dataclasses
import itertools
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest

from tests.model import tiny
from tests.train.experiment_pod import CONFIG
from tml_jax.checkpoint.store import save_model
from tml_jax.data.pipeline import Pipeline
from tml_jax.model.interaction import InteractionModel
from tml_jax.train.trainer import Trainer

TOKENIZER = "checkpoints/inkling_tiny/tokenizer.json"

COMMAND = ["-m", "launch.train", "--config=tests/train/experiment_pod.py"]
DEADLINE_S = 900


def start(workdir: pathlib.Path, *flags: str, program: list[str] = COMMAND) -> subprocess.Popen[str]:
    env = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # half the time to compile
    log = (workdir.parent / f"{workdir.name}.log").open("a")
    return subprocess.Popen(
        [sys.executable, *program, f"--workdir={workdir}", *flags], stdout=log, stderr=log, text=True, env=env
    )


def start_pod(
    workdir: pathlib.Path, processes: int, *flags: str, program: list[str] = COMMAND
) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    pod = [f"--coordinator_address={address}", f"--num_processes={processes}", *flags]
    return [start(workdir, *pod, f"--process_id={i}", program=program) for i in range(processes)]


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


def fingerprint(batch) -> jax.Array:
    """A number that tells which conversations are in a batch, and where."""
    tokens, audio = batch[1].tokens.astype(jnp.float32), batch[0].audio.astype(jnp.float32)
    rows = sum(jnp.sum(x.reshape(len(x), -1), axis=1) / x[0].size for x in (tokens, audio))
    return jnp.sum(rows * (1 + jnp.arange(len(rows))))


def tell(self, state, batch, scale=1.0):
    """A step that learns nothing: its loss is the fingerprint of the whole batch, wherever its parts lie."""
    time.sleep(0.2)
    loss = self.executor.program(fingerprint, out_shardings=self.executor.sharding())(self.place(batch))
    return dataclasses.replace(state, step=state.step + 1), {"loss": jax.device_get(loss)}


def train() -> None:
    """What each process of the test below runs."""
    from launch import train as command  # which defines flags

    Trainer.step, Trainer.evaluate = tell, lambda *_: {"loss": 0.0}  # type: ignore[method-assign,assignment]
    command.app.run(command.main)


@pytest.mark.slow
def test_a_dead_process_ends_the_others_and_the_run_goes_on_with_two_then_one_then_four(tmp_path):
    """With the conversations that would have come next, of which half are replayed, on other meshes, too."""
    save_model(tmp_path / "model", CONFIG.model, tiny.random_params(InteractionModel(CONFIG.model)), TOKENIZER)
    pod = tmp_path / "pod"
    program = ["-c", "from tests.train import test_pod; test_pod.train()", COMMAND[2]]
    flags = [f"--init_from={tmp_path / 'model'}", "--steps=12"]
    processes = start_pod(pod, 4, *flags, program=program)
    wait_for(pod, 3)
    processes[2].kill()
    killed = time.monotonic()
    assert 0 not in [process.wait(DEADLINE_S) for process in processes]
    assert time.monotonic() - killed < 60
    log = (tmp_path / "pod.log").read_text()
    assert re.search(r"step \d+ cannot end: process 2 is dead: no word from it for 20 s; process \d ends", log)
    done = max(losses(pod))
    for count, mesh, stop in ((2, "1,2,1,1", done + 2), (1, "1,1,1,1", done + 3), (4, "1,2,2,1", 12)):
        parts = start_pod(pod, count, *flags, f"--mesh={mesh}", f"--stop_after={stop}", program=program)
        assert [process.wait(DEADLINE_S) for process in parts] == [0] * count
        assert max(losses(pod)) == stop
    pipeline = Pipeline(CONFIG.data, CONFIG.model.stream, TOKENIZER, CONFIG.train.batch_size, "train")
    wanted = [float(fingerprint(batch)) for batch in itertools.islice(pipeline.batches(), 12)]
    assert losses(pod) == pytest.approx(dict(enumerate(wanted, 1)), rel=1e-5)
    assert len({round(number, 3) for number in wanted}) == 12


@pytest.mark.slow
def test_what_is_learnt_is_the_same_on_two_then_one_then_four(alone, tmp_path):
    pod = tmp_path / "pod"
    for count, mesh, stop in ((2, "1,2,1,1", 4), (1, "1,1,1,1", 6), (4, "1,2,2,1", 10)):
        parts = start_pod(pod, count, f"--mesh={mesh}", f"--stop_after={stop}")
        assert [process.wait(DEADLINE_S) for process in parts] == [0] * count
        assert max(losses(pod)) == stop
    assert losses(pod) == pytest.approx(alone, rel=1e-5)
    assert len({round(loss, 4) for loss in alone.values()}) == 10
