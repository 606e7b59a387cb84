"""The forms that a GPU gets, lowered for CUDA on a machine without one: no loop, and nothing that only a CPU has."""

import functools

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import platform
from pallas_kernels.expert_gemv.api import expert_gemv
from pallas_kernels.grouped_matmul.api import expert_mlp, grouped_matmul, grouped_swiglu
from pallas_kernels.prefill_attention.api import prefill_attention
from pallas_kernels.streaming_attention.api import streaming_attention
from pallas_kernels.streaming_attention.cache import empty_cache


def f32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def i32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def experts(num, lead=()):
    return f32(*lead, num, 2, 16, 24), f32(*lead, num, 24, 16)


def stacked_gemv(x, ids, weights, gate_up, down, layer):
    return expert_gemv(x, ids, weights, gate_up, down, layer=layer)


def attention(t, **kwargs):
    """Prefill attention of t tokens, and its arguments."""
    arrays = f32(2, t, 4, 8), f32(2, t, 2, 8), f32(2, t, 2, 8), f32(2, t, 4, 4), f32(4, 24)
    return functools.partial(prefill_attention, **kwargs), (*arrays, i32(2, t))


def stream(q, k, v, r, profiles, start, count):
    cache = empty_cache(2, 2, 80, 8, jnp.float32)
    return streaming_attention(q, k, v, r, profiles, cache, start, count, window=60, sinks=16, key_block=None)


OPS = {
    "grouped_matmul": (grouped_matmul, (f32(200, 16), f32(40, 16, 24), i32(40))),
    "grouped_swiglu": (grouped_swiglu, (f32(200, 16), experts(40)[0], i32(40))),
    "few experts": (expert_mlp, (f32(200, 16), i32(200, 2), f32(200, 2), *experts(8))),
    "many experts": (expert_mlp, (f32(200, 16), i32(200, 2), f32(200, 2), *experts(40))),
    "decoding, own experts": (stacked_gemv, (f32(3, 16), i32(3, 2), f32(3, 2), *experts(8, (3,)), i32())),
    "decoding, all experts": (stacked_gemv, (f32(9, 16), i32(9, 2), f32(9, 2), *experts(8, (3,)), i32())),
    "windows": attention(70, window=16),
    "sinks": attention(70, window=16, sinks=8),
}


def loops_and_calls(f, *args):
    """Lines of the program for CUDA that are a loop or call what is no part of it."""
    with platform.forced("gpu"):
        text = jax.jit(f).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
    assert "stablehlo.dot_general" in text
    return [line for line in text.splitlines() if "stablehlo.while" in line or "custom_call" in line]


@pytest.mark.parametrize("name", OPS)
def test_an_op_and_its_gradient_have_no_loops(name):
    f, args = OPS[name]
    floats = [i for i, x in enumerate(args) if x.dtype == jnp.float32]

    def loss(*args):
        return jnp.sum(jnp.sin(f(*args)))

    assert not loops_and_calls(jax.value_and_grad(loss, floats), *args)


def test_attention_of_a_stream_has_no_loops():
    arrays = f32(2, 5, 4, 8), f32(2, 5, 2, 8), f32(2, 5, 2, 8), f32(2, 5, 4, 4), f32(4, 24)
    assert not loops_and_calls(stream, *arrays, i32(2), i32(2))
