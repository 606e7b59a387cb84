"""The programs of live conversations: a model's micro-turn for a fixed number of sessions, on an executor's mesh."""

from typing import Any, Protocol

import jax
import numpy as np

from tml_jax.executor.executor import Executor
from tml_jax.streams.micro_turn import MicroTurnInput, MicroTurnOutput, StreamSpec, empty_input


class StepModel(Protocol):
    """The part of `InteractionModel` that live conversations need; all but `state_axes` are pure functions."""

    def init_state(self, num_slots: int) -> Any:
        """Empty conversations."""

    def state_axes(self, num_slots: int) -> Any:
        """Logical axes of the state's arrays, a like tree."""

    def reset(self, state: Any, mask: Any) -> Any:
        """Empties the slots where `mask` is True."""

    def step(self, params: Any, state: Any, inputs: MicroTurnInput, rng: Any) -> tuple[Any, MicroTurnOutput]:
        """One micro-turn of every slot."""


class LiveModel:
    """A model's programs for `slots` sessions at once. States are consumed by the calls that take them.

    Attributes:
      init: () -> state, of empty conversations.
      reset: (state, mask [slots]) -> state, emptied where the mask is True.
      step: (params, state, inputs [slots], keys uint32 [slots, 2]) -> (state, outputs [slots]).
    """

    def __init__(self, executor: Executor, model: StepModel, spec: StreamSpec, slots: int) -> None:
        self.executor, self.spec, self.slots = executor, spec, slots
        abstract = jax.eval_shape(lambda: model.init_state(slots))
        self._abstract_state = executor.abstract(abstract, model.state_axes(slots))
        state = jax.tree.map(lambda x: x.sharding, self._abstract_state)
        self._slot = slot = executor.sharding(("slot",), (slots,))
        self.init = executor.program(lambda: model.init_state(slots), out_shardings=state)
        self.reset = executor.program(model.reset, donate=0, in_shardings=(state, slot), out_shardings=state)
        self.step = executor.program(
            model.step, donate=1, in_shardings=(None, state, slot, slot), out_shardings=(state, slot)
        )

    def warm_up(self, params: Any) -> Any:
        """Compiles everything that will ever run; an empty state."""
        everyone, keys = np.ones(self.slots, bool), np.zeros((self.slots, 2), np.uint32)
        state = self.init()
        for _ in range(2):  # twice: a program's own outputs are inputs of the next call
            state = self.reset(state, everyone)
            state, outputs = self.step(params, state, empty_input(self.spec, (self.slots,)), keys)
            jax.device_get(outputs)
        return self.reset(state, everyone)

    def lower_step(self, params: Any) -> jax.stages.Lowered:
        """`step` lowered for weights given as ShapeDtypeStructs; nothing runs."""

        def struct(x: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._slot)

        inputs = jax.tree.map(struct, empty_input(self.spec, (self.slots,)))
        keys = struct(np.zeros((self.slots, 2), np.uint32))
        return self.step.lower(params, self._abstract_state, inputs, keys)
