"""`micro_turn_step`: what a live model does with 200 ms. Pure; jitted once; batched over session slots.

The block ``[last output token | audio | patches | text]`` is appended to each conversation; its last hidden state
decides. Further output tokens, where the spec has them, are fed back one at a time. Slots that are not active,
or whose block has closed, append nothing: their state keeps its bits.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

from tml_jax.model.layout import Packing
from tml_jax.model.net import InteractionNet, session_keys
from tml_jax.model.state import StreamState
from tml_jax.streams.micro_turn import MicroTurnInput, MicroTurnOutput
from tml_jax.streams.text import ControlTokens


@dataclasses.dataclass(frozen=True)
class _Written:
    """What the model wrote in one output slot of each session."""

    real: Array
    token: Array
    mel: Array
    speaking: Array
    heard: Array


NAMED_LOGIT = 0.85
"""A user's word is named from 3 in 10 on: for a transcript one too many is no worse than one that is missing."""

_Carry = tuple[Array, Array, StreamState, MicroTurnOutput]
"""The output slot that is next, the sessions that go on writing, the conversations, and what is written so far."""


def micro_turn_step(
    net: InteractionNet, control: ControlTokens, state: StreamState, inputs: MicroTurnInput, rng: UInt32[Array, "b 2"]
) -> tuple[StreamState, MicroTurnOutput]:
    """One micro-turn of every slot.

    Args:
      net: the weights. control: ids of the control tokens.
      state: the B conversations so far.
      inputs: what arrived, leading axis [B].
      rng: one raw key a session, constant over its life; the noise of a turn depends on (key, turn) alone.

    Returns:
      The conversations with this micro-turn appended, and what the model wrote, leading axis [B].
    """
    with jax.named_scope("embed"):
        x, real = net.embed_inputs(inputs)
        last = net.embed_outputs(state.last_token, state.last_mel, state.last_speaking)
        x = jnp.concatenate([last[:, None], x], axis=1)
        real = jnp.concatenate([(state.has_last & inputs.active)[:, None], real], axis=1)
        packing = Packing.of(real, x.shape[1])
    hidden, state = net.transformer.stream(packing.pack(x), state, packing.count)
    hidden = jnp.take_along_axis(hidden, jnp.maximum(packing.count - 1, 0)[:, None, None], axis=1)[:, 0]

    previous = jnp.where(state.last_speaking[:, None, None], state.last_mel, 0)
    first = _write(net, control, hidden, previous, session_keys(rng, inputs.turn, 0), inputs.active)
    state, outputs = _remember(state, first), _begin(first, net.max_output)

    def further(carry: _Carry) -> _Carry:
        slot, writing, state, outputs = carry
        x = net.embed_outputs(state.last_token, state.last_mel, state.last_speaking)[:, None]
        hidden, state = net.transformer.stream(x, state, writing.astype(jnp.int32))
        previous = jax.lax.dynamic_index_in_dim(outputs.mel, slot - 1, axis=1, keepdims=False)
        one = _write(net, control, hidden[:, 0], previous, session_keys(rng, inputs.turn, slot), writing)
        return slot + 1, writing & one.speaking, _remember(state, one), _put(outputs, one, slot)

    def wanted(carry: _Carry) -> Array:
        slot, writing, *_ = carry
        return (slot < net.max_output) & jnp.any(writing)

    if net.max_output > 1:  # while somebody speaks: most of the time nobody does
        one = jnp.ones((), jnp.int32)
        _, _, state, outputs = jax.lax.while_loop(wanted, further, (one, first.speaking, state, outputs))
    return state, outputs


def _write(
    net: InteractionNet,
    control: ControlTokens,
    hidden: Float[Array, "b d"],
    previous: Array,
    keys: Array,
    writing: Array,
) -> _Written:
    """Decides the token, then draws the mel patch that goes with it."""
    with jax.named_scope("decide"):
        token = jnp.argmax(net.logits(hidden), axis=-1).astype(jnp.int32)
        heard_logits = net.heard_logits(hidden)  # its vocabulary may be cut: no scatter into it
        named = jnp.where(jnp.arange(heard_logits.shape[-1]) == control.nothing, NAMED_LOGIT, 0.0)
        heard = jnp.argmax(heard_logits - named, axis=-1).astype(jnp.int32)
        closes = (token == control.listen) | (token == control.delegate) | (token == control.end)
        speaking = writing & ~closes
    with jax.named_scope("speak"):
        silence = jnp.zeros_like(previous)
        mel = jax.lax.cond(  # most of the time nobody speaks
            jnp.any(speaking), lambda: net.draw_mel(hidden, token, previous, keys), lambda: silence
        )
        mel = jnp.where(speaking[:, None, None], mel, silence)
    return _Written(writing, jnp.where(writing, token, 0), mel, speaking, jnp.where(writing, heard, 0))


def _remember(state: StreamState, one: _Written) -> StreamState:
    """The last output token waits in the state until the next block."""

    def keep(new: Array, old: Array) -> Array:
        return jnp.where(one.real.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return dataclasses.replace(
        state,
        last_token=keep(one.token, state.last_token),
        last_mel=keep(one.mel, state.last_mel),
        last_speaking=keep(one.speaking, state.last_speaking),
        has_last=state.has_last | one.real,
    )


def _begin(first: _Written, slots: int) -> MicroTurnOutput:
    """What was written in the first output slot, with room for `slots`."""

    def room(x: Array) -> Array:
        return jnp.pad(x[:, None], ((0, 0), (0, slots - 1), *((0, 0),) * (x.ndim - 1)))

    return MicroTurnOutput(
        tokens=room(first.token),
        num_tokens=first.real.astype(jnp.int32),
        speaking=first.speaking,
        mel=room(first.mel),
        heard=room(first.heard),
    )


def _put(outputs: MicroTurnOutput, one: _Written, slot: Array) -> MicroTurnOutput:
    """The outputs with what was written in a further slot."""

    def put(x: Array, new: Array) -> Array:
        return jax.lax.dynamic_update_index_in_dim(x, new, slot, axis=1)

    return dataclasses.replace(
        outputs,
        tokens=put(outputs.tokens, one.token),
        num_tokens=outputs.num_tokens + one.real,
        mel=put(outputs.mel, one.mel),
        heard=put(outputs.heard, one.heard),
    )
