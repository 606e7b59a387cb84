"""One training step, sharded, and what it carries from step to step."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from tml_jax import sharding
from tml_jax.executor.executor import Executor
from tml_jax.model.adapted import Adapted
from tml_jax.model.interaction import InteractionModel, Params
from tml_jax.model.lora import Lora
from tml_jax.model.plan import layer_plan
from tml_jax.streams.packed import Conversation as Batch
from tml_jax.train import loss as loss_lib
from tml_jax.train.config import ExperimentConfig
from tml_jax.train.optimizer import balance_experts, is_frozen, make_optimizer, optimizer_shardings
from tml_jax.train.spec_augment import change_sound


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["step", "params", "average", "optimizer"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What training carries: the step, the weights, their running average (None: none), and the optimiser's state.

    With LoRA the weights are those that it trains (`model.lora.Lora`), and the others are not in here.

    All of them are float32, whatever dtype a step computes in: an update is mostly smaller than bfloat16's distance to
    the next number, and would be lost.
    """

    step: Any
    params: Params
    average: Params | None
    optimizer: Any

    @property
    def best(self) -> Params:
        """The weights to evaluate and to export: the average, where there is one."""
        return self.params if self.average is None else self.average


class Trainer:
    """The compiled training and evaluation steps of an experiment on a mesh.

    Attributes:
      base: with LoRA, or where something is rehearsed, the weights that the run begins with and that stay as they are,
        in the dtype of the arithmetic: ShapeDtypeStructs until the run has `freeze`d some. Else None.
      rehearsed: groups of a batch, its last ones, in which they teach.
    """

    def __init__(self, experiment: ExperimentConfig, mesh: Mesh) -> None:
        self.config, self.executor = experiment.train, Executor(mesh)
        self.num_tokens, self.turns = experiment.data.window_tokens, experiment.data.window_turns
        self.group = experiment.data.group
        self.model = InteractionModel(experiment.model)
        self._compute = InteractionModel(experiment.model, jnp.dtype(experiment.train.dtype)).abstract
        self._layers = {group.name for group in layer_plan(experiment.model.text)}
        self.lora = None if experiment.train.lora is None else Lora(self.model, experiment.train.lora)
        self.rehearsal = experiment.rehearsal
        groups = self.config.batch_size // self.group
        self.rehearsed = 0 if self.rehearsal is None else self.rehearsal.groups(groups)
        self.base = self.executor.abstract(self._compute, self.model.axes) if self.needs_base else None
        self._trained = self.lora or self.model
        self.tx = make_optimizer(self.model, experiment.train)
        replicated = self.executor.sharding()
        weights = self.executor.shardings(self._trained.axes, self._trained.abstract)
        optimizer = optimizer_shardings(self.tx, self._trained.abstract, weights, mesh)
        self.shardings = TrainState(replicated, weights, weights if self.config.ema else None, optimizer)
        program = self.executor.program
        self._step = program(self._train_step, donate=0, out_shardings=(self.shardings, replicated))
        self._evaluate = program(self._evaluate_batch, out_shardings=replicated)

    @property
    def needs_base(self) -> bool:
        """Whether the weights that a run begins with are needed as long as it goes on."""
        return self.lora is not None or self.rehearsal is not None

    def freeze(self, params: Params) -> None:
        """What LoRA adds to, and what teaches where something is rehearsed: a model's weights, cast and placed."""
        cast = jax.tree.map(lambda p, like: p.astype(like.dtype), params, self._compute)
        self.base = jax.device_put(cast, self.executor.shardings(self.model.axes, cast))

    def start_from(self, params: Params, new_control: bool = False) -> TrainState:
        """A state at step 0 with these weights, placed; with LoRA, one that adds nothing to them yet.

        Args:
          params: the weights, placed as the state's or on the host.
          new_control: they haven't met the control tokens yet: `InteractionModel.with_new_control`.
        """

        def begin(params: Params) -> TrainState:
            if self.lora is not None:
                return self._fresh(self.lora.init(params, self.config.seed))
            return self._fresh(self.model.with_new_control(params) if new_control else params)

        return self.executor.program(begin, out_shardings=self.shardings)(params)

    def abstract_state(self) -> TrainState:
        """The state's shapes, dtypes and shardings, nothing allocated."""
        abstract = jax.eval_shape(self._init, 0)
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, self.shardings)

    def init(self) -> TrainState:
        """A fresh state, made where it will live."""
        # A hundred random weights, drawn once: on a CPU XLA takes several times as long to optimise that as to run it.
        options: dict[str, bool | int] = (
            {"xla_backend_optimization_level": 0} if self.executor.platform == "cpu" else {}
        )
        return self.executor.program(self._init, out_shardings=self.shardings, options=options)(self.config.seed)

    def _init(self, seed: Any) -> TrainState:
        params = self.model.init_params(seed)
        return self._fresh(params if self.lora is None else self.lora.init(params, seed))

    def _fresh(self, params: Params) -> TrainState:
        average = jax.tree.map(jnp.copy, params) if self.config.ema else None
        return TrainState(jnp.zeros((), jnp.int32), params, average, self.tx.init(params))

    @property
    def _at_once(self) -> int:
        """Groups of a microbatch."""
        return self.config.batch_size // self.group // self.config.microbatches

    @property
    def _shards(self) -> int:
        """Parts that they are cut in."""
        cut = sharding.mesh_axes("batch", self._at_once, self.executor.mesh)
        return math.prod(self.executor.mesh.shape[axis] for axis in cut)

    def _cut(self, length: int) -> NamedSharding:
        """How an array of a batch lies whose second axis, along time, is so long."""
        return self.executor.sharding(("batch", "sequence" if self.group == 1 else None), (self._at_once, length))

    def groups(self) -> list[int]:
        """The groups of a batch that this process's devices hold, in order.

        Where there are fewer groups than devices, several devices share a window, and each has a part of its time.

        Raises:
          ValueError: the groups can't be shared out evenly over microbatches and devices, or a window over those that
            share it.
        """
        count, parts = self.config.batch_size // self.group, self.config.microbatches
        devices = math.prod(self.executor.mesh.shape[axis] for axis in sharding.RULES["batch"])
        shared = parts >= 1 and self.group == 1 and 0 < count < devices * parts
        if parts < 1 or count % (parts if shared else devices * parts):
            over = f"{devices} devices" + (f" of {parts} microbatches" if parts != 1 else "")
            raise ValueError(
                f"A batch of {count} groups of {self.group} conversations can't be cut over {over}: make batch_size "
                "larger or data.group smaller."
            )
        share = devices // self._shards
        if self.num_tokens % share or self.turns % share:
            raise ValueError(
                f"Windows of {self.num_tokens} tokens and {self.turns} micro-turns can't be cut over the {share} "
                f"devices that share one where {self._at_once} go at once: make both multiples of {share}, or "
                "batch_size larger."
            )
        indices = self._cut(1).addressable_devices_indices_map((count, 1)).values()
        return sorted({group for part, _ in indices for group in range(*part.indices(count))})

    def place(self, batch: Batch) -> Batch:
        """Puts a batch on the mesh, cut over groups and, where these are few, over time.

        A process brings its `groups`, whole.
        """
        parts, whole = len(self.groups()), self.config.batch_size // self.group

        def put(local: np.ndarray) -> jax.Array:
            shape = (len(local) // parts * whole, *local.shape[1:])
            return jax.make_array_from_process_local_data(self._cut(shape[1]), local, shape)

        return jax.tree.map(put, batch)

    def abstract_batch(self, batch: Batch) -> Batch:
        """ShapeDtypeStructs of a batch, as `place` would put it."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._cut(x.shape[1])), batch)

    def step(self, state: TrainState, batch: Batch, scale: float = 1.0) -> tuple[TrainState, loss_lib.Metrics]:
        """One optimiser step, the learning rates times `scale`; `state` is consumed."""
        return self._step(state, self.place(batch), np.float32(scale), self.base)

    def lower(self, state: TrainState, batch: Batch, platforms: tuple[str, ...] | None = None) -> jax.stages.Lowered:
        """The training step lowered for these arrays or ShapeDtypeStructs; nothing runs. `platforms`: not this one."""
        scale = jax.ShapeDtypeStruct((), jnp.float32)
        return self._step.lower(state, batch, scale, self.base, platforms=platforms)

    def evaluate(self, params: Params, batch: Batch) -> loss_lib.Metrics:
        """The losses of a batch, nothing learnt; the same noise every time."""
        return self._evaluate(params, self.place(batch), self.base)

    def _augmented(self, batch: Batch, key: jax.Array) -> Batch:
        inputs, outputs = batch
        if self.config.augment is None:
            return batch
        audio = change_sound(inputs.audio, self.config.augment, self.model.config.stream.sample_rate, key)
        return dataclasses.replace(inputs, audio=audio), outputs

    def _loss(
        self,
        params: Params,
        batch: Batch,
        keys: jax.Array,
        over: dict[str, jax.Array],
        base: Params | None,
        rehearsed: int = 0,
    ) -> tuple[jax.Array, loss_lib.LossOutput]:
        if self.lora is None:
            # Cast where they lie, so that what is gathered of them is half as large.
            params = jax.tree.map(lambda p, like: p.astype(like.dtype), params, self._compute)
        else:
            params = self.lora.merge(base, jax.tree.map(sharding.constrain, params, self._trained.axes))
        place = functools.partial(jax.tree.map_with_path, self._placed, is_leaf=lambda x: isinstance(x, Adapted))
        taught, axes = None, self.model.axes
        if rehearsed and self.rehearsal is not None:
            taught = loss_lib.Taught(place(base, axes), rehearsed, self.rehearsal.weight)
        return loss_lib.loss(self.model, place(params, axes), batch, self.config, self.num_tokens, keys, over, taught)

    def _placed(self, path: tuple[Any, ...], weight: Any, axes: Sequence[str | None]) -> Any:
        """A layer gathers its weights when its turn comes; all else is needed at both ends of a step."""
        weight = jax.lax.stop_gradient(weight) if is_frozen(path, self.config) else weight
        of_layer = path[0].key == "transformer" and path[1].key in self._layers
        if of_layer and self.lora is not None:
            return weight
        return (sharding.constrain if of_layer else sharding.whole)(weight, axes)

    def gradients(
        self, params: Params, batch: Batch, key: jax.Array, base: Params | None = None
    ) -> tuple[Params, loss_lib.LossOutput]:
        """The gradients of the loss of a batch: added up over its microbatches, one after another.

        Whatever their number, they are those of the whole batch, of the same random draws.
        """
        over, keys = self._over(batch), jax.random.split(key, len(batch[1].mel))
        keys = sharding.constrain(keys, ("batch",))
        gradient = jax.grad(functools.partial(self._loss, rehearsed=self.rehearsed), has_aux=True)
        parts = self.config.microbatches
        if parts == 1:
            return gradient(params, batch, keys, over, base)

        def cut(x: jax.Array) -> jax.Array:
            """[parts, B / parts, ...], as many rows of each device in each part."""
            rest = x.shape[1:]
            x = jnp.moveaxis(x.reshape(self._shards, parts, -1, *rest), 1, 0).reshape(parts, -1, *rest)
            return sharding.constrain(x, (None, "batch", "sequence", *(None,) * len(rest))[: x.ndim])

        def add(sums: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, gradient(params, *part, over, base)), None

        cuts = jax.tree.map(cut, (batch, keys))
        one = jax.eval_shape(gradient, params, *jax.tree.map(lambda x: x[0], cuts), over, base)
        grown, out = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), one)
        grown = jax.tree.map(lambda x, axes: sharding.constrain(x, axes), grown, self._trained.axes)
        return jax.lax.scan(add, (grown, out), cuts)[0]

    def _over(self, batch: Batch) -> dict[str, jax.Array]:
        return loss_lib.counts(self.model, batch, self.num_tokens)

    def _train_step(
        self, state: TrainState, batch: Batch, scale: jax.Array, base: Params | None
    ) -> tuple[TrainState, loss_lib.Metrics]:
        key = jax.random.fold_in(jax.random.key(self.config.seed), state.step)
        # The same draws whether or not the sound is changed.
        batch = self._augmented(batch, jax.random.fold_in(key, 1))
        gradients, out = self.gradients(state.params, batch, key, base)
        updates, optimizer = self.tx.update(gradients, state.optimizer, state.params)
        updates = jax.tree.map(lambda u: u * scale.astype(u.dtype), updates)
        params = optax.apply_updates(state.params, updates)
        if self.lora is None:
            params = balance_experts(params, out.load, self.config.balance_rate)
        metrics = out.metrics | loss_lib.expert_imbalance(out.load) | {"gradient_norm": optax.global_norm(gradients)}
        return TrainState(state.step + 1, params, self._averaged(state, params), optimizer), metrics

    def _averaged(self, state: TrainState, params: Params) -> Params | None:
        if state.average is None:
            return None
        # A young average forgets its random beginning faster.
        decay = jnp.minimum(self.config.ema or 0.0, (1.0 + state.step) / (10.0 + state.step))
        return jax.tree.map(lambda a, p: a + (1 - decay) * (p - a), state.average, params)

    def _evaluate_batch(self, params: Params, batch: Batch, base: Params | None) -> loss_lib.Metrics:
        keys = jax.random.split(jax.random.key(0), len(batch[1].mel))
        out = self._loss(params, batch, keys, self._over(batch), base)[1]
        return out.metrics | loss_lib.expert_imbalance(out.load)
