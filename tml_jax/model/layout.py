"""Where the parts of whole conversations lie in their sequences of trunk tokens, and back.

A micro-turn has S slots: ``audio | patches | text || output``. Of each conversation's N S slots only the real ones
become tokens, in order (`Packing`). Nothing of the size of all slots times the width is ever made: audio, the packed
patches, text and the packed speech (`streams.packed`) are embedded where they are, and a `Move` carries each straight
to its tokens.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tml_jax import sharding
from tml_jax.streams.micro_turn import MicroTurnInput, MicroTurnOutput, StreamSpec


@dataclasses.dataclass(frozen=True)
class Packing:
    """Where the slots of ragged blocks lie once only the real ones are kept, in order.

    Attributes:
      order: int32 [B, L], the slot at each token position, 0 past the real ones. count: int32 [B], real tokens.
      where: int32 [B, S], the token position of each slot. real: bool [B, S].
    """

    order: Int[Array, "b l"]
    count: Int[Array, " b"]
    where: Int[Array, "b s"]
    real: Bool[Array, "b s"]

    @classmethod
    def of(cls, real: Bool[Array, "b s"], length: int) -> "Packing":
        """Packs the real ones of S slots into `length` token positions; no row may have more real slots than that."""
        where = jnp.cumsum(real, axis=1, dtype=jnp.int32) - 1
        kept = real & (where < length)
        # Not a sort: of 29,000 slots a TPU's compiler makes one in six minutes.
        slots = jnp.arange(real.shape[1], dtype=jnp.int32)
        order = jax.vmap(lambda to: jnp.zeros(length, jnp.int32).at[to].set(slots, mode="drop", unique_indices=True))(
            jnp.where(kept, where, length + slots)
        )
        return cls(order, jnp.sum(real, axis=1, dtype=jnp.int32), where, kept)

    @property
    def filled(self) -> Bool[Array, "b l"]:
        """Token positions that hold a real slot."""
        return jnp.arange(self.order.shape[1]) < self.count[:, None]

    def pack(self, x: Float[Array, "b s d"]) -> Float[Array, "b l d"]:
        """Slots -> tokens; zero past the last real one."""
        return Move(self.order, self.filled, self.where, self.real).there(x)


@dataclasses.dataclass(frozen=True)
class Move:
    """A partial one-to-one map between rows of two arrays: items [G, M] and tokens [G, T].

    Attributes:
      item: int32 [G, T], the item at each token. has: bool [G, T], whether there is one.
      token: int32 [G, M], the token of each item. real: bool [G, M], whether it has one.
      axes: logical axes of the rows of both.
    """

    item: Int[Array, "g t"]
    has: Bool[Array, "g t"]
    token: Int[Array, "g m"]
    real: Bool[Array, "g m"]
    axes: tuple[str | None, ...] = ("batch", "sequence")

    def there(self, x: Array) -> Array:
        """Items [B', M', ...] -> tokens [G, T, ...], zero where there is none."""
        x = x.reshape(*self.token.shape, *x.shape[2:])
        return _move(self.axes, x, self.item, self.has, self.token, self.real)

    def back(self, x: Array) -> Array:
        """Tokens [B, L, ...] -> items [G, M, ...], zero where an item has no token."""
        x = x.reshape(*self.item.shape, *x.shape[2:])
        return _move(self.axes, x, self.token, self.real, self.item, self.has)


def pack_axes(packs: int, rows: int) -> tuple[str | None, ...]:
    """Logical axes of packed items [G, M]: along time only where each pack is of one conversation."""
    return ("batch", "sequence" if packs == rows else None)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _move(axes: tuple[str | None, ...], x: Array, index: Array, keep: Array, back: Array, back_keep: Array) -> Array:
    """Rows of x at `index` where `keep`, else zero. Its gradient is the same movement back: a gather, not a scatter.

    Where they are cut along time, each device gets the rows of all to find its own among them.
    """
    cut, rest = axes[1] is not None and sharding.sequence_axes(index.shape), (None,) * (x.ndim - 2)
    if cut:
        x = sharding.constrain(x, (axes[0], None, *rest))
        index, keep = (sharding.constrain(a, axes) for a in (index, keep))
    lead = (*index.shape, *(1,) * (x.ndim - 2))
    moved = jnp.take_along_axis(x, jnp.clip(index, 0, x.shape[1] - 1).reshape(lead), axis=1)
    moved = jnp.where(keep.reshape(lead), moved, 0)
    return sharding.constrain(moved, (*axes, *rest)) if cut else moved


def _move_fwd(axes: tuple[str | None, ...], x: Array, *maps: Array) -> tuple[Array, tuple[Array, ...]]:
    return _move(axes, x, *maps), maps


def _move_bwd(axes: tuple[str | None, ...], maps: tuple[Array, ...], grad: Array) -> tuple[Array | None, ...]:
    index, keep, back, back_keep = maps
    return _move(axes, grad, back, back_keep, index, keep), None, None, None, None


_move.defvjp(_move_fwd, _move_bwd)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The tokens of conversations [B, N], `L` a row, and where everything is in them.

    Attributes:
      valid: bool [B, L], tokens that are real. turn: int32 [B, L], of the micro-turn that each belongs to.
      first: bool [B, L], the first token of its micro-turn, which carries the clock.
      audio: items [B, N audio_tokens]. text: [B, N max_text]. outputs: [B, N max_output]. patches: [G, P].
      speech: [G, S], the output tokens that have a mel patch. spoken: int32 [G, S], their slots among the pack's.
    """

    valid: Bool[Array, "b l"]
    turn: Int[Array, "b l"]
    first: Bool[Array, "b l"]
    audio: Move
    patches: Move
    text: Move
    outputs: Move
    speech: Move
    spoken: Int[Array, "g s"]

    @classmethod
    def of(cls, spec: StreamSpec, inputs: MicroTurnInput, outputs: MicroTurnOutput, length: int) -> "Layout":
        """Lays packed conversations out in `length` tokens a row; no row may hold more."""
        (b, n), active = inputs.active.shape, inputs.active[..., None]
        widths = (spec.audio_tokens, spec.max_patches, spec.max_text, spec.max_output)
        counts = (
            jnp.where(inputs.has_audio, spec.audio_tokens, 0),
            inputs.num_patches,
            inputs.num_text,
            outputs.num_tokens,
        )
        real = [(jnp.arange(w) < c[..., None]) & active for w, c in zip(widths, counts, strict=True)]
        slots = jnp.concatenate(real, axis=2)
        packing = Packing.of(slots.reshape(b, -1), length)
        turn, slot = packing.order // slots.shape[2], packing.order % slots.shape[2]
        starts = [sum(widths[:i]) for i in range(4)]

        def move(start: int, mine: Bool[Array, "b n w"]) -> Move:
            width = mine.shape[2]
            at = turn * width + slot - start
            has = packing.filled & (slot >= start) & (slot < start + width)
            has &= jnp.take_along_axis(mine.reshape(b, -1), jnp.clip(at, 0, n * width - 1), axis=1)
            where = packing.where.reshape(b, n, -1)[:, :, start : start + width].reshape(b, -1)
            kept = packing.real.reshape(b, n, -1)[:, :, start : start + width].reshape(b, -1)
            return Move(at, has, where, mine.reshape(b, -1) & kept)

        audio, patches, text, written = (move(s, r) for s, r in zip(starts, real, strict=True))
        speech = move(starts[3], real[3] & outputs.speaking[..., None])
        speech, spoken = _packed(speech, outputs.mel.shape)
        clock = jnp.cumsum(slots[..., : starts[3]], axis=2) == 1
        clock = jnp.concatenate([clock & slots[..., : starts[3]], jnp.zeros_like(real[3])], axis=2).reshape(b, -1)
        return cls(
            valid=packing.filled,
            turn=jnp.take_along_axis(inputs.turn, turn, axis=1),
            first=packing.filled & jnp.take_along_axis(clock, packing.order, axis=1),
            audio=audio,
            patches=_packed(patches, inputs.patches.shape)[0],
            text=text,
            outputs=written,
            speech=speech,
            spoken=spoken,
        )


def _packed(dense: Move, shape: tuple[int, ...]) -> tuple[Move, Int[Array, "g p"]]:
    """The move of items that are packed to [G, P], and the slot of each; `dense` has one item a slot, [B, N w]."""
    packs, size = shape[:2]
    rows, length = dense.item.shape[0] // packs, dense.item.shape[1]
    of_slot = Packing.of(dense.real.reshape(packs, -1), size)
    at = jnp.clip(dense.item, 0, dense.token.shape[1] - 1)
    item = jnp.take_along_axis(of_slot.where.reshape(dense.token.shape), at, axis=1)
    shift = jnp.arange(rows)[:, None] * length
    token = (dense.token.reshape(packs, rows, -1) + shift).reshape(packs, -1)
    fits = dense.has & (item < size)
    move = Move(
        item.reshape(packs, -1),
        fits.reshape(packs, -1),
        jnp.take_along_axis(token, of_slot.order, axis=1),
        of_slot.filled,
        pack_axes(packs, len(dense.item)),
    )
    return move, of_slot.order
