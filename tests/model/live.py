"""Runs live conversations and keeps the logits that decided."""

import jax
import jax.numpy as jnp
import numpy as np

from tml_jax.model.net import InteractionNet
from tml_jax.model.step import micro_turn_step


def recording_step(model):
    """The step, returning the logits that decided as well: [slots, output tokens, vocabulary]."""

    def step(params, state, inputs, rng):
        seen, original = [], InteractionNet.logits

        def logits(self, hidden):
            seen.append(original(self, hidden))
            return seen[-1]

        InteractionNet.logits = logits
        try:
            state, out = micro_turn_step(model.net(params), model.control, state, inputs, rng)
        finally:
            InteractionNet.logits = original
        return state, (out, jnp.stack(seen, axis=1))

    return jax.jit(step)


def stream(model, params, inputs, keys):
    step, state = recording_step(model), model.init_state(inputs.active.shape[0])
    outs = []
    for turn in range(inputs.active.shape[1]):
        state, out = step(params, state, jax.tree.map(lambda x, t=turn: x[:, t], inputs), keys)
        outs.append(jax.device_get(out))
    return jax.tree.map(lambda *x: np.stack(x, axis=1), *outs), state
