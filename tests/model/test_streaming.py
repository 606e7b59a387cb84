"""The live step equals the offline forward, slot by slot, and sessions know nothing of each other."""

import jax
import numpy as np
import pytest

from tests.model import tiny
from tests.model.live import stream
from tml_jax.model.interaction import InteractionModel
from tml_jax.model.state import block_size, cache_shape
from tml_jax.model.step import NAMED_LOGIT
from tml_jax.streams.micro_turn import MicroTurnOutput

TURNS = 300


@pytest.fixture(scope="module", params=[1, 2], ids=["one_output_token", "two_output_tokens"])
def model(request):
    return InteractionModel(tiny.config(max_output=request.param))


@pytest.fixture(scope="module")
def params(model):
    return tiny.random_params(model)


@pytest.fixture(scope="module")
def step(model):
    """The step as it serves, compiled once for each number of slots."""
    return jax.jit(model.step)


@pytest.fixture(scope="module")
def offline(model, params):
    forward = jax.jit(model.forward, static_argnums=3)
    return lambda inputs, outputs, num_tokens: forward(params, *tiny.pack(inputs, outputs), num_tokens)


@pytest.fixture(scope="module")
def run(model, params):
    inputs = tiny.random_inputs(model.config.stream, slots=2, turns=TURNS)
    keys = np.array([[7, 1], [8, 2]], np.uint32)
    (outputs, logits), state = stream(model, params, inputs, keys)
    return inputs, outputs, logits, state, keys


def test_streaming_equals_offline(model, offline, run):
    inputs, outputs, logits, state, _ = run
    length = int(np.max(state.length)) + model.config.stream.max_output
    for kind in ("hybrid", "hybrid_sliding"):  # every ring has gone round several times
        assert length > 3 * cache_shape(model.config, kind).capacity
    predictions = offline(inputs, outputs, length)
    real = np.asarray(predictions.real)
    assert np.isfinite(logits).all() and 0.1 < np.abs(outputs.mel).max() < 100
    np.testing.assert_allclose(np.asarray(predictions.logits)[real], logits[real], atol=1e-5)
    assert (np.argmax(predictions.logits, -1) == outputs.tokens)[real].all()
    heard = np.array(predictions.heard_logits)
    heard[..., model.control.nothing] -= NAMED_LOGIT
    assert (np.argmax(heard, -1) == outputs.heard)[real].all()
    assert outputs.speaking.any() and outputs.num_tokens.max() == model.config.stream.max_output


def test_conversations_may_share_a_pack(model, params, run):
    inputs, outputs, _, state, _ = run
    length = int(np.max(state.length)) + model.config.stream.max_output
    forward = jax.jit(model.forward, static_argnums=3)
    apart, shared = (forward(params, *tiny.pack(inputs, outputs, packs), length) for packs in (2, 1))
    real = np.asarray(apart.real)
    np.testing.assert_array_equal(real, np.asarray(shared.real))
    np.testing.assert_allclose(np.asarray(shared.logits)[real], np.asarray(apart.logits)[real], atol=1e-6)
    for name in ("token", "previous", "hidden"):  # the pack of both is that of one after that of the other
        kept = [
            np.asarray(getattr(p.decisions.spoken, name))[np.asarray(p.decisions.spoken.real)] for p in (apart, shared)
        ]
        np.testing.assert_allclose(*kept, atol=1e-6)


def test_what_the_flow_head_is_shown(model, params, run):
    """The patch before is that of the output slot before, where that one spoke."""
    inputs, outputs, _, state, _ = run
    length = int(np.max(state.length)) + model.config.stream.max_output
    spoken = jax.jit(model.forward, static_argnums=3)(params, *tiny.pack(inputs, outputs), length).decisions.spoken
    shape = outputs.tokens.shape
    speaks = (outputs.speaking & inputs.active)[..., None] & (np.arange(shape[2]) < outputs.num_tokens[..., None])
    for slot in range(shape[0]):
        flat, mel = speaks[slot].reshape(-1), outputs.mel[slot].reshape(-1, *outputs.mel.shape[3:])
        before = np.concatenate([np.zeros_like(mel[:1]), np.where(flat[:-1, None, None], mel[:-1], 0)])
        count = flat.sum()
        assert np.asarray(spoken.real)[slot].sum() == count > 10
        wanted = before[flat].reshape(count, -1)
        np.testing.assert_allclose(np.asarray(spoken.previous)[slot, :count], wanted, atol=1e-6)
        np.testing.assert_array_equal(np.asarray(spoken.token)[slot, :count], outputs.tokens[slot].reshape(-1)[flat])


def test_every_kind_of_block_was_seen(run):
    inputs = run[0]
    assert (~inputs.active).any() and (~inputs.has_audio).any()
    assert set(np.unique(inputs.num_patches)) == {0, 1, 2}
    assert set(np.unique(inputs.num_text)) == {0, 1, 2, 3}


def test_causality_by_truncation(model, offline, run):
    """What comes later changes nothing that was decided before."""
    inputs, outputs, _, state, _ = run
    length = int(np.max(state.length)) + model.config.stream.max_output
    whole = offline(inputs, outputs, length)
    cut = 140
    first = jax.tree.map(lambda x: x[:, :cut], (inputs, outputs))
    part = offline(*first, length)
    real = np.asarray(part.real)
    np.testing.assert_allclose(np.asarray(part.logits)[real], np.asarray(whole.logits)[:, :cut][real], atol=1e-6)
    changed = jax.tree.map(np.copy, inputs)
    changed.audio[:, cut:] = 15 - changed.audio[:, cut:]
    changed.text[:, cut:] = (changed.text[:, cut:] + 1) % 48
    other = offline(changed, outputs, length)
    np.testing.assert_array_equal(np.asarray(other.logits)[:, :cut], np.asarray(whole.logits)[:, :cut])
    assert np.abs(np.asarray(other.logits)[:, cut:] - np.asarray(whole.logits)[:, cut:]).max() > 1e-3


