"""The experts of a few tokens, on CPU and as the TPU kernel: against the oracle, each token for itself."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import platform
from pallas_kernels.expert_gemv import api, tpu, workloads
from pallas_kernels.expert_gemv.api import expert_gemv
from pallas_kernels.int8 import Int8Weight
from tests.pallas_kernels import tpu_compiler
from tests.pallas_kernels.checked import no_races

IMPLEMENTATIONS = ("cpu", "gpu", "interpret")
# (T, D, F, E, k)
SHAPES = {"one": (1, 24, 20, 8, 2), "few": (11, 130, 40, 8, 3)}


def draw(shape, seed, unused=0.2, int8=False):
    tokens, d, f, num, k = shape
    rng = np.random.default_rng(seed)
    ids = np.argsort(rng.random((tokens, num)), axis=1)[:, :k]
    ids = jnp.asarray(np.where(rng.random((tokens, k)) < unused, num, ids), jnp.int32)
    x, weights = (jnp.asarray(a, jnp.float32) for a in (rng.standard_normal((tokens, d)), rng.random((tokens, k))))
    if int8:
        experts = [rng.integers(-127, 128, s) for s in ((num, 2, d, f), (num, f, d))]
        scales = [jnp.float32(rng.random(s) / 500) for s in ((num, 2, 1, f), (num, 1, d))]
        return x, ids, weights, *(Int8Weight(jnp.asarray(a, jnp.int8), s) for a, s in zip(experts, scales, strict=True))
    experts = rng.standard_normal((num, 2, d, f)) / np.sqrt(d), rng.standard_normal((num, f, d)) / np.sqrt(f)
    return x, ids, weights, *(jnp.asarray(a, jnp.float32) for a in experts)


@functools.cache
def compiled(implementation):
    @jax.jit
    def run(*args):
        with platform.forced(implementation):
            return expert_gemv(*args)

    return run


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("int8", [False, True], ids=["float32", "int8"])
@pytest.mark.parametrize("name", SHAPES)
def test_matches_the_reference(implementation, int8, name):
    @hypothesis.settings(max_examples=60, deadline=None)
    @hypothesis.given(st.integers(0, 9999), st.sampled_from([0.0, 0.3, 0.9, 1.0]))
    def run(seed, unused):
        args = draw(SHAPES[name], seed, unused, int8)
        expected = compiled("reference")(*args)
        size = max(1.0, float(jnp.max(jnp.abs(expected))))
        np.testing.assert_allclose(compiled(implementation)(*args) / size, expected / size, atol=1e-5)

    run()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_every_pattern_of_used_experts(implementation):
    """All 2^8: two tokens choose among the experts of the pattern, or none where it is empty."""
    x, _, weights, gate_up, down = draw((8, 24, 20, 8, 1), 0)
    for pattern in range(256):
        used = [e for e in range(8) if pattern >> e & 1]
        ids = jnp.asarray([[used[i % len(used)] if used else 8] for i in range(8)], jnp.int32)
        args = (x, ids, weights, gate_up, down)
        np.testing.assert_allclose(compiled(implementation)(*args), compiled("reference")(*args), atol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("int8", [False, True], ids=["float32", "int8"])
def test_a_layer_of_many_is_that_layer(implementation, int8):
    x, ids, weights, gate_up, down = draw(SHAPES["few"], 1, int8=int8)
    stacked = jax.tree.map(lambda a: jnp.stack([a + 1, a, (a * jnp.nan).astype(a.dtype)]), [gate_up, down])
    y = compiled(implementation)(x, ids, weights, *stacked, jnp.int32(1))
    np.testing.assert_array_equal(y, compiled(implementation)(x, ids, weights, gate_up, down))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_token_does_not_depend_on_the_others(implementation):
    """In other company, at other places, as one of 1, 16 and 64 (a GPU: of one number only): the same bits."""
    x, ids, weights, gate_up, down = draw((1, 128, 128, 8, 2), 2, unused=0)
    seen = [] if implementation == "gpu" else [compiled(implementation)(x, ids, weights, gate_up, down)[0]]
    for tokens in (64,) if implementation == "gpu" else (16, 64):
        for seed in range(3):
            company = draw((tokens, 128, 128, 8, 2), 100 + seed, unused=seed / 3)[:3]
            at = (7919 * seed + 3) % tokens
            args = [other.at[at].set(one[0]) for other, one in zip(company, (x, ids, weights), strict=True)]
            seen.append(compiled(implementation)(*args, gate_up, down)[at])
    for y in seen[1:]:
        np.testing.assert_array_equal(seen[0], y)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_nan_stays_with_its_users(implementation):
    x, ids, weights, gate_up, down = draw(SHAPES["few"], 3)
    clean = compiled(implementation)(x, ids, weights, gate_up, down)
    dirty = compiled(implementation)(x.at[0].set(jnp.nan), ids, weights, gate_up.at[2].set(jnp.nan), down)
    users = np.array((ids == 2).any(axis=1))
    users[0] |= bool((ids[0] < 8).any())
    assert users.any() and not users.all() and np.isnan(dirty[users]).all()
    np.testing.assert_array_equal(clean[~users], dirty[~users])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradients_match_the_reference(implementation):
    x, ids, weights, gate_up, down = draw(SHAPES["few"], 4)

    def gradients(name):
        def loss(x, weights, gate_up, down):
            with platform.forced(name):
                return jnp.sum(jnp.sin(expert_gemv(x, ids, weights, gate_up, down)))

        def run(*args):
            with platform.forced(name):  # the backward pass is traced after the loss
                return jax.grad(loss, argnums=(0, 1, 2, 3))(*args)

        return jax.jit(run)(x, weights, gate_up, down)

    for a, b in zip(gradients(implementation), gradients("reference"), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, float(jnp.max(jnp.abs(b)))))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_all_tokens_choose_the_same_expert(implementation):
    """Also twice, which counts twice."""
    x, _, weights, *experts = draw((40, 24, 20, 8, 2), 8)
    for pair in ([5, 8], [5, 5], [5, 0]):
        args = x, jnp.broadcast_to(jnp.asarray(pair, jnp.int32), weights.shape), weights, *experts
        np.testing.assert_allclose(compiled(implementation)(*args), compiled("reference")(*args), atol=2e-5)


def test_no_races_and_no_stray_reads():
    for seed, unused in ((5, 0.2), (6, 1.0)):
        args = draw((5, 24, 20, 8, 2), seed, unused)
        with no_races():
            y = jax.block_until_ready(compiled("checked")(*args))
        np.testing.assert_allclose(y, compiled("reference")(*args), atol=1e-5)


def test_a_call_is_few_by_its_shape():
    assert api.is_few(11, 2) and api.is_few(128, 2) and not api.is_few(129, 2) and not api.is_few(0, 2)
    with platform.forced("interpret"):
        assert api.is_few(tpu.MAX_TOKENS, 6) and not api.is_few(tpu.MAX_TOKENS + 1, 6)


def test_wrong_shapes_are_refused():
    x, ids, weights, gate_up, down = draw(SHAPES["few"], 7)
    with pytest.raises(ValueError, match="expert_gemv needs x"):
        expert_gemv(x, ids, weights[:, :1], gate_up, down)
    with pytest.raises(ValueError, match="with float32 scales"):
        expert_gemv(x, ids, weights, gate_up.astype(jnp.int8), down.astype(jnp.int8))


@pytest.mark.tpu_compile
@pytest.mark.parametrize("chip", sorted(platform.CHIPS))
@pytest.mark.parametrize("workload", workloads.WORKLOADS, ids=lambda w: w.name)
def test_compiles_for_every_chip(chip, workload):
    f, args = workload.call()
    text = tpu_compiler.compile_for(chip, f, *args).as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 1
    assert not tpu_compiler.large_copies(text, 1 << 28)
