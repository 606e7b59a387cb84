"""Training by LoRA: what it trains, and what it leaves alone."""

import json
import math
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.model import tiny
from tests.train.experiment_lora import CONFIG as EXPERIMENT
from tests.train.experiment_small import CONFIG as SMALL
from tml_jax import sharding
from tml_jax.checkpoint import huggingface
from tml_jax.checkpoint.huggingface import flatten
from tml_jax.checkpoint.store import TrainCheckpoints, open_model, save_model
from tml_jax.model.interaction import InteractionModel
from tml_jax.model.lora import BACKBONE, Lora, LoraConfig
from tml_jax.train.loop import Run
from tml_jax.train.trainer import Trainer

TOKENIZER = "checkpoints/inkling_tiny/tokenizer.json"
LORA = Lora(InteractionModel(EXPERIMENT.model), EXPERIMENT.train.lora)


def test_what_is_trained_is_what_the_published_weights_lack_and_additions_to_every_linear_map():
    model = LORA.model
    ours = {e.path for e in huggingface.entries(model.config) if e.name.startswith(huggingface.OURS)}
    assert ours == {path for path in flatten(model.abstract) if path.partition(".")[0] not in BACKBONE}
    assert set(LORA.maps) == {
        path for path, roles in flatten(model.matrices).items() if roles and path.startswith("transformer.")
    }
    trained = {path for path in flatten(LORA.abstract) if not path.endswith((".lora_a", ".lora_b"))}
    assert trained == ours | {"text.table.control_rows", "transformer.unembed.control_rows"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LoraConfig(rank=0), r"rank of 1 or more, not 0"),
        (LoraConfig(targets=("q_proj", "kv_proj")), r"no LoRA target 'kv_proj'; known: q_proj, k_proj"),
    ],
)
def test_a_wrong_config_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        Lora(InteractionModel(SMALL.model), config)


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A saved model of the experiment's sizes."""
    path = tmp_path_factory.mktemp("model") / "base"
    save_model(path, EXPERIMENT.model, tiny.random_params(InteractionModel(EXPERIMENT.model)), TOKENIZER)
    return path


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    """A whole run of the command, and what the base's folder held before it."""
    workdir, before = tmp_path_factory.mktemp("run"), contents(base)
    command = [sys.executable, "-m", "launch.train", "--config=tests/train/experiment_lora.py"]
    # The arithmetic is the same; compiling takes half as long.
    env = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run(
        [*command, f"--workdir={workdir}", f"--init_from={base}"], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return workdir, before


def test_the_loss_falls_and_the_base_keeps_its_bits(base, run):
    workdir, before = run
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["split"] == "train"]
    print(losses)
    assert len(losses) == 16 and np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4])
    assert contents(base) == before
    _, weights = open_model(workdir / "model")
    _, frozen = open_model(base)
    trained = flatten(LORA.abstract)
    for path, x in frozen.items():
        added = bool({path, path + ".lora_a", path + ".control_rows"} & set(trained))
        assert np.array_equal(weights[path], x) != added, path


def test_a_checkpoint_holds_what_is_trained_in_float32_and_names_the_base(base, run):
    workdir, _ = run
    trainer = Trainer(EXPERIMENT, sharding.make_mesh(()))
    with TrainCheckpoints(workdir) as checkpoints:
        state = checkpoints.restore(trainer.abstract_state()).state
    kept = jax.tree.leaves((state.params, state.average, state.optimizer))
    assert all(x.dtype == np.float32 for x in kept if x.ndim)
    # The weights, their average and two moments.
    size = sum(math.prod(x.shape) for x in jax.tree.leaves(LORA.abstract))
    assert sum(x.size for x in kept if x.ndim) == 4 * size
    meta = next((workdir / "checkpoints" / "16").rglob("metadata"))
    assert json.loads(meta.read_text())["config"]["lora"]["base"] == str(base)
    assert json.loads((workdir / "model" / "lora.json").read_text())["base"] == str(base)


def test_a_run_needs_its_base_again(base, run, tmp_path):
    workdir, _ = run
    with pytest.raises(ValueError, match=r"LoRA adds to a saved model: name it with --init_from"):
        Run(EXPERIMENT, str(workdir), TOKENIZER)
    other = tmp_path / "other"
    shutil.copytree(base, other)
    with pytest.raises(ValueError, match=r"lora.base was '.*base' and is now '.*other'"):
        Run(EXPERIMENT, str(workdir), TOKENIZER, str(other)).train()
    with pytest.raises(ValueError, match=r"lora was {.*} and is now None"):
        Run(SMALL, str(workdir), TOKENIZER, str(base)).train()


def test_convert_writes_the_adapter_alone(run, tmp_path):
    workdir, _ = run
    command = [
        sys.executable,
        "-m",
        "launch.convert",
        f"--from={workdir / 'model'}",
        f"--to={tmp_path / 'out'}",
        "--peft",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
    }
