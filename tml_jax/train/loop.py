"""The training run: data in, steps, metrics, evaluation on held-out voices, checkpoints, and a model at the end.

A run of so many steps that is killed at any moment goes on from its newest checkpoint with the very losses that it
would have had: the weights, the optimiser and the running average are in it, and the data and every random number come
from the seed and the step. (A run of so many minutes goes on with the same data; its learning rate follows the clock.)
"""

import contextlib
import dataclasses
import itertools
import json
import logging
import os
import pathlib
import shutil
import time
from collections.abc import Generator, Iterator
from typing import Any

import jax
import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from tml_jax import sharding
from tml_jax.checkpoint.local import LocalCheckpoints
from tml_jax.checkpoint.source import Source, open_source, write_dtypes
from tml_jax.checkpoint.store import (
    PUBLISHED_FILE,
    TrainCheckpoints,
    copy_tokenizer,
    difference,
    load_params,
    open_tokenizer,
    save_lora,
    save_model,
)
from tml_jax.checkpoint.voice import copy_voice
from tml_jax.checkpoint.weights import place_params
from tml_jax.data.config import DataConfig
from tml_jax.data.pipeline import Batch, Pipeline
from tml_jax.executor.watchdog import Watchdog
from tml_jax.train.bar import log_above_bar
from tml_jax.train.config import ExperimentConfig, TrainConfig
from tml_jax.train.interrupt import Interruption
from tml_jax.train.optimizer import schedule
from tml_jax.train.progress import Progress
from tml_jax.train.spending import Spending
from tml_jax.train.trainer import Trainer, TrainState

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


def evaluate(trainer: Trainer, state: TrainState, batches: list[Batch]) -> dict[str, float]:
    """Mean metrics of the best weights over held-out batches."""
    results = [jax.device_get(trainer.evaluate(state.best, batch)) for batch in batches]
    return {name: float(np.mean([r[name] for r in results])) for name in results[0]}


def num_workers(config: TrainConfig) -> int:
    """Processes that make data: what the config says, else two fewer than there are cores, which the trainer needs."""
    return max(0, (os.cpu_count() or 1) - 2) if config.workers is None else config.workers


