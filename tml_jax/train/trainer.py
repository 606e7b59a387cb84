"""One training step, sharded, and what it carries from step to step."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tml_jax import sharding
from tml_jax.model.interaction import InteractionModel, Params
from tml_jax.streams.micro_turn import MicroTurnInput, MicroTurnOutput
from tml_jax.train import loss as loss_lib
from tml_jax.train.config import ExperimentConfig
from tml_jax.train.optimizer import balance_experts, make_optimizer, optimizer_shardings

Batch = tuple[MicroTurnInput, MicroTurnOutput]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["step", "params", "average", "optimizer"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What training carries: the step, the weights, their running average, and the optimiser's state."""

    step: Any
    params: Params
    average: Params
    optimizer: Any


class Trainer:
    """The compiled training and evaluation steps of an experiment on a mesh."""

    def __init__(self, experiment: ExperimentConfig, mesh: Mesh) -> None:
        self.config, self.mesh = experiment.train, mesh
        self.num_tokens = experiment.data.window_tokens
        self.model = InteractionModel(experiment.model, jnp.dtype(experiment.train.dtype))
        self.tx = make_optimizer(self.model, experiment.train)
        replicated = NamedSharding(mesh, PartitionSpec())
        weights = sharding.shardings(self.model.axes, self.model.abstract, mesh)
        optimizer = optimizer_shardings(self.tx, self.model.abstract, weights, mesh)
        self.shardings = TrainState(replicated, weights, weights, optimizer)
        self._step = jax.jit(self._train_step, donate_argnums=0, out_shardings=(self.shardings, replicated))
        self._evaluate = jax.jit(self._evaluate_batch, out_shardings=replicated)

    def abstract_state(self) -> TrainState:
        """The state's shapes, dtypes and shardings, nothing allocated."""
        abstract = jax.eval_shape(self._init, 0)
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, self.shardings)

    def init(self) -> TrainState:
        """A fresh state, made where it will live."""
        with jax.set_mesh(self.mesh):
            if self.mesh.size == 1:  # one by one: a hundred random weights in one program take minutes to compile
                return jax.device_put(self._init(self.config.seed), self.shardings)
            return jax.jit(self._init, out_shardings=self.shardings)(self.config.seed)

    def _init(self, seed: Any) -> TrainState:
        params = self.model.init_params(seed)
        average = jax.tree.map(jnp.copy, params)
        return TrainState(jnp.zeros((), jnp.int32), params, average, self.tx.init(params))

    def rows(self) -> list[int]:
        """The conversations of a batch that this process's devices hold, in order."""
        size = self.config.batch_size
        cut = NamedSharding(self.mesh, sharding.partition_spec(("batch",), (size,), self.mesh))
        indices = cut.addressable_devices_indices_map((size,)).values()
        return sorted({row for (part,) in indices for row in range(*part.indices(size))})

    def place(self, batch: Batch) -> Batch:
        """Puts a batch on the mesh, its conversations cut over the batch axes; a process brings its `rows`."""

        def put(local: np.ndarray) -> jax.Array:
            shape = (self.config.batch_size, *local.shape[1:])
            axes = ("batch", *(None,) * (local.ndim - 1))
            cut = NamedSharding(self.mesh, sharding.partition_spec(axes, shape, self.mesh))
            return jax.make_array_from_process_local_data(cut, local, shape)

        return jax.tree.map(put, batch)

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, loss_lib.Metrics]:
        """One optimiser step; `state` is consumed."""
        with jax.set_mesh(self.mesh):
            return self._step(state, self.place(batch))

    def lower(self, state: TrainState, batch: Batch) -> jax.stages.Lowered:
        """The training step lowered for these arrays or ShapeDtypeStructs; nothing runs."""
        with jax.set_mesh(self.mesh):
            return self._step.lower(state, batch)

    def evaluate(self, params: Params, batch: Batch) -> loss_lib.Metrics:
        """The losses of a batch, nothing learnt; the same noise every time."""
        with jax.set_mesh(self.mesh):
            return self._evaluate(params, self.place(batch))

    def _loss(self, params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, loss_lib.LossOutput]:
        return loss_lib.loss(self.model, params, batch, self.config, self.num_tokens, key)

    def _train_step(self, state: TrainState, batch: Batch) -> tuple[TrainState, loss_lib.Metrics]:
        key = jax.random.fold_in(jax.random.key(self.config.seed), state.step)
        gradients, out = jax.grad(self._loss, has_aux=True)(state.params, batch, key)
        updates, optimizer = self.tx.update(gradients, state.optimizer, state.params)
        params = balance_experts(optax.apply_updates(state.params, updates), out.load, self.config.balance_rate)
        # A young average forgets its random beginning faster.
        decay = jnp.minimum(self.config.ema, (1.0 + state.step) / (10.0 + state.step))
        average = jax.tree.map(lambda a, p: a + (1 - decay).astype(a.dtype) * (p - a), state.average, params)
        metrics = out.metrics | {"gradient_norm": optax.global_norm(gradients)}
        return TrainState(state.step + 1, params, average, optimizer), metrics

    def _evaluate_batch(self, params: Params, batch: Batch) -> loss_lib.Metrics:
        return self._loss(params, batch, jax.random.key(0))[1].metrics
