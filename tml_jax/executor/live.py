"""The programs of live conversations: a model's micro-turn for a fixed number of sessions, on an executor's mesh.

A micro-turn is compiled for a ladder of blocks, and pays for what arrived: most have sound alone, and are a twentieth
of the longest. Which rung runs is chosen by what is there in any session. With `NumericsConfig` a session's bits don't
depend on it; without, its sums are taken in another order, as a compiler likes them for so many rows.

On the devices of several processes each program runs on all of them. Either all are given the same inputs, or the
executor's `Lockstep` has one of them tell the others.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
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


# What a program is given: a micro-turn and keys by the rung's number, or nothing and a mask.
_Given = tuple[MicroTurnInput | None, np.ndarray]
_RESET, _ROW = 254, 253

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
    """

    def __init__(self, executor: Executor, model: StepModel, spec: StreamSpec, slots: int) -> None:
        self.executor, self.spec, self.slots, self.rungs = executor, spec, slots, ladder(spec)
        abstract = jax.eval_shape(lambda: model.init_state(slots))
        self._abstract_state = executor.abstract(abstract, model.state_axes(slots))
        state = jax.tree.map(lambda x: x.sharding, self._abstract_state)
        self._slot = slot = executor.sharding(("slot",), (slots,))
        self.init = executor.program(lambda: model.init_state(slots), out_shardings=state)
        self._reset = executor.program(model.reset, donate=0, in_shardings=(state, slot), out_shardings=state)
        axes = model.state_axes(slots)
        self._slot_axis = jax.tree.map(lambda x, a: tuple(a).index("slot"), abstract, axes)
        everywhere = executor.sharding()
        self._row = executor.program(self._row_of, in_shardings=(state, slot), out_shardings=everywhere)
        self._with_row = executor.program(
            self._row_into, donate=0, in_shardings=(state, slot, everywhere), out_shardings=state
        )
        self._rows = _rows(slot, slots)
        outputs = slot if len(self._rows) == 1 else executor.sharding()  # all of them on every host
        self._step = executor.program(
            model.step, donate=1, in_shardings=(None, state, slot, slot), out_shardings=(state, outputs)
        )

    def reset(self, state: Any, mask: np.ndarray) -> Any:
        """(state, mask [slots]) -> state, emptied where the mask is True."""
        return self._together(_RESET, (None, mask), lambda _, mask: self._reset(state, mask))

    def row(self, state: Any, slot: int) -> Any:
        """(state, slot) -> that slot's conversation: a tree like the state without its slot axis, of new arrays."""
        mask = np.arange(self.slots) == slot
        return self._together(_ROW, (None, mask), lambda _, mask: self._row(state, mask))

    def with_row(self, state: Any, slot: int, row: Any) -> Any:
        """(state, slot, row on the host) -> state, with that conversation in that slot. On one process only."""
        assert self.executor.lockstep is None
        mask = np.arange(self.slots) == slot
        return self._with_row(state, mask, row)

    @property
    def moves_rows(self) -> bool:
        """Whether conversations can be put into a slot: where one process has all devices."""
        return self.executor.lockstep is None

    def row_leaves(self, row: Any) -> list[np.ndarray]:
        """A row as arrays on the host."""
        return [np.asarray(leaf) for leaf in jax.device_get(jax.tree.leaves(row))]

    @property
    def row_layout(self) -> dict[str, str]:
        """A row's arrays, in order: path in the state -> such as "float32[8, 64]"."""
        like = jax.tree_util.tree_leaves_with_path(self._abstract_state)
        axes = jax.tree.leaves(self._slot_axis)
        return {
            jax.tree_util.keystr(path): _form(x.dtype, x.shape[:axis] + x.shape[axis + 1 :])
            for (path, x), axis in zip(like, axes, strict=True)
        }

    def row_of_leaves(self, leaves: Sequence[np.ndarray]) -> Any:
        """A row of these arrays, as `row_leaves` gave them, which are as `row_layout` says."""
        assert [_form(leaf.dtype, leaf.shape) for leaf in leaves] == list(self.row_layout.values())
        return jax.tree.unflatten(jax.tree.structure(self._abstract_state), leaves)

    def _row_of(self, state: Any, mask: Any) -> Any:
        index = jnp.argmax(mask)
        return jax.tree.map(lambda x, axis: jnp.take(x, index, axis=axis), state, self._slot_axis)

    def _row_into(self, state: Any, mask: Any, row: Any) -> Any:
        index = jnp.argmax(mask)
        return jax.tree.map(
            lambda x, axis, one: jax.lax.dynamic_update_index_in_dim(x, one, index, axis), state, self._slot_axis, row
        )

    def rung_of(self, inputs: MicroTurnInput) -> int:
        """Number of the shortest block with room for these."""
        most = int(np.max(inputs.num_patches)), int(np.max(inputs.num_text))
        return next(i for i, rung in enumerate(self.rungs) if rung.holds(*most))

    def step(
        self, params: Any, state: Any, inputs: MicroTurnInput, keys: np.ndarray, rung: int | None = None
    ) -> tuple[Any, MicroTurnOutput]:
        """(params, state, inputs [slots], keys uint32 [slots, 2]) -> (state, outputs [slots]).

        It is stepped in the shortest block with room for the inputs, or in that of `rung`.
        """
        number = self.rung_of(inputs) if rung is None else rung
        given = self.rungs[number].cut(inputs), keys
        return self._together(number, given, lambda *given: self._step(params, state, *given))

    def warm_up(self, params: Any) -> Any:
        """Compiles everything that will ever run, on every process of a pod; an empty state."""
        _, everyone = self._placed((None, np.ones(self.slots, bool)))
        state = self.init()
        for _ in range(2):  # twice: a program's own outputs are inputs of the next call
            state = self._reset(state, everyone)
            for number in range(len(self.rungs)):
                state, outputs = self._step(params, state, *self._placed(self._empty(number)))
                jax.device_get(outputs)
            row = self._row(state, everyone)
            if self.moves_rows:
                state = self._with_row(state, everyone, jax.device_get(row))
        state = self._reset(state, everyone)
        if self.executor.lockstep is not None:
            self.executor.lockstep.rest()
        return state

    def follow(self, params: Any, state: Any) -> None:
        """Runs what the pod's leader runs, with what it was given for the sessions that lie here, until it ends."""
        lockstep, rows = self.executor.lockstep, self._rows[jax.process_index()]
        assert lockstep is not None

        def run(number: int, message: bytearray) -> None:
            nonlocal state
            given = self._empty(number)
            _unpack(given, rows, message)
            if number == _ROW:
                jax.block_until_ready(self._row(state, self._placed(given)[1]))
            elif number == _RESET:
                state = jax.block_until_ready(self._reset(state, self._placed(given)[1]))
            else:
                state, _ = jax.block_until_ready(self._step(params, state, *self._placed(given)))

        lockstep.follow(run)

    def _empty(self, number: int) -> _Given:
        """What a program is given, where nothing is."""
        if number in (_RESET, _ROW):
            return None, np.zeros(self.slots, bool)
        inputs = empty_input(self.spec, (self.slots,))
        return self.rungs[number].cut(inputs), np.zeros((self.slots, 2), np.uint32)

    def _placed(self, given: _Given) -> Any:
        """It, as programs take it: on a pod each process puts what its devices have there."""
        if len(self._rows) == 1:
            return given
        return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, self._slot, x.__getitem__), given)

    def _together(self, number: int, given: _Given, run: Callable[..., Any]) -> Any:
        """Runs a program, which the others run where this process leads a pod."""
        lockstep = self.executor.lockstep
        if lockstep is None:
            return run(*self._placed(given))
        with lockstep.telling(number, lambda process: _pack(given, self._rows[process])):
            return jax.block_until_ready(run(*self._placed(given)))

    def lower_step(self, params: Any, rung: Rung) -> jax.stages.Lowered:
        """`step` lowered for weights given as ShapeDtypeStructs, and a block; nothing runs."""

        def struct(x: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._slot)

        inputs = jax.tree.map(struct, rung.cut(empty_input(self.spec, (self.slots,))))
        keys = struct(np.zeros((self.slots, 2), np.uint32))
        return self._step.lower(params, self._abstract_state, inputs, keys)


