"""`micro_turn_step`: what a live model does with 200 ms. Pure; jitted once; batched over session slots.

One forward appends ``[last output token | audio | patches | text]`` to each conversation; its last hidden state
decides. Further output tokens, where the spec has them, are fed back one at a time. Slots that are not active,
or whose block has closed, append nothing: their state keeps its bits.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

from tml_jax.model.net import InteractionNet, Packing, session_keys
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
    last = jnp.maximum(packing.count - 1, 0)
    hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]

    writing, written = inputs.active, []
    previous = jnp.where(state.last_speaking[:, None, None], state.last_mel, 0)
    for slot in range(net.max_output):
        if slot:
            x = net.embed_outputs(state.last_token, state.last_mel, state.last_speaking)[:, None]
            hidden, state = net.transformer.stream(x, state, writing.astype(jnp.int32))
            hidden = hidden[:, 0]
        one = _write(net, control, hidden, previous, session_keys(rng, inputs.turn, slot), writing)
        written.append(one)
        previous, state = one.mel, _remember(state, one)
        writing = writing & one.speaking
    return state, _collect(written)


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
        heard = jnp.argmax(net.heard_logits(hidden), axis=-1).astype(jnp.int32)
        closes = (token == control.listen) | (token == control.delegate) | (token == control.end)
        speaking = writing & ~closes
    with jax.named_scope("speak"):
        mel = net.draw_mel(hidden, token, previous, keys)
        mel = jnp.where(speaking[:, None, None], mel, 0)
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


def _collect(written: list[_Written]) -> MicroTurnOutput:
    return MicroTurnOutput(
        tokens=jnp.stack([one.token for one in written], axis=1),
        num_tokens=sum(one.real.astype(jnp.int32) for one in written),
        speaking=written[0].speaking,
        mel=jnp.stack([one.mel for one in written], axis=1),
        heard=jnp.stack([one.heard for one in written], axis=1),
    )
