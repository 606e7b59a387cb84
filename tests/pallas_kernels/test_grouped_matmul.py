"""The grouped matmul and the expert MLP on CPU: against the oracle, and each row for itself alone."""

import functools
import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.grouped_matmul import api, cpu, reference, routing

# Rows of a call that takes small tiles, large ones, and both with a rest.
FEW, MANY = 37, 1291


def draw(seed, m, k, n, sizes):
    rng = np.random.default_rng(seed)
    lhs, rhs = rng.standard_normal((m, k)), rng.standard_normal((len(sizes), k, n)) / np.sqrt(k)
    return jnp.asarray(lhs, jnp.float32), jnp.asarray(rhs, jnp.float32), jnp.asarray(sizes, jnp.int32)


def value_and_grads(f, lhs, rhs, sizes):
    cotangent = jnp.cos(jnp.arange(lhs.shape[0] * rhs.shape[2], dtype=jnp.float32))
    cotangent = cotangent.reshape(lhs.shape[0], rhs.shape[2])
    y, vjp = jax.vjp(lambda a, b: f(a, b, sizes), lhs, rhs)
    return (y, *vjp(cotangent))


ours = jax.jit(functools.partial(value_and_grads, api.grouped_matmul))
oracle = jax.jit(functools.partial(value_and_grads, reference.grouped_matmul))


def assert_matches_reference(lhs, rhs, sizes):
    for mine, theirs in zip(ours(lhs, rhs, sizes), oracle(lhs, rhs, sizes), strict=True):
        scale = max(1.0, float(jnp.max(jnp.abs(theirs), initial=0)))
        np.testing.assert_allclose(mine / scale, theirs / scale, atol=1e-5, rtol=0, err_msg=str(sizes))


@st.composite
def problems(draw_from):
    m, k, n, num = draw_from(
        st.sampled_from([(1, 3, 2, 2), (7, 1, 1, 3), (61, 33, 17, 4), (300, 5, 9, 6), (1291, 12, 20, 5)])
    )
    cuts = sorted(draw_from(st.lists(st.integers(0, m), min_size=num, max_size=num)))
    return draw_from(st.integers(0, 99)), m, k, n, np.diff([0, *cuts]).tolist()


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(problems())
def test_values_and_gradients_match_the_reference(problem):
    assert_matches_reference(*draw(*problem))


