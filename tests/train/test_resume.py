"""A run that is killed goes on as if nothing had happened: the same losses, bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tml_jax.checkpoint.store import load_model

pytestmark = pytest.mark.slow  # three runs, each compiling the training step

COMMAND = [sys.executable, "-m", "launch.train", "--config=tests/train/experiment_small.py"]


def start(workdir):
    log = (workdir.parent / f"{workdir.name}.log").open("a")
    return subprocess.Popen([*COMMAND, f"--workdir={workdir}"], stdout=log, stderr=log, env=os.environ)


def losses(workdir):
    """Every logged line of training, in order: (step, loss)."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return [(row["step"], row["loss"], row["flow_loss"]) for row in rows if row["split"] == "train"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    whole, cut = root / "whole", root / "cut"
    assert start(whole).wait(timeout=280) == 0, (root / "whole.log").read_text()[-2000:]
    process = start(cut)
    deadline = time.monotonic() + 280
    while len(losses(cut)) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = losses(cut)
    assert start(cut).wait(timeout=280) == 0, (root / "cut.log").read_text()[-2000:]
    return whole, cut, before


def test_resumed_after_kill_9_gives_the_same_losses(runs):
    whole, cut, before = runs
    wanted = losses(whole)
    assert [step for step, *_ in wanted] == list(range(1, 9))
    assert 5 <= len(before) <= 8
    after = losses(cut)[len(before) :]
    assert after and after[0][0] <= before[-1][0] + 1  # it went on from a checkpoint, not from the beginning
    assert after[0][0] > 1
    by_step = dict((step, rest) for step, *rest in wanted)
    for step, *rest in before + after:
        assert rest == by_step[step], step
    assert len({loss for _, loss, _ in wanted}) == 8


def test_the_run_leaves_a_model(runs):
    config, params, tokenizer = load_model(runs[0] / "model")
    assert config.text.vocab_size == 512 and tokenizer.vocab_size == 480 and "transformer" in params
    assert list((runs[0] / "tensorboard").iterdir())


def test_errors_are_one_sentence(tmp_path):
    def message(*flags):
        done = subprocess.run(
            [sys.executable, "-m", "launch.train", *flags], capture_output=True, text=True, env=os.environ, timeout=120
        )
        assert done.returncode == 1
        return done.stderr.strip().splitlines()[-1]

    assert message("--config=nowhere.py", f"--workdir={tmp_path}") == (
        "launch.train: There is no config at 'nowhere.py'; try configs/inkling_tiny.py."
    )
    assert "no speech bank" in message(COMMAND[-1], f"--workdir={tmp_path}", f"--bank={tmp_path}")
    assert "--steps or --minutes" in message(COMMAND[-1], f"--workdir={tmp_path}", "--steps=3", "--minutes=1")
