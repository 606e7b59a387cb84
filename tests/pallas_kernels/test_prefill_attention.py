"""Attention within sequences, on CPU and as the TPU kernels: against the oracle, and each token for itself."""

import contextlib
import functools
import itertools
from unittest import mock

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import platform
from pallas_kernels.prefill_attention import api, tiles, tpu_backward
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
    return q, array(batch, t, g, k), array(batch, t, g, k), rel, array(r, e), array(batch, t, h, k)


@contextlib.contextmanager
def small_tiles(tokens=32):
    """Cuts what is traced inside for a TPU into tiles so small that a short sequence has several."""
    sizes = {"TOKENS": tokens, "KEY_BLOCK": tokens, "QUERY_TILE": 2 * tokens, "KEY_TILE": 2 * tokens}
    with mock.patch.multiple(tiles, **sizes):
        yield


def options(implementation):
    """For the compiler: interpreted kernels of a few tokens take far longer to compile than to run."""
    return {"xla_backend_optimization_level": 0} if implementation == "interpret" else {}


@functools.cache
def compiled(implementation, case):
    """Value and gradients, of q, k, v, r, profiles and the gradient of the value."""
    window, sinks, key_block = case[6:]
    long = case == CASES["chunks"]

    def run(arrays, document_start):
        *arrays, grad = arrays
        with platform.forced(implementation), small_tiles(64 if long else 32):
            y, vjp = jax.vjp(
                lambda *a: api.prefill_attention(*a, document_start, window=window, sinks=sinks, key_block=key_block),
                *arrays,
            )
            return y, *vjp(grad)

    jitted = jax.jit(run, compiler_options={} if long else options(implementation))
    return lambda arrays, document_start: jitted(tuple(arrays), document_start)


def starts(cuts, t):
    """Where each token's document began, for documents that begin at the cuts."""
    first = np.zeros(t, np.int32)
    for cut in sorted(cuts):
        first[cut:] = cut
    return first


def assert_close(ours, theirs, tolerance, note=""):
    """Each result, relative to its largest number."""
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        size = max(1.0, float(jnp.max(jnp.abs(b))))
        np.testing.assert_allclose(a / size, b / size, atol=tolerance, rtol=0, err_msg=f"result {i}, {note}")


# A GPU's is the CPU's.
@pytest.mark.parametrize(
    ("implementation", "name"), [*itertools.product(IMPLEMENTATIONS, CASES), ("gpu", "window")], ids="-".join
)
def test_values_and_gradients_match_the_reference(implementation, name):
    case = CASES[name]
    t, ours = case[0], compiled(implementation, case)

    @hypothesis.settings(max_examples=70, deadline=None)
    @hypothesis.given(
        st.integers(0, 999), st.lists(st.lists(st.integers(0, t - 1), max_size=3), min_size=2, max_size=2)
    )
    def run(seed, cuts):
        arrays, document_start = draw(case, seed), jnp.asarray([starts(c, t) for c in cuts])
        theirs = compiled("reference", case)(arrays, document_start)
        assert_close(ours(arrays, document_start), theirs, 1e-5, cuts)

    run()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_without_documents_all_is_one(implementation):
    case = CASES["ordered"]
    arrays = draw(case, 1)
    none = compiled(implementation, case)(arrays, None)
    one = compiled(implementation, case)(arrays, jnp.zeros((2, case[0]), jnp.int32))
    assert_close(none, one, 1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("name", "before"), [("window", 5), ("window", 30), ("ordered", 50), ("chunks", 50)])
def test_queries_of_the_last_tokens_alone(implementation, name, before):
    """Values and gradients are those of all queries where only these count; some of the keys' documents are cut."""
    case = CASES[name]
    *arrays, grad = draw(case, 9)
    document_start = jnp.asarray([starts([], case[0]), starts([3, before + 9], case[0])])
    grad = grad.at[:, :before].set(0)
    theirs = compiled("reference", case)((*arrays, grad), document_start)
    last = [x if i in (1, 2, 4) else x[:, before:] for i, x in enumerate((*arrays, grad))]
    ours = compiled(implementation, case)(last, document_start[:, before:])
    assert_close(ours, [x[:, before:] if i in (0, 1, 4) else x for i, x in enumerate(theirs)], 1e-5)


