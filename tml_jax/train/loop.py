"""The training run: data in, steps, metrics, evaluation on held-out voices, checkpoints, and a model at the end.

A run killed at any moment goes on from its newest checkpoint with the very losses that it would have had: the
weights, the optimiser, the running average and the position in the data are all in it, and every random number
comes from the seed and the step.
"""

import dataclasses
import itertools
import json
import logging
import os
import pathlib
import time
from typing import Any

import jax
import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from tml_jax import sharding
from tml_jax.checkpoint.store import TrainCheckpoints, save_model
from tml_jax.data.pipeline import make_pipeline
from tml_jax.streams.text import Tokenizer
from tml_jax.train.config import ExperimentConfig
from tml_jax.train.trainer import Batch, Trainer, TrainState

LOG = logging.getLogger(__name__)


class MetricsLog:
    """Scalars for TensorBoard, and the same as JSON lines in ``metrics.jsonl``; on a pod the first process writes."""

    def __init__(self, workdir: pathlib.Path, write: bool) -> None:
        self._board = SummaryWriter(str(workdir / "tensorboard"), write_to_disk=write)
        self._lines = (workdir / "metrics.jsonl" if write else pathlib.Path(os.devnull)).open("a", buffering=1)

    def write(self, step: int, prefix: str, metrics: dict[str, Any]) -> None:
        """Writes scalars under `prefix`."""
        values = {name: float(value) for name, value in metrics.items()}
        for name, value in values.items():
            self._board.add_scalar(f"{prefix}/{name}", value, step)
        self._lines.write(json.dumps({"step": step, "split": prefix} | values) + "\n")

    def close(self) -> None:
        """Flushes and closes."""
        self._board.close()
        self._lines.close()


def conversation_seconds(batch: Batch, micro_turn_s: float) -> float:
    """Seconds of conversation in this process's part of a batch; padding doesn't count."""
    return float(np.sum(batch[0].active)) * micro_turn_s


def evaluate(trainer: Trainer, state: TrainState, batches: list[Batch]) -> dict[str, float]:
    """Mean metrics of the averaged weights over held-out batches."""
    results = [jax.device_get(trainer.evaluate(state.average, batch)) for batch in batches]
    return {name: float(np.mean([r[name] for r in results])) for name in results[0]}


def train(experiment: ExperimentConfig, workdir: str, tokenizer_path: str, stop_after: int | None = None) -> TrainState:
    """Trains an experiment in `workdir`, going on from the newest checkpoint there.

    Args:
      experiment: what to train, on what, how.
      workdir: for checkpoints, metrics and the final model (``workdir/model``, from a single host).
      tokenizer_path: the model's ``tokenizer.json``.
      stop_after: stop at this step as if the run had been cut there; None: run to the end.
    """
    config, spec = experiment.train, experiment.model.stream
    directory = pathlib.Path(workdir)
    directory.mkdir(parents=True, exist_ok=True)
    first = jax.process_index() == 0
    if first:
        (directory / "experiment.json").write_text(json.dumps(dataclasses.asdict(experiment), indent=1) + "\n")
    tokenizer = Tokenizer(tokenizer_path)
    trainer = Trainer(experiment, sharding.make_mesh(config.mesh))
    data = iter(make_pipeline(experiment.data, spec, tokenizer, config.batch_size, "train", trainer.rows()))
    held_out = make_pipeline(experiment.data, spec, tokenizer, config.batch_size, "heldout", trainer.rows())
    count = max(1, config.eval_conversations // config.batch_size)
    held_out_batches = list(itertools.islice(iter(held_out), count))

    last = min(config.steps, stop_after or config.steps)
    with TrainCheckpoints(directory, config={"model": experiment.model.to_json()}) as checkpoints:
        if checkpoints.latest() is None:
            state = trainer.init()
        else:
            restored = checkpoints.restore(trainer.abstract_state())
            state = restored.state
            data.set_state(restored.data)
            LOG.info("going on from step %d", restored.step)
        log = MetricsLog(directory, first)
        bar = tqdm(range(int(state.step), last), initial=int(state.step), total=config.steps, unit="step")
        began, seconds = time.monotonic(), 0.0
        for step in bar:
            batch = next(data)
            state, metrics = trainer.step(state, batch)
            seconds += conversation_seconds(batch, spec.micro_turn_s)
            done = step + 1
            if done % config.log_every == 0:
                values = jax.device_get(metrics)
                rate = seconds / (time.monotonic() - began)
                log.write(done, "train", values | {"conversation_seconds_per_second": rate})
                bar.set_postfix_str(f"loss {values['loss']:.3f}, {rate:.0f} conversation-s/s")
                began, seconds = time.monotonic(), 0.0
            if done % config.eval_every == 0 or done == last:
                values = evaluate(trainer, state, held_out_batches)
                log.write(done, "heldout", values)
                tqdm.write(f"step {done} held out: " + ", ".join(f"{k} {v:.3f}" for k, v in sorted(values.items())))
            if done % config.checkpoint_every == 0 or done == last:
                checkpoints.save(done, state, data.get_state())
        log.close()
    if jax.process_count() > 1:
        LOG.info("the weights are spread over a pod and stay in %s", directory / "checkpoints")
        return state
    save_model(directory / "model", experiment.model, jax.device_get(state.average), tokenizer_path, dtype="bfloat16")
    return state