@pytest.mark.parametrize("m", [FEW, MANY])
def test_every_pattern_of_empty_groups(m):
    for pattern in itertools.product((0, 1), repeat=4):
        assert_matches_reference(*draw(1, m, 12, 20, [m // 4 * on for on in pattern]))


@pytest.mark.parametrize(("m", "sizes"), [(MANY, [0, MANY, 0]), (MANY, [MANY]), (256, [256]), (1, [0, 1]), (0, [0, 0])])
def test_all_rows_in_one_group(m, sizes):
    assert_matches_reference(*draw(2, m, 24, 40, sizes))


@pytest.mark.parametrize("m", [FEW, MANY])
def test_nan_stays_with_its_expert(m):
    """NaN in one expert's weights and rows reaches no other row and no other expert's gradient, bit for bit."""
    sizes = [m // 3, m // 3, m // 3 - 2]
    lhs, rhs, group_sizes = draw(3, m, 16, 24, sizes)
    begin, end = sizes[0], sizes[0] + sizes[1]
    others = np.r_[0:begin, end:m]
    clean = ours(lhs, rhs, group_sizes)
    dirty = ours(lhs.at[begin:end].set(jnp.nan), rhs.at[1].set(jnp.nan), group_sizes)
    for a, b in zip(clean[:2], dirty[:2], strict=True):
        np.testing.assert_array_equal(a[others], b[others])
        assert np.isnan(b[begin:end]).all()
    np.testing.assert_array_equal(clean[2][jnp.array([0, 2])], dirty[2][jnp.array([0, 2])])
    past = ours(lhs.at[sum(sizes) :].set(jnp.nan), rhs, group_sizes)
    for a, b in zip(clean, past, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("m", "k", "n"), [(FEW, 128, 256), (MANY, 128, 256), (MANY, 61, 131)])
def test_a_row_does_not_depend_on_the_others(m, k, n):
    """The same row in other groups' company, at other places in its tile, in large and small tiles: the same bits."""
    rng = np.random.default_rng(4)
    lhs, rhs, _ = draw(4, m, k, n, [0, 0, 0])
    row, seen = lhs[0], []
    run = jax.jit(api.grouped_matmul)
    for before, group in [(0, 1), (5, 1), (5, m - 5), (m // 2, m // 2), (m - 1, 1), *rng.integers(1, m // 3, (6, 2))]:
        inside = int(rng.integers(0, group))
        company = jnp.asarray(rng.standard_normal((m, k)), jnp.float32).at[before + inside].set(row)
        y = run(company, rhs, jnp.asarray([before, group, min(3, m - before - group)], jnp.int32))
        seen.append(np.asarray(y[before + inside]))
    for y in seen[1:]:
        np.testing.assert_array_equal(seen[0], y)


def experts(seed, tokens, d, f, num, k, unused=0.2):
    rng = np.random.default_rng(seed)
    ids = np.argsort(rng.random((tokens, num)), axis=1)[:, :k]
    ids = np.where(rng.random((tokens, 1)) < unused, num, ids)
    arrays = rng.standard_normal((tokens, d)), ids, rng.random((tokens, k))
    weights = rng.standard_normal((num, d, 2 * f)) / np.sqrt(d), rng.standard_normal((num, f, d)) / np.sqrt(f)
    x, ids, combine, gate_up, down = (*arrays, *weights)
    floats = [jnp.asarray(a, jnp.float32) for a in (x, combine, gate_up, down)]
    return floats[0], jnp.asarray(ids, jnp.int32), *floats[1:]


@pytest.mark.parametrize(("tokens", "k"), [(1, 1), (11, 2), (88, 2), (200, 3)])
def test_expert_mlp_matches_the_reference(tokens, k):
    x, ids, weights, gate_up, down = experts(5, tokens, 24, 20, 8, k)
    cotangent = jnp.asarray(np.random.default_rng(6).standard_normal(x.shape), jnp.float32)

    def run(f):
        y, vjp = jax.vjp(lambda x, w, g, d: f(x, ids, w, g, d), x, weights, gate_up, down)
        return y, *vjp(cotangent)

    pairs = (jax.jit(functools.partial(run, f))() for f in (api.expert_mlp, reference.expert_mlp))
    for mine, theirs in zip(*pairs, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("tokens", [11, 88, 700])
def test_a_token_of_the_expert_mlp_does_not_depend_on_the_others(tokens):
    x, _, weights, gate_up, down = experts(7, tokens, 128, 128, 8, 2)
    mine = (x[0], jnp.asarray([3, 6], jnp.int32), weights[0])
    run, seen = jax.jit(api.expert_mlp), []
    for seed in range(6):
        company = experts(100 + seed, tokens, 128, 128, 8, 2, unused=seed / 5)[:3]
        at = (seed * 7919) % tokens
        args = [other.at[at].set(one) for other, one in zip(company, mine, strict=True)]
        seen.append(np.asarray(run(*args, gate_up, down)[at]))
    for y in seen[1:]:
        np.testing.assert_array_equal(seen[0], y)


@pytest.mark.parametrize("tokens", [11, 700])
def test_expert_mlp_keeps_nan_with_its_users(tokens):
    x, ids, weights, gate_up, down = experts(8, tokens, 16, 12, 4, 2)
    ids = ids.at[-1].set(4)  # at least one token uses no expert
    run = jax.jit(api.expert_mlp)
    clean, dirty = run(x, ids, weights, gate_up, down), run(x, ids, weights, gate_up.at[2].set(jnp.nan), down)
    users = np.asarray((ids == 2).any(axis=1))
    np.testing.assert_array_equal(clean[~users], dirty[~users])
    assert users.any() and np.isnan(dirty[users]).all()
    unused = np.asarray((ids == 4).all(axis=1))
    assert unused.any() and not np.asarray(dirty[unused]).any()


def test_sort_by_expert_is_stable_and_has_its_inverse():
    ids = jnp.asarray(np.random.default_rng(10).integers(0, 6, (50, 3)), jnp.int32)
    order, inverse, sizes = routing.sort_by_expert(ids, 5)
    np.testing.assert_array_equal(order, np.argsort(np.minimum(ids.ravel(), 5), kind="stable"))
    np.testing.assert_array_equal(order[inverse], np.arange(150))
    np.testing.assert_array_equal(sizes, np.bincount(ids.ravel(), minlength=6)[:5])


def test_no_ragged_dot_on_cpu():
    lhs, rhs, sizes = draw(11, 64, 8, 8, [20, 20])
    text = jax.jit(api.grouped_matmul).lower(lhs, rhs, sizes).as_text()
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