@pytest.mark.parametrize("documents", [False, True])
def test_keys_whose_gradients_have_no_room_go_in_several_calls(monkeypatch, documents):
    """With sinks beyond the first call's keys, and documents that began before the last call's."""
    case = (90, 2, 1, 8, 4, 40, 24, 64, 16)
    monkeypatch.setattr(tpu_backward, "SUMS_BYTES", 48 * 32 * case[3])
    arrays = draw(case, 7, batch=1)
    document_start = jnp.asarray([starts([30], case[0])]) if documents else None
    assert_close(
        compiled("interpret", case)(arrays, document_start), compiled("reference", case)(arrays, document_start), 1e-5
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", ["window", "ordered"])
def test_a_token_depends_on_nothing_that_comes_later(implementation, name):
    """Bit for bit."""
    case = CASES[name]
    cut = 41
    arrays, one = draw(case, 3), jnp.zeros((2, case[0]), jnp.int32)
    whole = compiled(implementation, case)(arrays, one)[0]
    tail = [x.at[:, cut:].add(1.0) for x in arrays[:4]]
    changed = compiled(implementation, case)((*tail, *arrays[4:]), one)[0]
    np.testing.assert_array_equal(changed[:, :cut], whole[:, :cut])
    assert (changed[:, cut:] != whole[:, cut:]).any()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", ["window", "ordered"])
def test_a_sequence_depends_on_no_other(implementation, name):
    """Values and gradients (dprofiles is a sum over all), bit for bit, also where the other sequence is NaN."""
    case = CASES[name]
    arrays, documents = draw(case, 3), jnp.asarray([starts([20], case[0])] * 2)
    whole = compiled(implementation, case)(arrays, documents)
    nan = [x if i == 4 else x.at[1].set(jnp.nan) for i, x in enumerate(arrays)]
    alone = [x if i == 4 else x[:1] for i, x in enumerate(arrays)]
    beside_nan = compiled(implementation, case)(nan, documents)
    for i in range(5):
        np.testing.assert_array_equal(beside_nan[i][0], whole[i][0])
    if name == "window":
        return  # without a key_block, a CPU adds up in an order that depends on the shapes
    by_itself = compiled(implementation, case)(alone, documents[:1])
    for i in range(5 if implementation == "interpret" else 1):
        np.testing.assert_array_equal(by_itself[i][0], whole[i][0])


def sees(case, document_start):
    """[B, T, T], whether a query sees a key."""
    window, sinks = case[6:8]
    position = np.arange(case[0])
    distance, since = position[:, None] - position, position - document_start[:, :, None]
    return (distance >= 0) & (since >= 0) & ((distance < window) | (since < sinks))


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["window", "ordered"])
def test_what_is_not_finite_reaches_those_that_see_it_and_no_others(name, number):
    """On a TPU, to the row: a query's own, a query's that sees the key, a key's that such a query sees."""
    case = CASES[name]
    t, h, g = case[:3]
    documents = np.asarray([starts([9, 37], t), starts([50], t)])
    visible, arrays = sees(case, documents), draw(case, 8)
    clean = [np.asarray(x) for x in compiled("interpret", case)(arrays, jnp.asarray(documents))]
    for spoilt, place in ((0, (0, 12, 1)), (1, (0, 38, 0)), (2, (1, 33, 1)), (3, (1, 69, 3)), (5, (0, 36, 2))):
        ours = list(arrays)
        ours[spoilt] = arrays[spoilt].at[(*place, 2)].set(number)
        key, row = np.zeros((2, t, g), bool), np.zeros((2, t, h), bool)
        (key if spoilt in (1, 2) else row)[place] = True
        of_keys = np.einsum("bts,bsg->btg", visible, key) > 0
        row |= np.repeat(of_keys, h // g, axis=2)
        seen_by = np.einsum("bts,btgj->bsg", visible, row.reshape(2, t, g, h // g)) > 0
        result = [np.asarray(x) for x in compiled("interpret", case)(ours, jnp.asarray(documents))]
        for i, bad in enumerate((row & (spoilt != 5), row, seen_by, seen_by, row)):
            assert np.isnan(result[i][bad]).all()
            np.testing.assert_array_equal(result[i][~bad], clean[i][~bad])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_longer_sequence_leaves_the_bits_of_its_beginning(implementation):
    case = CASES["ordered"]
    *arrays, _ = draw(case, 4)
    window, sinks, key_block = case[6:]

    @functools.partial(jax.jit, compiler_options=options(implementation))
    def run(*arrays):
        with platform.forced(implementation), small_tiles():
            return api.prefill_attention(*arrays, window=window, sinks=sinks, key_block=key_block)

    part = run(*(x[:, :50] for x in arrays[:4]), arrays[4])
    np.testing.assert_array_equal(part, run(*arrays)[:, :50])


def test_bfloat16_is_summed_in_float32():
    """What is rounded: the weights, their gradient by key and by distance, the value in delta, and the results."""
    case = CASES["window"]
    arrays = [x.astype(jnp.bfloat16) for x in draw(case, 5)]
    ours = compiled("interpret", case)(arrays, None)
    exact = compiled("reference", case)([x.astype(jnp.float32) for x in arrays], None)
    assert all(x.dtype == jnp.bfloat16 for x in ours)
    # The weights of a mean of values are rounded to bfloat16, and the result is.
    largest = float(jnp.max(jnp.abs(arrays[2].astype(jnp.float32))))
    np.testing.assert_allclose(ours[0].astype(jnp.float32), exact[0], atol=(2**-9 + 2**-9) * largest)
    # Relative to the largest: no more than four such roundings on the way, of half a unit in the last place each.
    for a, b in zip(ours[1:], exact[1:], strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=4 * 2**-9 * float(jnp.max(jnp.abs(b))), rtol=0)


def test_no_races_and_no_stray_reads():
    case = (40, 2, 1, 8, 4, 20, 12, 16, 16)
    arrays = draw(case, 6, batch=1)
    documents = jnp.asarray([starts([20], case[0])])
    with no_races():
        ours = jax.block_until_ready(compiled("checked", case)(arrays, documents))
    assert_close(ours, compiled("reference", case)(arrays, documents), 1e-5)


def test_wrong_shapes_and_dtypes_are_refused():
    q, k, v, r, profiles, _ = draw(CASES["window"], 0)
    with pytest.raises(ValueError, match="G dividing H"):
        api.prefill_attention(q, k, v[:, 1:], r, profiles, window=8)
    with pytest.raises(ValueError, match=r"one dtype; got float32, float32, bfloat16"):
        api.prefill_attention(q, k, v.astype(jnp.bfloat16), r, profiles, window=8)
    with pytest.raises(ValueError, match="key_block divides"):
        api.prefill_attention(q, k, v, r, profiles, window=8, sinks=8, key_block=16)


@pytest.mark.tpu_compile
@pytest.mark.parametrize("chip", sorted(platform.CHIPS))
@pytest.mark.parametrize("tokens", [2048, 8192])
@pytest.mark.parametrize(("window", "sinks", "extent"), [(512, 0, 512), (32768, 256, 1024)], ids=["local", "global"])
def test_compiles_for_every_chip(chip, tokens, window, sinks, extent):
    """The 276B model's layers, value and gradients: a Mosaic call each, within VMEM; the short ones with documents.

    Temporary are the arrays in the kernels' layout, some of them in float32: never all scores or all bias.
    """

    def array(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16)

    kv = array(1, tokens, 8, 128)
    q = array(1, tokens, 32, 128)
    documents = jax.ShapeDtypeStruct((1, tokens), jnp.int32) if tokens == 2048 else None
    args = (q, kv, kv, array(1, tokens, 32, 16), array(16, extent), q, documents)

    def f(*args):
        *arrays, grad, documents = args
        attend = functools.partial(api.prefill_attention, window=window, sinks=sinks, key_block=256)
        y, vjp = jax.vjp(lambda *arrays: attend(*arrays, documents), *arrays)
        return y, *vjp(grad)

    compiled = tpu_compiler.compile_for(chip, f, *args)
    assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 2
    assert compiled.memory_analysis().temp_size_in_bytes < 6 * tokens * 32 * 128 * 2
