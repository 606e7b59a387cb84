"""The programs of live conversations: a model's micro-turn for a fixed number of sessions, on an executor's mesh.

A micro-turn is compiled for a ladder of blocks, and pays for what arrived: most have sound alone, and are a twentieth
of the longest. Which rung runs is chosen by what is there in any session. With `NumericsConfig` a session's bits don't
depend on it; without, its sums are taken in another order, as a compiler likes them for so many rows.
"""

import dataclasses
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


# Trunk tokens of a session that a program of its own must save.
_WORTH_A_PROGRAM = 8


@dataclasses.dataclass(frozen=True)
class Rung:
    """A block with room for so many patches and text tokens beside its sound."""

    patches: int
    text: int

    @property
    def name(self) -> str:
        """Such as "sound", "sound+picture"."""
        return "sound" + "+picture" * (self.patches > 0) + "+text" * (self.text > 0)

    def holds(self, patches: int, text: int) -> bool:
        """Whether there is room for these."""
        return patches <= self.patches and text <= self.text

    def cut(self, inputs: MicroTurnInput) -> MicroTurnInput:
        """Inputs [slots] that fit, without the room that they don't need."""
        patches, text = inputs.patches[:, : self.patches], inputs.text[:, : self.text]
        return dataclasses.replace(inputs, patches=patches, text=text)


def ladder(spec: StreamSpec) -> tuple[Rung, ...]:
    """The blocks that are compiled, the shortest first; the last has room for everything."""
    kept: list[Rung] = []
    sizes = {(patches, text) for patches in (0, spec.max_patches) for text in (0, spec.max_text)}
    for patches, text in sorted(sizes, key=sum, reverse=True):
        longer = (rung for rung in kept if rung.holds(patches, text))
        if all(rung.patches + rung.text - patches - text >= _WORTH_A_PROGRAM for rung in longer):
            kept.append(Rung(patches, text))
    return tuple(reversed(kept))


class LiveModel:
    """A model's programs for `slots` sessions at once. States are consumed by the calls that take them.

    Attributes:
      rungs: the blocks that `step` is compiled for.
      init: () -> state, of empty conversations.
      reset: (state, mask [slots]) -> state, emptied where the mask is True.
    """

    def __init__(self, executor: Executor, model: StepModel, spec: StreamSpec, slots: int) -> None:
        self.executor, self.spec, self.slots, self.rungs = executor, spec, slots, ladder(spec)
        abstract = jax.eval_shape(lambda: model.init_state(slots))
        self._abstract_state = executor.abstract(abstract, model.state_axes(slots))
        state = jax.tree.map(lambda x: x.sharding, self._abstract_state)
        self._slot = slot = executor.sharding(("slot",), (slots,))
        self.init = executor.program(lambda: model.init_state(slots), out_shardings=state)
        self.reset = executor.program(model.reset, donate=0, in_shardings=(state, slot), out_shardings=state)
        self._step = executor.program(
            model.step, donate=1, in_shardings=(None, state, slot, slot), out_shardings=(state, slot)
        )

    def step(self, params: Any, state: Any, inputs: MicroTurnInput, keys: Any) -> tuple[Any, MicroTurnOutput]:
        """(params, state, inputs [slots], keys uint32 [slots, 2]) -> (state, outputs [slots])."""
        most = int(np.max(inputs.num_patches)), int(np.max(inputs.num_text))
        rung = next(rung for rung in self.rungs if rung.holds(*most))
        return self._step(params, state, rung.cut(inputs), keys)

    def warm_up(self, params: Any) -> Any:
        """Compiles everything that will ever run; an empty state."""
        everyone, keys = np.ones(self.slots, bool), np.zeros((self.slots, 2), np.uint32)
        state = self.init()
        for _ in range(2):  # twice: a program's own outputs are inputs of the next call
            state = self.reset(state, everyone)
            for rung in self.rungs:
                state, outputs = self._step(params, state, rung.cut(empty_input(self.spec, (self.slots,))), keys)
                jax.device_get(outputs)
        return self.reset(state, everyone)

    def lower_step(self, params: Any, rung: Rung) -> jax.stages.Lowered:
        """`step` lowered for weights given as ShapeDtypeStructs, and a block; nothing runs."""

        def struct(x: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._slot)

        inputs = jax.tree.map(struct, rung.cut(empty_input(self.spec, (self.slots,))))
        keys = struct(np.zeros((self.slots, 2), np.uint32))
        return self._step.lower(params, self._abstract_state, inputs, keys)
