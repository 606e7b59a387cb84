"""Attention within sequences, on CPU and as the TPU kernel: against the oracle, and each token for itself."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import platform
from pallas_kernels.prefill_attention import api
from tests.pallas_kernels import tpu_compiler
from tests.pallas_kernels.checked import no_races

IMPLEMENTATIONS = ("cpu", "interpret")
# (T, H, G, K, R, E, window, sinks, key_block): a window of a block and less, a window with sinks, all that came before.
CASES = {
    "window": (70, 4, 2, 16, 16, 40, 16, 0, None),
    "ordered": (70, 4, 2, 8, 4, 40, 24, 16, 16),
    "chunks": (530, 2, 1, 8, 4, 600, 700, 0, None),
}


def draw(case, seed, batch=2):
    t, h, g, k, r, e, *_ = case
    rng = np.random.default_rng(seed)

    def array(*shape, scale=1.0):
        return jnp.asarray(scale * rng.standard_normal(shape), jnp.float32)

    q, rel = array(batch, t, h, k, scale=0.5), array(batch, t, h, r, scale=0.5)
    return q, array(batch, t, g, k), array(batch, t, g, k), rel, array(r, e)


@functools.cache
def compiled(implementation, case):
    """Value and gradients."""
    window, sinks, key_block = case[6:]

    @jax.jit
    def run(arrays, document_start):
        with platform.forced(implementation):
            y, vjp = jax.vjp(
                lambda *a: api.prefill_attention(*a, document_start, window=window, sinks=sinks, key_block=key_block),
                *arrays,
            )
            return y, *vjp(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape).astype(y.dtype))

    return run


def starts(cuts, t):
    """Where each token's document began, for documents that begin at the cuts."""
    first = np.zeros(t, np.int32)
    for cut in sorted(cuts):
        first[cut:] = cut
    return first


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_match_the_reference(implementation, name):
    case = CASES[name]
    t = case[0]

    @hypothesis.settings(max_examples=70, deadline=None)
    @hypothesis.given(
        st.integers(0, 999), st.lists(st.lists(st.integers(0, t - 1), max_size=3), min_size=2, max_size=2)
    )
    def run(seed, cuts):
        arrays, document_start = draw(case, seed), jnp.asarray([starts(c, t) for c in cuts])
        ours = compiled(implementation, case)(arrays, document_start)
        theirs = compiled("reference", case)(arrays, document_start)
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            size = max(1.0, float(jnp.max(jnp.abs(b))))
            np.testing.assert_allclose(a / size, b / size, atol=1e-5, rtol=0, err_msg=f"result {i}, {cuts}")

    run()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", ["window", "ordered"])
def test_without_documents_all_is_one(implementation, name):
    case = CASES[name]
    arrays = draw(case, 1)
    none = compiled(implementation, case)(arrays, None)
    one = compiled(implementation, case)(arrays, jnp.zeros((2, case[0]), jnp.int32))
    np.testing.assert_allclose(none[0], one[0], atol=1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", ["window", "ordered"])
def test_a_token_depends_on_nothing_that_comes_later_nor_on_other_sequences(implementation, name):
    """Bit for bit, also where the other sequence is NaN."""
    case = CASES[name]
    cut = 41
    arrays = draw(case, 3)
    whole = compiled(implementation, case)(arrays, None)[0]
    tail = [x.at[:, cut:].add(1.0) for x in arrays[:4]]
    changed = compiled(implementation, case)((*tail, arrays[4]), None)[0]
    np.testing.assert_array_equal(changed[:, :cut], whole[:, :cut])
    assert (changed[:, cut:] != whole[:, cut:]).any()
    nan = [x.at[1].set(jnp.nan) for x in arrays[:4]]
    np.testing.assert_array_equal(compiled(implementation, case)((*nan, arrays[4]), None)[0][0], whole[0])
    alone = compiled(implementation, case)((*(x[:1] for x in arrays[:4]), arrays[4]), None)[0]
    if case[8] is not None or implementation == "interpret":
        np.testing.assert_array_equal(alone[0], whole[0])
    else:
        np.testing.assert_allclose(alone[0], whole[0], atol=1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_longer_sequence_leaves_the_bits_of_its_beginning(implementation):
    case = CASES["ordered"]
    arrays = draw(case, 4)
    short = (50, *case[1:])
    part = compiled(implementation, short)((*(x[:, :50] for x in arrays[:4]), arrays[4]), None)[0]
    np.testing.assert_array_equal(part, compiled(implementation, case)(arrays, None)[0][:, :50])


def test_bfloat16_is_summed_in_float32():
    case = CASES["window"]
    arrays = [x.astype(jnp.bfloat16) for x in draw(case, 5)]
    ours = compiled("interpret", case)(arrays, None)[0]
    exact = compiled("reference", case)([x.astype(jnp.float32) for x in arrays], None)[0]
    assert ours.dtype == jnp.bfloat16
    # The weights of a mean of values are rounded to bfloat16, and the result is.
    largest = float(jnp.max(jnp.abs(arrays[2].astype(jnp.float32))))
    np.testing.assert_allclose(ours.astype(jnp.float32), exact, atol=(2**-9 + 2**-9) * largest)


def test_no_races_and_no_stray_reads():
    case = CASES["ordered"]
    arrays = draw(case, 6, batch=1)

    @jax.jit
    def run(arrays):
        with platform.forced("checked"):
            return api.prefill_attention(*arrays, window=case[6], sinks=case[7], key_block=case[8])

    with no_races():
        y = jax.block_until_ready(run(arrays))
    np.testing.assert_allclose(y, compiled("reference", case)(arrays, None)[0], atol=1e-5)


def test_wrong_shapes_are_refused():
    q, k, v, r, profiles = draw(CASES["window"], 0)
    with pytest.raises(ValueError, match="G dividing H"):
        api.prefill_attention(q, k, v[:, 1:], r, profiles, window=8)
    with pytest.raises(ValueError, match="key_block divides"):
        api.prefill_attention(q, k, v, r, profiles, window=8, sinks=8, key_block=16)


@pytest.mark.tpu_compile
@pytest.mark.parametrize("chip", sorted(platform.CHIPS))
@pytest.mark.parametrize("tokens", [2048, 8192])
@pytest.mark.parametrize(("window", "sinks", "extent"), [(512, 0, 512), (32768, 256, 1024)], ids=["local", "global"])
def test_compiles_for_every_chip(chip, tokens, window, sinks, extent):
    """The 276B model's layers, forward: one Mosaic call."""

    def array(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16)

    kv = array(1, tokens, 8, 128)
    args = (array(1, tokens, 32, 128), kv, kv, array(1, tokens, 32, 16), array(16, extent))
    f = functools.partial(api.prefill_attention, window=window, sinks=sinks, key_block=256)
    text = tpu_compiler.compile_for(chip, f, *args).as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 1
