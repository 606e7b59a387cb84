"""What an experiment is: a model, its data and its training, in one typed value; ``configs/*.py`` hold them."""

import dataclasses
import pathlib
import runpy
from typing import Literal

from tml_jax.data.config import DataConfig
from tml_jax.model.config import InteractionConfig
from tml_jax.model.lora import LoraConfig
from tml_jax.train.spec_augment import SpecAugment


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How a model is trained.

    Attributes:
      steps, batch_size (conversations), seed: of the run. Fewer conversations than devices, with data.group=1, are cut
        over the first axes of the mesh that divide them, and along time over the others of data, fsdp and expert.
      minutes: wall time of the run, start-up, compilation and the last evaluation included, in place of `steps`.
      learning_rate: of Muon, for matrices; `adam_learning_rate`: of AdamW, for everything else.
      warmup_steps, cooldown: linear warm-up; over the last `cooldown` share of the run the rates fall to zero.
      weight_decay: decoupled, on matrices. clip_norm: of the global gradient.
      balance_rate: how far a step moves an expert's correction bias.
      flow_weight, heard_weight: of the flow and the heard loss beside the token loss.
      listen_weight: of a silent micro-turn's token loss beside a speaking one's (1: calibrated).
      augment: changes to the user's sound, drawn anew in each step; None: none.
      microbatches: parts of a batch whose gradients are added up one after another: less memory, the same step.
      loss_turns: micro-turns of a window whose logits are in memory at once, computed again in the backward pass; None:
        all.
      ema: decay of the averaged weights that evaluation and export use; None: the weights themselves.
      frozen: weights that stay as they are, by dotted path, a decoder layer's without the layer's name.
      lora: train low-rank additions to a saved model that stays as it is (`model.lora`), by AdamW; None: all weights.
      mesh: sizes of (data, fsdp, expert, tensor); empty: every device on `data`.
      dtype: of the arithmetic; the weights stay float32.
      remat: recompute each layer in the backward pass: less memory, a third more work.
      stuck_after_s: on a pod, seconds after which a process that waits for data or runs a step is stuck and ends the
        run; more than the longest step.
      profile: first and last step of which a trace goes into the run's folder ``profile``; None: of none.
      workers: processes that make the data; 0: a thread of the trainer's own; None: two fewer than there are cores.
      eval_every, checkpoint_every, log_every: in steps. eval_conversations: held-out ones of an evaluation.
      local: folder on a disk of each host's own for more checkpoints, every `local_every` steps; None: none. A run goes
        on from the newest of them that all hosts have.
      eval_every_s, checkpoint_every_s: the same in seconds, for a run of `minutes`.
    """

    steps: int = 6000
    minutes: float | None = None
    batch_size: int = 24
    seed: int = 0
    learning_rate: float = 4e-3
    adam_learning_rate: float = 1.5e-3
    warmup_steps: int = 100
    cooldown: float = 0.3
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    balance_rate: float = 1e-3
    flow_weight: float = 0.3
    heard_weight: float = 0.5
    listen_weight: float = 1.0
    augment: SpecAugment | None = None
    microbatches: int = 1
    loss_turns: int | None = None
    ema: float | None = 0.999
    frozen: tuple[str, ...] = ()
    lora: LoraConfig | None = None
    mesh: tuple[int, ...] = ()
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = True
    stuck_after_s: float = 40.0
    profile: tuple[int, int] | None = None
    workers: int | None = None
    eval_every: int = 500
    eval_every_s: float = 120.0
    eval_conversations: int = 48
    checkpoint_every: int = 250
    checkpoint_every_s: float = 300.0
    local: str | None = None
    local_every: int = 50
    log_every: int = 10


@dataclasses.dataclass(frozen=True)
class Rehearsal:
    """Conversations in which the model that a run begins with is the teacher, so that what it can do stays.

    Attributes:
      data: what they are drawn from; windows and groups as in the experiment's own data.
      share: of the groups of a batch, its last ones.
      weight: of the teacher's distribution in their targets; the labels have the rest.
    """

    data: DataConfig
    share: float = 0.5
    weight: float = 0.7

    def __post_init__(self) -> None:
        if not 0.0 < self.share < 1.0 or not 0.0 < self.weight <= 1.0:
            raise ValueError(
                f"A rehearsal's share is in (0, 1), its weight in (0, 1]; not {self.share}, {self.weight}."
            )

    def groups(self, of: int) -> int:
        """How many of so many groups are rehearsed: at least one, and not all."""
        return min(of - 1, max(1, round(self.share * of)))


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """A named experiment.

    Raises:
      ValueError: what it rehearses is not cut into the windows and groups of its own data.
    """

    name: str
    model: InteractionConfig
    data: DataConfig
    train: TrainConfig
    rehearsal: Rehearsal | None = None

    def __post_init__(self) -> None:
        if self.rehearsal is None:
            return
        for name in ("group", *(f.name for f in dataclasses.fields(DataConfig) if f.name.startswith("window_"))):
            ours, theirs = getattr(self.data, name), getattr(self.rehearsal.data, name)
            if ours != theirs:
                raise ValueError(f"What is rehearsed has {name} {theirs}, and the experiment's own data {ours}.")
        if self.train.microbatches != 1:
            raise ValueError("A batch of which a part is rehearsed can't be cut into microbatches: set microbatches=1.")
        if self.train.batch_size < 2 * self.data.group:
            raise ValueError(
                f"A batch of {self.train.batch_size} has one group of {self.data.group}: a rehearsal needs another."
            )


def load_experiment(path: str) -> ExperimentConfig:
    """Reads the `CONFIG` of an experiment file such as ``configs/inkling_tiny.py``.

    Raises:
      ValueError: no such file, it cannot be run, or it holds no `CONFIG`.
    """
    if not pathlib.Path(path).is_file():
        raise ValueError(f"There is no config at {path!r}; try configs/inkling_tiny.py.")
    try:
        config = runpy.run_path(path).get("CONFIG")
    except Exception as error:  # whatever the file's own code raises
        raise ValueError(f"{path!r} is no experiment: {type(error).__name__}: {error}.") from error
    if not isinstance(config, ExperimentConfig):
        raise ValueError(f"{path!r} defines no CONFIG of type ExperimentConfig.")
    return config
