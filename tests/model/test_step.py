"""How many output tokens a session writes in a micro-turn: each until its own block closes."""

import types

import jax
import jax.numpy as jnp
import numpy as np

from tests.model import tiny
from tml_jax.model import step as step_module
from tml_jax.model.interaction import InteractionModel
from tml_jax.streams.micro_turn import empty_input


def test_a_block_that_has_closed_writes_no_more_whatever_its_neighbours_do(monkeypatch):
    """The decisions of each session and output slot are given; the last session takes no step."""
    model = InteractionModel(tiny.config(max_output=5, layer_types=("hybrid",), mlp_layer_types=("dense",)))
    control = model.control
    end, listen = control.end, control.listen
    decided = np.array([[5, 6, 7, 8, 9], [5, 6, end, 8, 9], [listen, 6, 7, 8, 9], [5, 6, 7, 8, 9]], np.int32)
    write = step_module._write

    def slots(keys, turn, slot):
        return jnp.full(len(turn), slot)

    def given(net, control, hidden, previous, slot, writing):
        one = write(net, control, hidden, previous, jnp.zeros((len(slot), 2), jnp.uint32), writing)
        token = jnp.take_along_axis(jnp.asarray(decided), slot[:, None], axis=1)[:, 0]
        speaking = writing & (token < control.listen)
        mel = jnp.where(speaking[:, None, None], token[:, None, None].astype(jnp.float32), jnp.zeros_like(one.mel))
        return step_module._Written(writing, jnp.where(writing, token, 0), mel, speaking, one.heard)

    monkeypatch.setattr(step_module, "session_keys", slots)
    monkeypatch.setattr(step_module, "_write", given)
    inputs = empty_input(model.config.stream, (4,))
    inputs.active[:3] = inputs.has_audio[:3] = True
    step = jax.jit(model.step)
    state, out = step(tiny.random_params(model), model.init_state(4), inputs, np.zeros((4, 2), np.uint32))
    assert out.num_tokens.tolist() == [5, 3, 1, 0]
    assert out.tokens.tolist() == [[5, 6, 7, 8, 9], [5, 6, end, 0, 0], [listen, 0, 0, 0, 0], [0] * 5]
    assert out.mel.max(axis=(2, 3)).tolist() == [[5, 6, 7, 8, 9], [5, 6, 0, 0, 0], [0] * 5, [0] * 5]
    assert out.speaking.tolist() == [True, True, False, False]
    # The last token waits for the next block; the tokens before it are in the caches.
    assert state.last_token.tolist() == [9, end, listen, 0]
    assert (state.length - state.length[2]).tolist()[:3] == [4, 2, 0] and state.length[3] == 0


def test_a_word_of_the_user_is_named_from_three_in_ten_on():
    """Where it is that word or none; what is said has no such bias."""
    control = InteractionModel(tiny.config()).control
    word, logits = 5, np.full((3, control.stop), -20.0, np.float32)
    logits[:, control.nothing] = 0.0
    logits[:, word] = np.log(np.array([0.25, 0.32, 0.6]) / np.array([0.75, 0.68, 0.4]))
    net = types.SimpleNamespace(
        logits=lambda hidden: jnp.asarray(logits),
        heard_logits=lambda hidden: jnp.asarray(logits),
        draw_mel=lambda hidden, token, previous, keys: previous,
    )
    one = step_module._write(net, control, jnp.zeros((3, 4)), jnp.zeros((3, 2, 4)), None, jnp.ones(3, bool))
    assert one.heard.tolist() == [control.nothing, word, word]
    assert one.token.tolist() == [control.nothing, control.nothing, word]
