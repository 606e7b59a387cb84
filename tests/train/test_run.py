"""A run's beginning and end: what it starts from, what it refuses and leaves alone, how an interrupted one goes on.

No step is compiled: what is pinned here lies around the steps, and a step that only counts stands for them.
"""

import dataclasses
import itertools
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests.model import tiny
from tests.train.experiment_small import CONFIG as SMALL
from tml_jax.checkpoint.store import TrainCheckpoints, load_params, save_model
from tml_jax.data.pipeline import Pipeline
from tml_jax.model.interaction import InteractionModel
from tml_jax.train import loop
from tml_jax.train.loop import Run
from tml_jax.train.trainer import Trainer

TOKENIZER = "checkpoints/inkling_tiny/tokenizer.json"
EXPERIMENT = dataclasses.replace(SMALL, train=dataclasses.replace(SMALL.train, workers=0, eval_conversations=1))


def changed(part, **changes):
    return dataclasses.replace(EXPERIMENT, **{part: dataclasses.replace(getattr(EXPERIMENT, part), **changes)})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A saved model of the experiment's sizes, its weights int8."""
    path = tmp_path_factory.mktemp("model") / "int8"
    params = tiny.random_params(InteractionModel(EXPERIMENT.model))
    save_model(path, EXPERIMENT.model, params, TOKENIZER, dtype="int8")
    return path


@pytest.fixture(scope="module")
def workdir(model, tmp_path_factory):
    """A run from that model that was cut before its first step."""
    path = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "evaluate", lambda *_: {"loss": 0.0})
        state = Run(EXPERIMENT, str(path), TOKENIZER, str(model)).train(stop_after=0)
    return path, state


def contents(directory):
    """Every file and folder, with what it holds and when it was changed."""
    return {
        path.relative_to(directory): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in [directory, *directory.rglob("*")]
    }


def test_init_from_goes_on_with_the_very_weights(model, workdir):
    path, state = workdir
    _, wanted = load_params(model)
    for found in (state.params, state.average):
        jax.tree.map(np.testing.assert_array_equal, found, wanted)
    with TrainCheckpoints(path) as checkpoints:
        restored = checkpoints.restore(Run(EXPERIMENT, str(path), TOKENIZER).trainer.abstract_state())
    assert restored.step == 0
    jax.tree.map(np.testing.assert_array_equal, restored.state.params, wanted)


@pytest.mark.parametrize(
    ("experiment", "message"),
    [
        (changed("train", batch_size=2), r"order of the data.batch_size was 4 and is now 2"),
        (changed("data", group=1), r"order of the data.group was 2 and is now 1"),
        (changed("data", replay=0.0), r"order of the data.replay was 0.5 and is now 0.0"),
        (
            changed("model", clock=dataclasses.replace(EXPERIMENT.model.clock, features=8)),
            r"clock.features was 4 and is now 8",
        ),
        (changed("train", batch_size=3), r"batch_size must be a multiple of 2"),
    ],
)
def test_a_refused_run_leaves_the_workdir_as_it_is(workdir, experiment, message):
    path, _ = workdir
    before = contents(path)
    with pytest.raises(ValueError, match=message):
        Run(experiment, str(path), TOKENIZER).train()
    assert contents(path) == before


def test_a_model_of_other_sizes_makes_no_workdir(model, tmp_path):
    other = changed("model", clock=dataclasses.replace(EXPERIMENT.model.clock, features=8))
    with pytest.raises(ValueError, match=r"int8 is a model of other sizes: config.clock.features was 4 and is now 8"):
        Run(other, str(tmp_path / "run"), TOKENIZER, str(model)).train()
    with pytest.raises(ValueError, match=r"holds no model"):
        Run(other, str(tmp_path / "run"), TOKENIZER, str(tmp_path)).train()
    assert not (tmp_path / "run").exists()


def count(self, state, batch, scale=1.0):
    """A step that learns nothing: its loss tells the batch."""
    time.sleep(0.1)
    return dataclasses.replace(state, step=state.step + 1), {"loss": total(batch)}


def total(batch):
    """A number that tells one batch from another."""
    return sum(float(np.sum(x, dtype=np.float64)) for part in batch for x in vars(part).values())


