"""Runs live conversations and keeps the logits that decided."""

import jax
import numpy as np

from tml_jax.model.net import InteractionNet
from tml_jax.model.step import micro_turn_step


def recording_step(model):
    """The step, returning the logits that decided as well: [slots, output tokens, vocabulary], zero where none did."""
    seen = []

    @jax.jit
    def step(params, state, inputs, rng):
        original = InteractionNet.logits

        def logits(self, hidden):
            found = original(self, hidden)
            jax.debug.callback(lambda x: seen.append(np.array(x)), found, ordered=True)
            return found

        InteractionNet.logits = logits
        try:
            return micro_turn_step(model.net(params), model.control, state, inputs, rng)
        finally:
            InteractionNet.logits = original

    def run(params, state, inputs, rng):
        seen.clear()
        state, out = step(params, state, inputs, rng)
        jax.effects_barrier()
        none = [np.zeros_like(seen[0])] * (model.config.stream.max_output - len(seen))
        real = np.arange(len(seen + none)) < np.asarray(out.num_tokens)[:, None]
        return state, (out, np.stack(seen + none, axis=1) * real[..., None])

    return run


def stream(model, params, inputs, keys):
    step, state = recording_step(model), model.init_state(inputs.active.shape[0])
    outs = []
    for turn in range(inputs.active.shape[1]):
        state, out = step(params, state, jax.tree.map(lambda x, t=turn: x[:, t], inputs), keys)
        outs.append(jax.device_get(out))
    return jax.tree.map(lambda *x: np.stack(x, axis=1), *outs), state
