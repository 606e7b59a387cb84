"""The grouped matmul and the expert MLP, on CPU and as the TPU kernels: against the oracle, and each row for itself."""

import functools
import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import platform
from pallas_kernels.grouped_matmul import api, cpu, reference, tiles, workloads
from pallas_kernels.int8 import Int8Weight
from tests.pallas_kernels import tpu_compiler
from tests.pallas_kernels.checked import no_races
from tml_jax.checkpoint.quantize import quantize

IMPLEMENTATIONS = ("cpu", "gpu", "interpret")
# (rows, K, N, groups). To trace the kernels takes seconds a shape: these two serve most tests.
SMALL, LARGE = (61, 33, 17, 8), (530, 130, 140, 5)
TALL = (1291, 12, 20, 5)
SHAPES = {"cpu": [(1, 3, 2, 2), (7, 1, 1, 3), SMALL, TALL], "gpu": [SMALL, TALL], "interpret": [SMALL, LARGE]}
both_shapes = pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])


def draw(seed, m, k, n, sizes):
    rng = np.random.default_rng(seed)
    arrays = (
        rng.standard_normal((m, k)),
        rng.standard_normal((len(sizes), k, n)) / np.sqrt(k),
        rng.standard_normal((len(sizes), 2, k, n)) / np.sqrt(k),
        rng.random(m) + 0.5,
    )
    return [jnp.asarray(x, jnp.float32) for x in arrays], jnp.asarray(sizes, jnp.int32)


def both_ops(ops, lhs, rhs, gate_up, scale, sizes):
    """Every public grouped op with its gradients."""

    def run(f, *args):
        y, vjp = jax.vjp(f, *args)
        cotangent = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
        return y, *vjp(cotangent)

    return (
        *run(lambda a, b, c: ops.grouped_matmul(a, b, sizes, c), lhs, rhs, scale),
        *run(lambda a, b: ops.grouped_swiglu(a, b, sizes), lhs, gate_up),
    )


@functools.cache
def compiled(implementation):
    """`both_ops` traced with an implementation; jit's cache doesn't know of it, so each has its own function."""
    ops = reference if implementation == "reference" else api

    @jax.jit
    def run(*args):
        with platform.forced(implementation):
            return both_ops(ops, *args)

    return run


def assert_matches_reference(implementation, arrays, sizes):
    theirs = compiled("reference")(*arrays, sizes)
    for i, (a, b) in enumerate(zip(compiled(implementation)(*arrays, sizes), theirs, strict=True)):
        size = max(1.0, float(jnp.max(jnp.abs(b), initial=0)))
        np.testing.assert_allclose(a / size, b / size, atol=1e-5, rtol=0, err_msg=f"result {i}, {sizes}")


@st.composite
def problems(draw_from, implementation):
    m, k, n, num = draw_from(st.sampled_from(SHAPES[implementation]))
    cuts = sorted(draw_from(st.lists(st.integers(0, m), min_size=num, max_size=num)))
    return draw_from(st.integers(0, 99)), m, k, n, np.diff([0, *cuts]).tolist()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_values_and_gradients_match_the_reference(implementation):
    @hypothesis.settings(max_examples=200, deadline=None)
    @hypothesis.given(problems(implementation))
    def run(problem):
        assert_matches_reference(implementation, *draw(*problem))

    run()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_every_pattern_of_empty_groups(implementation):
    rng = np.random.default_rng(0)
    for pattern in itertools.product((0, 1), repeat=8):
        sizes = [int(rng.integers(1, 8)) * on for on in pattern]
        assert_matches_reference(implementation, *draw(1, *SMALL[:3], sizes))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@both_shapes