def running(group):
    """Whether a process of this group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def train(workdir, model):
    """The other process of the test below."""
    from launch import train as command

    Trainer.step, Trainer.evaluate = count, lambda *_: {"loss": 0.0}
    flags = ["--config=tests/train/experiment_small.py", f"--workdir={workdir}", f"--init_from={model}"]
    command.app.run(command.main, ["train", *flags, "--workers=1", "--steps=1000"])


def test_an_interrupted_run_saves_and_goes_on_with_the_next_batch(model, tmp_path):
    def interrupted(workdir, number, steps):
        """Interrupts all processes of a run once it has taken so many steps; its status and its losses by step."""
        code = f"from tests.train.test_run import train; train({str(workdir)!r}, {str(model)!r})"
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen([sys.executable, "-c", code], stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 200
        while len(losses(workdir)) < steps:
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.02)
        os.killpg(process.pid, number)
        status = process.wait(timeout=60)
        while running(process.pid):
            assert time.monotonic() < deadline, "a worker outlived the trainer"
            time.sleep(0.02)
        return status, (tmp_path / "log").read_text()

    def losses(workdir):
        path = workdir / "metrics.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [(row["step"], row["loss"]) for row in rows if row["split"] == "train"]

    status, log = interrupted(tmp_path / "cut", signal.SIGINT, 3)
    before = losses(tmp_path / "cut")
    assert status == 130 and "Traceback" not in log and "orbax" not in log, log
    assert f"{before[-1][0]}" in os.listdir(tmp_path / "cut" / "checkpoints")
    assert not (tmp_path / "cut" / "model").exists()
    status, log = interrupted(tmp_path / "cut", signal.SIGTERM, len(before) + 3)
    assert status == 143 and re.search(rf"going on from step {before[-1][0]}\n", log), log
    cut = losses(tmp_path / "cut")
    assert [step for step, _ in cut] == list(range(1, len(cut) + 1))
    train_config, stream = EXPERIMENT.train, EXPERIMENT.model.stream
    batches = Pipeline(EXPERIMENT.data, stream, TOKENIZER, train_config.batch_size, "train", groups=(0, 1)).batches()
    wanted = [total(batch) for batch in itertools.islice(batches, len(cut))]
    assert [loss for _, loss in cut] == wanted and len(set(wanted)) == len(wanted)


def test_a_run_tells_what_its_time_went_into_and_traces_some_steps(model, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "step", count)
    monkeypatch.setattr(loop, "evaluate", lambda *_: time.sleep(0.2) or {"loss": 0.0})
    begin = time.monotonic()
    experiment = changed("train", profile=(2, 3), eval_every=2)
    Run(experiment, str(tmp_path), TOKENIZER, str(model)).train(stop_after=4)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["split"] == "train"]
    whole = time.monotonic() - begin
    # What follows a step is told with the next one: an evaluation and a checkpoint after every second.
    assert [row["evaluate_s"] >= 0.2 for row in rows] == [False, False, True, False]
    assert [row["save_s"] > 0 for row in rows] == [False, False, True, False]
    assert all(row["step_s"] >= 0.1 and row["data_s"] > 0 for row in rows)
    assert sum(row[f"{what}_s"] for row in rows for what in ("data", "step", "save", "evaluate")) < whole
    # The first step is compiled, and counts as a loss.
    assert rows[0]["goodput"] == 0 and 0.3 / whole <= rows[-1]["goodput"] < 1
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_run_that_is_lost_goes_on_from_the_disk_where_that_is_newer(model, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(loop, "evaluate", lambda *_: {"loss": 0.0})
    experiment = changed("train", local=str(tmp_path / "disk"), local_every=1, checkpoint_every=100)

    def run(dies_after=100, stop_after=None):
        def step(self, state, batch, scale=1.0):
            if int(state.step) == dies_after:
                raise RuntimeError("the power is out")
            return dataclasses.replace(state, step=state.step + 1), {"loss": total(batch)}

        monkeypatch.setattr(Trainer, "step", step)
        return Run(experiment, str(tmp_path / "run"), TOKENIZER, str(model)).train(stop_after)

    with pytest.raises(RuntimeError, match="the power is out"):
        run(dies_after=3)
    assert run(stop_after=5).step == 5 and "going on from step 3, as it is on the disks" in caplog.text
    caplog.clear()
    assert run(stop_after=6).step == 6 and "going on from step 5\n" in caplog.text
    rows = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    losses = [(row["step"], row["loss"]) for row in rows if row["split"] == "train"]
    assert [step for step, _ in losses] == [1, 2, 3, 4, 5, 6] and len(set(losses)) == 6