def _form(dtype: Any, shape: Sequence[int]) -> str:
    return f"{np.dtype(dtype).name}{list(shape)}"


def _rows(sharding: jax.sharding.Sharding, slots: int) -> dict[int, np.ndarray]:
    """The slots that lie with each process."""
    rows: dict[int, set[int]] = collections.defaultdict(set)
    device: Any
    for device, (part,) in sharding.devices_indices_map((slots,)).items():
        rows[device.process_index] |= set(range(*part.indices(slots)))
    return {process: np.array(sorted(mine)) for process, mine in rows.items()}


def _pack(given: _Given, rows: np.ndarray) -> list[np.ndarray]:
    """What was given for these slots, of the patches the real ones."""
    inputs, _ = given
    parts = [x[rows] for x in _small(given)]
    if inputs is not None:
        parts.append(inputs.patches[_patches(inputs, rows)])
    return parts


def _unpack(given: _Given, rows: np.ndarray, message: bytearray) -> None:
    """Writes it into these slots of another's."""
    inputs, _ = given
    at = 0

    def take(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        nonlocal at
        part = np.frombuffer(message, dtype, math.prod(shape), at).reshape(shape)
        at += part.nbytes
        return part

    for x in _small(given):
        x[rows] = take((len(rows), *x.shape[1:]), x.dtype)
    if inputs is not None:
        real = _patches(inputs, rows)
        inputs.patches[real] = take((len(real[0]), *inputs.patches.shape[2:]), inputs.patches.dtype)


def _small(given: _Given) -> list[np.ndarray]:
    """The arrays but the patches, which may be megabytes a slot."""
    inputs, each = given
    return jax.tree.leaves((inputs and dataclasses.replace(inputs, patches=None), each))


def _patches(inputs: MicroTurnInput, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the real patches of these slots are: slots, and places."""
    row, place = np.nonzero(np.arange(inputs.patches.shape[1]) < inputs.num_patches[rows][:, None])
    return rows[row], place