def test_all_rows_in_one_group(implementation, shape):
    m, k, n, num = shape
    for group in (0, num // 2, num - 1):
        assert_matches_reference(implementation, *draw(2, m, k, n, [m if i == group else 0 for i in range(num)]))


@pytest.mark.parametrize("implementation", ("cpu", "gpu", "reference"))
def test_numpy_arrays_outside_jit(implementation):
    (lhs, rhs, gate_up, scale), _ = draw(0, 12, 8, 4, [5, 0, 7])
    arrays = [np.asarray(x) for x in (lhs, rhs, gate_up, scale)]
    sizes = np.array([5, 0, 7], np.int32)
    with platform.forced(implementation):
        found = api.grouped_matmul(arrays[0], arrays[1], sizes), api.grouped_swiglu(arrays[0], arrays[2], sizes)
    wanted = reference.grouped_matmul(lhs, rhs, sizes, None), reference.grouped_swiglu(lhs, gate_up, sizes)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_no_rows_at_all():
    arrays, sizes = draw(2, 0, 24, 40, [0, 0])
    assert_matches_reference("cpu", arrays, sizes)
    assert api.expert_mlp(*experts(5, 0, 24, 20, 8, 2)).shape == (0, 24)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@both_shapes
def test_nan_stays_with_its_expert(implementation, shape):
    """NaN in one expert's weights and rows reaches no other row and no other expert's gradient, bit for bit."""
    m, k, n, num = shape
    sizes = [m // num] * (num - 1) + [m // num - 2]
    (lhs, rhs, gate_up, scale), group_sizes = draw(3, m, k, n, sizes)
    begin, end = sizes[0], sizes[0] + sizes[1]
    others, experts_left = np.r_[0:begin, end:m], np.r_[0, 2:num]
    run = compiled(implementation)
    clean = run(lhs, rhs, gate_up, scale, group_sizes)
    nan = (lhs.at[begin:end].set(jnp.nan), rhs.at[1].set(jnp.nan), gate_up.at[1].set(jnp.nan), scale)
    for a, b in zip(clean, run(*nan, group_sizes), strict=True):
        kept, lost = (others, slice(begin, end)) if a.shape[0] == m else (experts_left, 1)
        np.testing.assert_array_equal(a[kept], b[kept])
        assert np.isnan(b[lost]).all()
    past = run(lhs.at[sum(sizes) :].set(jnp.nan), rhs, gate_up, scale, group_sizes)
    for a, b in zip(clean, past, strict=True):
        if a.ndim > 1:  # the scale of a row past the groups has a gradient of lhs times zero
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("m", "k", "n"), [(37, 128, 256), (1291, 61, 131)])
def test_a_row_does_not_depend_on_the_others(implementation, m, k, n):
    """The same row in other groups' company, at other places in its tile, in large and small tiles: the same bits."""
    rng = np.random.default_rng(4)
    (lhs, rhs, gate_up, _), _ = draw(4, m, k, n, [0, 0, 0])
    row, seen = lhs[0], []

    @jax.jit
    def run(lhs, sizes):
        with platform.forced(implementation):
            return api.grouped_matmul(lhs, rhs, sizes), api.grouped_swiglu(lhs, gate_up, sizes)

    for before, group in [(0, 1), (5, 1), (5, m - 5), (m // 2, m // 2), (m - 1, 1), *rng.integers(1, m // 3, (6, 2))]:
        inside = int(rng.integers(0, group))
        company = jnp.asarray(rng.standard_normal((m, k)), jnp.float32).at[before + inside].set(row)
        results = run(company, jnp.asarray([before, group, min(3, m - before - group)], jnp.int32))
        seen.append([np.asarray(y[before + inside]) for y in results])
    for other in seen[1:]:
        np.testing.assert_array_equal(seen[0][0], other[0])
        np.testing.assert_array_equal(seen[0][1], other[1])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bfloat16_is_summed_in_float32(implementation):
    """Within one unit in the last place of the float32 result of the same bfloat16 numbers."""
    arrays, sizes = draw(9, 300, 256, 128, [100, 0, 130, 5])
    low = [x.astype(jnp.bfloat16) for x in arrays[:2]]

    @jax.jit
    def run(lhs, rhs):
        with platform.forced(implementation):
            return api.grouped_matmul(lhs, rhs, sizes)

    exact = reference.grouped_matmul(*(x.astype(jnp.float32) for x in low), sizes)
    ulp = np.ldexp(1.0, np.frexp(np.maximum(np.abs(exact), 1e-3))[1] - 8)
    assert (np.abs(np.asarray(run(*low), np.float32) - exact) <= ulp).all()


def test_no_races_and_no_stray_reads():
    """With reads of memory never written giving NaN, and reads out of bounds an error."""
    for sizes in ([10, 0, 3, 5, 17], [0, 0, 0, 0, 0], [48, 0, 0, 0, 0], [16, 16, 1, 0, 8]):
        arrays, sizes = draw(1, 48, 16, 24, sizes)
        with no_races():
            ours = jax.block_until_ready(compiled("checked")(*arrays, sizes))
        for a, b in zip(ours, compiled("reference")(*arrays, sizes), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def experts(seed, tokens, d, f, num, k, unused=0.2):
    rng = np.random.default_rng(seed)
    ids = np.argsort(rng.random((tokens, num)), axis=1)[:, :k]
    ids = np.where(rng.random((tokens, 1)) < unused, num, ids)
    arrays = rng.standard_normal((tokens, d)), ids, rng.random((tokens, k))
    weights = rng.standard_normal((num, 2, d, f)) / np.sqrt(d), rng.standard_normal((num, f, d)) / np.sqrt(f)
    x, ids, combine, gate_up, down = (*arrays, *weights)
    floats = [jnp.asarray(a, jnp.float32) for a in (x, combine, gate_up, down)]
    return floats[0], jnp.asarray(ids, jnp.int32), *floats[1:]


steps_of = jax.jit(tiles.schedule, static_argnums=(1, 2, 3), static_argnames="rest")


@functools.cache
def mlp(implementation):
    @jax.jit
    def run(*args):
        with platform.forced(implementation):
            return api.expert_mlp(*args)

    return run


@pytest.mark.parametrize(
    ("implementation", "tokens", "k"),
    # Of 8 experts a GPU computes all where k is 2 or more.
    [("cpu", 1, 1), ("cpu", 88, 2), ("cpu", 200, 3), ("gpu", 200, 1), ("gpu", 88, 2), ("interpret", 88, 2)],
)
def test_expert_mlp_matches_the_reference(implementation, tokens, k):
    x, ids, weights, gate_up, down = experts(5, tokens, 24, 20, 8, k)
    cotangent = jnp.asarray(np.random.default_rng(6).standard_normal(x.shape), jnp.float32)

    def run(name):
        with platform.forced(name):
            y, vjp = jax.vjp(lambda x, w, g, d: api.expert_mlp(x, ids, w, g, d), x, weights, gate_up, down)
            return y, *vjp(cotangent)

    pairs = (jax.jit(functools.partial(run, name))() for name in (implementation, "reference"))
    for mine, theirs in zip(*pairs, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("implementation", "k"), [("reference", 2), ("cpu", 2), ("gpu", 2), ("gpu", 1), ("interpret", 2)]
)
def test_int8_experts_are_those_that_they_stand_for(implementation, k):
    """float32, 1e-5 of the largest; of one layer, and the same bits of that layer in a stack."""
    x, ids, weights, *floats = experts(12, 88, 24, 20, 8, k)
    small = [Int8Weight(*map(jnp.asarray, quantize(w, (w.ndim - 2,)))) for w in floats]
    wanted = mlp("reference")(x, ids, weights, *map(jnp.asarray, small))
    found = mlp(implementation)(x, ids, weights, *small)
    np.testing.assert_allclose(found, wanted, atol=1e-5 * float(jnp.max(jnp.abs(wanted))))
    stacks = jax.tree.map(lambda w: jnp.stack([w * 0 + 1, w, w * 0 + 1]), small)
    np.testing.assert_array_equal(mlp(implementation)(x, ids, weights, *stacks, jnp.int32(1)), found)


@pytest.mark.parametrize(("implementation", "tokens"), [("cpu", 11), ("cpu", 700), ("gpu", 700), ("interpret", 200)])
def test_a_token_of_the_expert_mlp_does_not_depend_on_the_others(implementation, tokens):
    x, _, weights, gate_up, down = experts(7, tokens, 128, 128, 8, 2)
    mine = (x[0], jnp.asarray([3, 6], jnp.int32), weights[0])
    seen = []
    for seed in range(6):
        company = experts(100 + seed, tokens, 128, 128, 8, 2, unused=seed / 5)[:3]
        at = (seed * 7919) % tokens
        args = [other.at[at].set(one) for other, one in zip(company, mine, strict=True)]
        seen.append(np.asarray(mlp(implementation)(*args, gate_up, down)[at]))
    for y in seen[1:]:
        np.testing.assert_array_equal(seen[0], y)


@pytest.mark.parametrize("implementation", ["cpu", "interpret"])
def test_a_layer_of_stacked_experts_gives_the_bits_and_gradients_of_its_slice(implementation):
    x, ids, weights, *layer_1 = experts(9, 40, 24, 20, 8, 2)
    stacks = [jnp.stack([jnp.full_like(w, jnp.nan), w, jnp.full_like(w, jnp.nan)]) for w in layer_1]

    def run(layer, *weight):
        with platform.forced(implementation):
            y, vjp = jax.vjp(lambda *args: api.expert_mlp(x, ids, *args, layer), weights, *weight)
            return y, *vjp(y)

    y, of_weights, *of_experts = jax.jit(run)(jnp.int32(1), *stacks)
    expected = jax.jit(functools.partial(run, None))(*layer_1)
    for mine, theirs in zip((y, of_weights, *(d[1] for d in of_experts)), expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert not any(np.any(d[0]) or np.any(d[2]) for d in of_experts)


@pytest.mark.parametrize(("implementation", "tokens"), [("cpu", 11), ("cpu", 700), ("gpu", 700), ("interpret", 200)])
def test_expert_mlp_keeps_nan_with_its_users(implementation, tokens):
    x, ids, weights, gate_up, down = experts(8, tokens, 16, 12, 4, 2)
    ids = ids.at[-1].set(4)  # at least one token uses no expert
    run = mlp(implementation)
    clean, dirty = run(x, ids, weights, gate_up, down), run(x, ids, weights, gate_up.at[2].set(jnp.nan), down)
    users = np.asarray((ids == 2).any(axis=1))
    np.testing.assert_array_equal(clean[~users], dirty[~users])
    assert users.any() and np.isnan(dirty[users]).all()
    unused = np.asarray((ids == 4).all(axis=1))
    assert unused.any() and not np.asarray(dirty[unused]).any()


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(st.lists(st.integers(0, 700), min_size=5, max_size=5))
def test_the_steps_cover_each_row_of_each_group_once(sizes):
    m, columns, rows = 3520, 2, 256
    group, column, base, ends, count = map(np.asarray, steps_of(jnp.asarray(sizes), m, rows, columns, rest=True))
    starts, covered = np.r_[0, ends[:-1]], np.zeros((columns, m), int)
    assert count[0] < len(group)
    for g, c, b in zip(group[: count[0]], column[: count[0]], base[: count[0]], strict=True):
        assert b % tiles.ALIGN == 0
        covered[c, max(b, starts[g]) : min(b + rows, ends[g])] += 1
    assert (covered == 1).all()


def test_no_ragged_dot_on_cpu():
    arrays, sizes = draw(11, 64, 8, 8, [20, 20])
    text = jax.jit(api.grouped_matmul).lower(*arrays[:2], sizes).as_text()
    assert "while" in text and "ragged" not in text


def test_tile_sizes_come_from_static_shapes():
    assert cpu.tile_rows(8192) == (256, 64) and cpu.tile_rows(40) == (40, 8) and cpu.tile_rows(3) == (3, 3)


@pytest.mark.parametrize(
    ("lhs", "rhs", "sizes"), [((4, 3), (2, 5, 6), (2,)), ((4, 3), (2, 3, 6), (3,)), ((4,), (2, 3, 6), (2,))]
)
def test_wrong_shapes_are_refused(lhs, rhs, sizes):
    with pytest.raises(ValueError, match="grouped_matmul needs"):
        api.grouped_matmul(jnp.zeros(lhs), jnp.zeros(rhs), jnp.zeros(sizes, jnp.int32))


def test_mixed_dtypes_are_refused():
    with pytest.raises(ValueError, match="one dtype"):
        api.grouped_matmul(jnp.zeros((4, 3)), jnp.zeros((2, 3, 6), jnp.bfloat16), jnp.zeros((2,), jnp.int32))


@pytest.mark.tpu_compile
@pytest.mark.parametrize("chip", sorted(platform.CHIPS))
@pytest.mark.parametrize("workload", workloads.WORKLOADS, ids=lambda w: w.name)
def test_compiles_for_every_chip(chip, workload):
    """Each named workload, forward and backward: one Mosaic call each, and no copy of the weights around it."""
    for name, (f, args) in workload.calls().items():
        text = tpu_compiler.compile_for(chip, f, *args).as_text()
        assert text.count('custom_call_target="tpu_custom_call"') == 1, name
        assert not tpu_compiler.large_copies(text, workload.weight_bytes // 4), name