class Run:
    """A training run in a folder; it goes on from the newest checkpoint there.

    Args:
      experiment: what to train, on what, how.
      workdir: for checkpoints, metrics and the final model (``workdir/model``, from a single host).
      tokenizer_path: the model's ``tokenizer.json``.
      init_from: a model of the same sizes to begin with, in any layout, where the folder holds no checkpoint; what a
        published one lacks starts fresh. None: all does. With LoRA it is the saved model that stays as it is, needed
        always; what is saved names it.
      began: when the run began, by `time.monotonic`; None: now.
      interruption: asks for the end: the run then saves a checkpoint, and no model; None: nothing does.

    Raises:
      ValueError: something of this does not fit together; nothing was written then.
    """

    def __init__(
        self,
        experiment: ExperimentConfig,
        workdir: str,
        tokenizer_path: str,
        init_from: str | None = None,
        began: float | None = None,
        interruption: Interruption | None = None,
    ) -> None:
        self.experiment, self.config, self.spec = experiment, experiment.train, experiment.model.stream
        self.directory, self._tokenizer_path, self._init_from = pathlib.Path(workdir), tokenizer_path, init_from
        if self.config.lora is not None and init_from is None:
            raise ValueError("LoRA adds to a saved model: name it with --init_from.")
        if experiment.rehearsal is not None and init_from is None:
            raise ValueError("What is rehearsed is what a saved model can do: name it with --init_from.")
        self._began = time.monotonic() if began is None else began
        self._interruption = interruption or Interruption()
        if self.config.minutes is not None and jax.process_count() > 1:
            raise ValueError("A run by minutes is one process's: give a pod's run its steps, which all hosts agree on.")
        open_tokenizer(tokenizer_path, experiment.model.text)
        self.trainer = Trainer(experiment, sharding.make_mesh(self.config.mesh))
        self._first = jax.process_index() == 0

    def _pipeline(self, data: DataConfig, split: str, workers: int, places: range) -> Pipeline:
        """This process's groups of those places of every batch."""
        groups = [place - places.start for place in self.trainer.groups() if place in places]
        others = self.config.batch_size // data.group - len(places)
        size = self.config.batch_size - others * data.group
        return Pipeline(data, self.spec, self._tokenizer_path, size, split, groups, workers)

    def _training_data(self) -> list[Pipeline]:
        """What is learnt, and what is rehearsed beside it."""
        whole, workers = self.config.batch_size // self.experiment.data.group, num_workers(self.config)
        first, rehearsal = whole - self.trainer.rehearsed, self.experiment.rehearsal
        if rehearsal is None:
            return [self._pipeline(self.experiment.data, "train", workers, range(whole))]
        theirs = min(workers, max(1, round(workers * (whole - first) / whole)))
        found = [
            self._pipeline(self.experiment.data, "train", min(workers, max(1, workers - theirs)), range(first)),
            self._pipeline(rehearsal.data, "train", theirs, range(first, whole)),
        ]
        return [pipeline for pipeline in found if pipeline.groups]  # a process of a pod may have groups of one alone

    def train(self, stop_after: int | None = None) -> TrainState:
        """Trains to the end, until it is interrupted, or up to step `stop_after` as if the run had been cut there."""
        data, every = self._training_data(), range(self.config.batch_size // self.experiment.data.group)
        held_out = self._pipeline(self.experiment.data, "heldout", 0, every)
        if self.trainer.needs_base or not (self.directory / "checkpoints").is_dir():
            self._open_init_from()
        self.directory.mkdir(parents=True, exist_ok=True)
        drawn = ("seed", "group", "replay", "replay_pool")
        order = {name: getattr(self.experiment.data, name) for name in drawn}
        order["batch_size"] = self.config.batch_size
        if (rehearsal := self.experiment.rehearsal) is not None:
            order["rehearsed"] = {name: getattr(rehearsal.data, name) for name in drawn}
            order["rehearsed"] |= {"groups": self.trainer.rehearsed, "weight": rehearsal.weight, "teacher": self._base}
        config = {"model": self.experiment.model.to_json(), "order of the data": order}
        if self.config.lora is not None:
            config["lora"] = dataclasses.asdict(self.config.lora) | {"base": self._base}
        with log_above_bar(), TrainCheckpoints(self.directory, config=config) as checkpoints:
            disk = LocalCheckpoints(
                self.config.local, config | {"workdir": str(self.directory)}, self.config.local_every
            )
            state, spent = self._begin(checkpoints, disk)
            progress = Progress(self.config, self._began, spent["elapsed_s"])
            if self._first:
                record = json.dumps(dataclasses.asdict(self.experiment), indent=1) + "\n"
                (self.directory / "experiment.json").write_text(record)
                copy_tokenizer(self._tokenizer_path, self.directory)
            count = max(1, self.config.eval_conversations // self.config.batch_size)
            batches = list(itertools.islice(held_out.batches(), count))
            with contextlib.closing(_side_by_side(data, int(state.step))) as made:
                with Watchdog(self.config.stuck_after_s) as watchdog:
                    spending = Spending(watchdog, spent["started"], spent["trained_s"])
                    state = self._loop(state, progress, spending, made, batches, checkpoints, disk, stop_after)
                disk.finish()
                if not self._interruption.requested or progress.over(int(state.step)):
                    self._save_model(state)
        return state

    def _save_model(self, state: TrainState) -> None:
        if jax.process_count() > 1:
            LOG.info("the weights are spread over a pod; launch.convert --from=%s exports them", self.directory)
            return
        weights = jax.device_get(state.best)
        if self.trainer.lora is not None:
            save_lora(self.directory / "model", self.trainer.lora, weights, self._base, self._tokenizer_path)
            return
        save_model(self.directory / "model", self.experiment.model, weights, self._tokenizer_path, dtype="bfloat16")
        if (published := self.directory / PUBLISHED_FILE).is_file():
            shutil.copyfile(published, self.directory / "model" / PUBLISHED_FILE)
        copy_voice(self.directory, self.directory / "model")

    @property
    def _base(self) -> str:
        """The folder of the model that LoRA adds to."""
        return str(pathlib.Path(self._init_from or "").absolute())

    def _begin(self, checkpoints: TrainCheckpoints, disk: LocalCheckpoints) -> tuple[TrainState, dict[str, float]]:
        """The state to go on from, the seconds that the run has taken and trained so far, and when it started."""
        none = {"elapsed_s": 0.0, "trained_s": 0.0, "started": time.time() - (time.monotonic() - self._began)}
        if self.experiment.rehearsal is not None and self.config.lora is None:
            self._open_teacher()
        elif self.trainer.needs_base:
            self.trainer.freeze(load_params(self._base, dtype=self.config.dtype, mesh=self.trainer.executor.mesh)[1])
        latest, newest = checkpoints.latest(), disk.newest(self.trainer.abstract_state())
        if newest is not None and newest > (latest or 0):
            LOG.info("going on from step %d, as it is on the disks of all hosts", newest)
            state, spent = disk.restore(self.trainer.abstract_state(), newest)
            return state, spent
        if latest is not None:
            restored = checkpoints.restore(self.trainer.abstract_state())
            LOG.info("going on from step %d", restored.step)
            return restored.state, none | restored.data
        if self.trainer.lora is not None:
            return self.trainer.start_from(self.trainer.base), none
        source = self._open_init_from()
        if source is None:
            return self.trainer.init(), none
        LOG.info("beginning with %s: %s", self._init_from, source.report or f"all {len(source.weights)} weights")
        weights = source.filled(self.config.seed)
        if self._first:  # what an export needs
            source.copy_along(self.directory)
            write_dtypes(self.directory, weights)
        params = place_params(self.trainer.model, weights, self.trainer.shardings.params)
        return self.trainer.start_from(params, new_control=bool(source.fresh)), none

    def _open_teacher(self) -> None:
        source = self._open_init_from()
        assert source is not None, "a rehearsal asks for it"
        if source.fresh:
            raise ValueError(f"{self._init_from} cannot teach: it has no weights of its own for {min(source.fresh)}.")
        weights = source.filled(self.config.seed)
        self.trainer.freeze(place_params(self.trainer.model, weights, self.trainer.shardings.params))

    def _open_init_from(self) -> Source | None:
        if self._init_from is None:
            return None
        model = self.experiment.model
        source = open_source(self._init_from, like=model)
        if source.config != model:
            sizes = difference(source.config.to_json(), model.to_json())
            raise ValueError(f"{self._init_from} is a model of other sizes: {sizes}.")
        if source.tokenizer.is_file():
            theirs, ours = (open_tokenizer(path, model.text) for path in (source.tokenizer, self._tokenizer_path))
            if not theirs.same_tokens(ours):
                raise ValueError(
                    f"The tokenizer {self._tokenizer_path} gives other tokens their rows than {source.tokenizer}, with "
                    "which the weights were made."
                )
        return source

    def _loop(
        self,
        state: TrainState,
        progress: Progress,
        spending: Spending,
        data: Iterator[Batch],
        held_out: list[Batch],
        checkpoints: TrainCheckpoints,
        disk: LocalCheckpoints,
        stop_after: int | None,
    ) -> TrainState:
        step, saved = int(state.step), checkpoints.latest()
        log = MetricsLog(self.directory, self._first)
        meter = _Meter(self.config, self.spec.micro_turn_s, step)
        profile = _Profile(self.directory / "profile", self.config.profile)

        def spent() -> dict[str, float]:
            return {"elapsed_s": progress.elapsed_s(), "trained_s": spending.trained_s, "started": spending.started}

        def save() -> None:
            nonlocal saved
            start = time.monotonic()
            with spending.on("save", step, slow=True):
                checkpoints.save(step, state, spent())
                if self.config.minutes is not None:  # the last one has to fit in, so it is timed as a whole
                    checkpoints.finish()
            progress.took("save", time.monotonic() - start)
            saved = step

        def judge() -> None:
            start = time.monotonic()
            with spending.on("evaluate", step, slow=True):
                values = evaluate(self.trainer, state, held_out)
            progress.took("evaluate", time.monotonic() - start)
            log.write(step, "heldout", values | {"elapsed_s": progress.elapsed_s()})
            meter.say(f"step {step} held out: " + ", ".join(f"{k} {v:.3f}" for k, v in sorted(values.items())))

        if self.config.minutes is not None:  # compiled before it is timed: the last one has to fit in
            evaluate(self.trainer, state, held_out[:1])
            judge()
        running = None
        while not (progress.over(step) or step == stop_after or self._interruption.requested):
            scale = schedule(self.config, step, progress.share(step))
            with spending.on("data", step + 1):
                batch = next(data)
            profile.before(step + 1)
            with spending.on("step", step + 1, slow=running is None):  # the first is compiled
                state, metrics = self.trainer.step(state, batch, scale)
                # One step runs while the next batch is made; more in flight, and the clock would be far behind them.
                jax.block_until_ready(running)
                running = metrics
                step += 1
                logged = jax.device_get(metrics) if step % self.config.log_every == 0 else None
            profile.after(step, metrics)
            self._interruption.after(step)
            meter.count(batch)
            if logged is not None:
                times = spending.per_step(meter.steps)
                log.write(step, "train", meter.show(logged) | times | {"learning_rate_scale": scale})
            if self._interruption.requested:
                break
            if progress.due("evaluate", step):
                judge()
            if progress.due("save", step):
                save()
            elif disk.due(step):
                with spending.on("save", step, slow=True):
                    disk.save(step, state, spent())
        cut_short = self._interruption.requested and not progress.over(step)
        if not cut_short and (not progress.due("evaluate", step) or self.config.minutes is not None):
            judge()
        if saved != step:
            save()
        log.close()
        meter.close()
        profile.close()
        return state


def _side_by_side(pipelines: list[Pipeline], first: int) -> Generator[Batch, None, None]:
    """Batches of which each pipeline makes its part, in their order; from number `first` on."""
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(contextlib.closing(pipeline.batches(first))) for pipeline in pipelines]
        for parts in zip(*made, strict=True):
            yield jax.tree.map(lambda *x: np.concatenate(x), *parts)


class _Profile:
    """A trace of some steps, for TensorBoard's or XProf's profiler; on a pod each host writes its own."""

    def __init__(self, directory: pathlib.Path, steps: tuple[int, int] | None) -> None:
        self._directory, (self._first, self._last) = directory, steps or (0, 0)
        self._runs = False

    def before(self, step: int) -> None:
        """This step comes next."""
        if step == self._first:
            jax.profiler.start_trace(self._directory)
            self._runs = True

    def after(self, step: int, result: Any) -> None:
        """It was begun, with this result."""
        if step == self._last:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Writes what there is."""
        if self._runs:
            jax.profiler.stop_trace()
            self._runs = False


class _Meter:
    """The progress bar, and how many conversations and seconds of conversation a second go through the trainer."""

    def __init__(self, config: TrainConfig, micro_turn_s: float, step: int) -> None:
        total = config.steps if config.minutes is None else None
        self._bar = tqdm(initial=step, total=total, unit="step")
        self._size, self._micro_turn_s = config.batch_size, micro_turn_s
        self._restart()

    def _restart(self) -> None:
        self._since, self._batches, self._seconds = time.monotonic(), 0, 0.0

    def count(self, batch: Batch) -> None:
        """One more step."""
        self._batches += 1
        self._seconds += float(np.sum(batch[0].active)) * self._micro_turn_s
        self._bar.update()

    @property
    def steps(self) -> int:
        """Since the last time."""
        return self._batches

    def show(self, metrics: dict[str, Any]) -> dict[str, float]:
        """The metrics with the rates since the last time."""
        elapsed = time.monotonic() - self._since
        rates = {
            "conversations_per_second": self._batches * self._size / elapsed,
            "conversation_seconds_per_second": self._seconds / elapsed,
        }
        self._bar.set_postfix_str(
            f"loss {metrics['loss']:.3f}, {rates['conversation_seconds_per_second']:.0f} conversation-s/s"
        )
        self._restart()
        return {name: float(value) for name, value in metrics.items()} | rates

    def say(self, line: str) -> None:
        """A line above the bar."""
        tqdm.write(line)

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.close()
