"""Attention of a live stream over ring caches, on CPU and as the TPU kernel: against the oracle, each for itself."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import platform
from pallas_kernels.prefill_attention.api import prefill_attention
from pallas_kernels.streaming_attention import walk
from pallas_kernels.streaming_attention.api import streaming_attention
from pallas_kernels.streaming_attention.cache import KVCache, empty_cache
from tests.pallas_kernels import tpu_compiler
from tests.pallas_kernels.checked import no_races

# (T, H, G, K, R, E, window, sinks, ring, key_block)
LOCAL = (5, 4, 2, 16, 4, 24, 24, 0, 48, 16)
GLOBAL = (5, 4, 2, 16, 4, 40, 60, 16, 80, 16)
SESSIONS = 3


def draw(case, seed, sessions=SESSIONS, dtype=jnp.float32):
    t, h, g, k, r, e, _, sinks, ring, _ = case
    rng = np.random.default_rng(seed)

    def array(*shape, scale=1.0):
        return jnp.asarray(scale * rng.standard_normal(shape), jnp.float32)

    new = (array(sessions, t, h, k, scale=0.5), array(sessions, t, g, k), array(sessions, t, g, k))
    new += (array(sessions, t, h, r, scale=0.5), array(r, e))
    cache = empty_cache(sessions, g, sinks + ring, k, dtype)
    if dtype == jnp.int8:
        values = [jnp.asarray(rng.integers(-127, 128, x.shape), jnp.int8) for x in (cache.k, cache.v)]
        scales = [jnp.asarray(rng.random(x.shape) / 100, jnp.float32) for x in (cache.k_scale, cache.v_scale)]
        return new, KVCache(*values, *scales)
    return new, KVCache(array(*cache.k.shape), array(*cache.v.shape))


@functools.cache
def compiled(implementation, case, ordered=True):
    window, sinks, key_block = case[6], case[7], case[9] if ordered else None

    @jax.jit
    def run(new, cache, start, count):
        with platform.forced(implementation):
            return streaming_attention(*new, cache, start, count, window=window, sinks=sinks, key_block=key_block)

    return run


def ints(*values):
    return jnp.asarray(values, jnp.int32)


def assert_close(ours, theirs):
    (y, cache), (expected, expected_cache) = ours, theirs
    np.testing.assert_allclose(y, expected, atol=1e-5)
    for a, b in zip(cache.arrays, expected_cache.arrays, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize(
    ("implementation", "ordered"),
    [("cpu", False), ("cpu", True), ("gpu", False), ("interpret", False), ("interpret", True)],
)
@pytest.mark.parametrize("case", [LOCAL, GLOBAL], ids=["local", "global"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int8], ids=["float32", "int8"])
def test_matches_the_reference(implementation, ordered, case, dtype):
    t = case[0]

    @hypothesis.settings(max_examples=50, deadline=None)
    @hypothesis.given(
        st.integers(0, 999),
        st.lists(st.integers(0, 400) | st.integers(2**30, 2**30 + 400), min_size=SESSIONS, max_size=SESSIONS),
        st.lists(st.integers(0, t), min_size=SESSIONS, max_size=SESSIONS),
    )
    def run(seed, start, count):
        new, cache = draw(case, seed, dtype=dtype)
        args = (new, cache, ints(*start), ints(*count))
        assert_close(compiled(implementation, case, ordered)(*args), compiled("reference", case)(*args))

    run()


@pytest.mark.parametrize("implementation", ["cpu", "interpret"])
@pytest.mark.parametrize("case", [LOCAL, GLOBAL], ids=["local", "global"])
def test_nan_stays_in_its_session_and_in_unused_slots(implementation, case):
    new, cache = draw(case, 1)
    run = compiled(implementation, case)
    start, count = ints(7, 301, 40), ints(5, 2, 0)
    y, after = run(new, cache, start, count)
    dirty = [x.at[1].set(jnp.nan) for x in new[:4]]
    dirty_cache = jax.tree.map(lambda x: x.at[1].set(jnp.nan).at[2].set(jnp.nan), cache)
    unused = jax.tree.map(lambda x: x.at[0, :, 12:].set(jnp.nan), dirty_cache)  # session 0 holds 12 tokens
    y_dirty, after_dirty = run((*dirty, new[4]), unused, start, count)
    np.testing.assert_array_equal(y[0], y_dirty[0])
    for a, b in zip(after.arrays, after_dirty.arrays, strict=True):
        np.testing.assert_array_equal(a[0, :, :12], b[0, :, :12])
    assert np.isfinite(y_dirty[2]).all()  # inactive: it reads nothing


def test_bfloat16_rows_are_seen_one_by_one():
    """Two rows of a bfloat16 cache share a word: an odd number is live, what lies after the last is NaN."""
    new, cache = jax.tree.map(lambda x: x.astype(jnp.bfloat16), draw(LOCAL, 6))
    start, count = ints(8, 12, 14), ints(3, 4, 5)
    unused = jax.tree.map(lambda x: x.at[0, :, 11:].set(jnp.nan).at[2, :, 19:].set(jnp.nan), cache)
    y, _ = compiled("interpret", LOCAL)(new, unused, start, count)
    exact, _ = compiled("reference", LOCAL)(*jax.tree.map(lambda x: x.astype(jnp.float32), (new, cache)), start, count)
    # The weights of a mean of values are rounded to bfloat16, and the result is.
    largest = max(float(jnp.max(jnp.abs(x.astype(jnp.float32)))) for x in (new[2], cache.v))
    np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=(2**-9 + 2**-9) * largest)


@pytest.mark.parametrize("implementation", ["cpu", "interpret"])
def test_an_inactive_session_keeps_its_bits(implementation):
    new, cache = draw(GLOBAL, 2)
    _, after = compiled(implementation, GLOBAL)(new, cache, ints(9, 50, 170), ints(0, 3, 0))
    for a, b in zip(after.arrays, cache.arrays, strict=True):
        np.testing.assert_array_equal(a[jnp.array([0, 2])], b[jnp.array([0, 2])])
        assert (a[1] != b[1]).any()


@pytest.mark.parametrize("implementation", ["cpu", "interpret"])
@pytest.mark.parametrize("case", [LOCAL, GLOBAL], ids=["local", "global"])
def test_a_session_is_the_same_alone_and_as_one_of_64(implementation, case):
    new, cache = draw(case, 3, sessions=64)
    rng = np.random.default_rng(0)
    start, count = jnp.asarray(rng.integers(0, 400, 64), jnp.int32), jnp.asarray(rng.integers(1, 6, 64), jnp.int32)
    y, after = compiled(implementation, case)(new, cache, start, count)
    for slot in (0, 37):
        only = slice(slot, slot + 1)
        one = (*(x[only] for x in new[:4]), new[4])
        alone = compiled(implementation, case)(one, KVCache(cache.k[only], cache.v[only]), start[only], count[only])
        np.testing.assert_array_equal(alone[0][0], y[slot])
        np.testing.assert_array_equal(alone[1].k[0], after.k[slot])


@pytest.mark.parametrize("implementation", ["cpu", "interpret"])
@pytest.mark.parametrize("case", [LOCAL, GLOBAL], ids=["local", "global"])
def test_a_stream_is_the_sequence(implementation, case):
    """Tokens that come one, two or five at a time, round the ring: what `prefill_attention` gives for all of them.

    Bit for bit on a CPU; the two TPU kernels have query tiles of other sizes, which the interpreter sums otherwise.
    """
    t, _, g, k, _, _, window, sinks, _, key_block = case
    total = 130
    (q, key, v, rel, profiles), _ = draw((total, *case[1:]), 4, sessions=1)
    cache = empty_cache(1, g, sinks + case[8], k, jnp.float32)
    run, seen, at, turn = compiled(implementation, case), [], 0, 0
    while at < total:
        n = min((1, 2, 5)[turn % 3], total - at)
        new = [jnp.pad(x[:, at : at + n], ((0, 0), (0, t - n), (0, 0), (0, 0))) for x in (q, key, v, rel)]
        y, cache = run((*new, profiles), cache, ints(at), ints(n))
        seen.append(y[:, :n])
        at, turn = at + n, turn + 1

    @jax.jit
    def whole(*args):
        with platform.forced(implementation):
            return prefill_attention(*args, window=window, sinks=sinks, key_block=key_block)

    expected = whole(q, key, v, rel, profiles)
    if implementation == "cpu":
        np.testing.assert_array_equal(jnp.concatenate(seen, axis=1), expected)
    else:
        np.testing.assert_allclose(jnp.concatenate(seen, axis=1), expected, atol=2e-6)


def test_no_races_and_no_stray_reads():
    new, cache = draw(GLOBAL, 5)
    args = (new, cache, ints(3, 150, 0), ints(5, 4, 0))
    with no_races():
        ours = jax.block_until_ready(compiled("checked", GLOBAL)(*args))
    assert_close(ours, compiled("reference", GLOBAL)(*args))


@pytest.mark.parametrize("itemsize", [2, 1])
@pytest.mark.parametrize("sessions", [1, 16, 64])
@pytest.mark.parametrize(
    ("window", "sinks", "ring", "longest"), [(512, 0, 768, 4000), (32768, 256, 33024, 60000)], ids=["local", "global"]
)
def test_reads_little_more_than_the_live_keys(itemsize, sessions, window, sinks, ring, longest):
    """The kernel's own loop bounds, at the real shapes: a silent micro-turn of 5 tokens."""
    start = np.random.default_rng(0).integers(longest // 4, longest, sessions)
    sizes = {"window": window, "sinks": sinks, "ring": ring, "key_block": 256, "kv_heads": 8, "head_dim": 128}
    moved = walk.hbm_bytes(start, np.full(sessions, 5), itemsize=itemsize, **sizes)
    assert moved.live <= moved.read <= 1.05 * moved.live
    idle = walk.hbm_bytes(start, np.zeros(sessions, int), itemsize=itemsize, **sizes)
    assert idle.read == idle.written == 0


def test_wrong_shapes_are_refused():
    new, cache = draw(LOCAL, 0)
    args = (ints(0, 0, 0), ints(1, 1, 1))
    with pytest.raises(ValueError, match="a ring of at least"):
        streaming_attention(*new, cache, *args, window=60, sinks=0)
    with pytest.raises(ValueError, match="key_block"):
        streaming_attention(*new, cache, *args, window=24, sinks=0, key_block=20)
    with pytest.raises(ValueError, match="start and count"):
        streaming_attention(*new, cache, *(x[:1] for x in args), window=24, sinks=0)


@pytest.mark.tpu_compile
@pytest.mark.parametrize("chip", sorted(platform.CHIPS))
@pytest.mark.parametrize("sessions", [1, 16, 64])
@pytest.mark.parametrize("tokens", [1, 109])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int8], ids=["bfloat16", "int8"])
@pytest.mark.parametrize(
    ("window", "sinks", "ring", "extent"), [(512, 0, 768, 512), (32768, 256, 33024, 1024)], ids=["local", "global"]
)
def test_compiles_for_every_chip(chip, sessions, tokens, dtype, window, sinks, ring, extent):
    """One Mosaic call that writes the caches in place."""
    if sessions == 64 and window > 512 and chip in ("v5e", "v6e") and dtype == jnp.bfloat16:
        sessions = 16  # 64 sessions' global caches are 8.7 GB a layer; with another copy they'd not fit these chips

    def array(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype)

    new = (array(sessions, tokens, 32, 128), *[array(sessions, tokens, 8, 128)] * 2, array(sessions, tokens, 32, 16))
    cache = jax.eval_shape(lambda: empty_cache(sessions, 8, sinks + ring, 128, dtype))
    numbers = array(sessions, dtype=jnp.int32)

    def f(q, k, v, r, profiles, cache, start, count):
        return streaming_attention(q, k, v, r, profiles, cache, start, count, window=window, sinks=sinks, key_block=256)

    compiled = tpu_compiler.compile_for(chip, f, *new, array(16, extent), cache, numbers, numbers, donate=5)
    text = compiled.as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 1
    shape = f"{'s8' if dtype == jnp.int8 else 'bf16'}[{','.join(map(str, cache.k.shape))}]"
    assert shape in text and not [made for made in tpu_compiler.large_copies(text, 0) if made.startswith(shape)]