def test_an_inactive_slot_keeps_its_bits(model, params, step):
    inputs = tiny.random_inputs(model.config.stream, slots=2, turns=3, seed=3)
    inputs.active[:] = [[True, True, True], [True, False, False]]
    keys = np.zeros((2, 2), np.uint32)
    state = model.init_state(2)
    state, _ = step(params, state, jax.tree.map(lambda x: x[:, 0], inputs), keys)
    after, out = step(params, state, jax.tree.map(lambda x: x[:, 1], inputs), keys)
    assert out.num_tokens[1] == 0 and not out.speaking[1] and out.num_tokens[0] > 0

    def of_slot(x, slot):  # stacked layers have the slot second
        return np.take(x, slot, axis=int(x.shape[0] != 2 or x.ndim == 5))

    for before, now in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(of_slot(np.asarray(before), 1), of_slot(np.asarray(now), 1))


def test_anothers_text_leaves_no_trace(model, params, step):
    """The block of all is over in one piece, or goes on for one session's text: the other computes the same bits."""
    spec = model.config.stream
    inputs = tiny.random_inputs(spec, slots=2, turns=8, seed=5)
    inputs.active[:], inputs.num_text[0] = True, 0
    keys, ends = np.array([[3, 1], [4, 2]], np.uint32), []
    for text in (0, spec.max_text):
        inputs.has_audio[:], inputs.num_patches[1], inputs.num_text[1] = True, spec.max_patches, text
        state, written = model.init_state(2), []
        for turn in range(8):
            state, out = step(params, state, jax.tree.map(lambda x, t=turn: x[:, t], inputs), keys)
            written.append(jax.tree.map(lambda x: np.asarray(x)[0], out))
        ends.append((int(state.length[0]), written))
    for alone, beside in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_array_equal(alone, beside)


def _crowd(model, seed):
    inputs = tiny.random_inputs(model.config.stream, slots=8, turns=12, seed=seed)
    keys = np.arange(16, dtype=np.uint32).reshape(8, 2)
    return inputs, keys


@pytest.fixture(scope="module")
def play(model, params, step):
    """Runs eight slots from a state, or from the beginning: what each turn wrote, and the last state."""

    def run(inputs, keys, state=None):
        state, outs = state or model.init_state(8), []
        for turn in range(inputs.active.shape[1]):
            state, out = step(params, state, jax.tree.map(lambda x, t=turn: x[:, t], inputs), keys)
            outs.append(jax.device_get(out))
        return outs, state

    return run


def _row(outs, slot):
    return [jax.tree.map(lambda x: x[slot], out) for out in outs]


def _same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_session_is_bit_identical_alone_elsewhere_and_in_company(model, play):
    inputs, keys = _crowd(model, seed=4)
    crowd, _ = play(inputs, keys)
    alone_inputs = jax.tree.map(np.zeros_like, inputs)
    elsewhere = jax.tree.map(np.zeros_like, inputs)
    moved_keys = np.zeros_like(keys)
    for name in vars(inputs):
        getattr(alone_inputs, name)[2] = getattr(inputs, name)[2]
        getattr(elsewhere, name)[7] = getattr(inputs, name)[2]
    moved_keys[7] = keys[2]
    alone, _ = play(alone_inputs, keys)
    moved, _ = play(elsewhere, moved_keys)
    _same(_row(crowd, 2), _row(alone, 2))
    _same(_row(crowd, 2), _row(moved, 7))


def test_slots_are_reused_without_a_trace(model, play):
    inputs, keys = _crowd(model, seed=5)
    fresh, _ = play(inputs, keys)
    other, _ = _crowd(model, seed=6)
    _, state = play(other, keys + 99)
    mask = np.arange(8) == 3
    state = jax.jit(model.reset)(state, mask)
    again, _ = play(inputs, keys, state)
    _same(_row(fresh, 3), _row(again, 3))


def test_nan_in_a_neighbour_stays_there(model, play):
    inputs, keys = _crowd(model, seed=7)
    clean, _ = play(inputs, keys)
    inputs.patches[5] = np.nan
    inputs.num_patches[5] = 1
    dirty, _ = play(inputs, keys)
    for slot in (0, 4, 6, 7):
        _same(_row(clean, slot), _row(dirty, slot))


def test_the_state_is_as_long_as_it_must_be(model):
    shape = cache_shape(model.config, "hybrid_sliding")
    assert shape.ring >= model.config.text.sliding_window_size + block_size(model.config) - 1


def test_outputs_follow_the_rules_of_a_block(model, run):
    inputs, outputs, *_ = run
    assert isinstance(outputs, MicroTurnOutput)
    c, o = model.control, model.config.stream.max_output
    assert (outputs.num_tokens[~inputs.active] == 0).all()
    first = outputs.tokens[..., 0]
    closed = (first == c.listen) | (first == c.delegate) | (first == c.end)
    assert (outputs.num_tokens[inputs.active & closed] == 1).all()
    assert (outputs.speaking == (inputs.active & ~closed)).all()
    assert np.abs(outputs.mel[~outputs.speaking]).max() == 0
    assert outputs.num_tokens.max() <= o
