"""A live step of int8 weights: that of the floats that they stand for, wherever they lie, and none of those is made."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.int8 import Int8Weight, einsum
from tests import eight
from tests.model import tiny
from tml_jax.checkpoint.quantize import quantize
from tml_jax.checkpoint.weights import flatten, place_params
from tml_jax.executor.executor import Executor
from tml_jax.executor.live import LiveModel
from tml_jax.model.interaction import InteractionModel
from tml_jax.model.quantized import as_int8
from tml_jax.perf import hlo

SCRIPT = """
import json
import jax, jax.numpy as jnp, numpy as np
from pallas_kernels.int8 import Int8Weight
from tests.model import tiny
from tml_jax import sharding
from tml_jax.checkpoint.weights import flatten, place_params
from tml_jax.executor.executor import Executor
from tml_jax.executor.live import LiveModel
from tml_jax.model.interaction import InteractionModel
from tml_jax.model.quantized import as_int8

config = tiny.config(layer_types=("hybrid_sliding", "hybrid", "hybrid"), mlp_layer_types=("dense", "sparse", "sparse"))
model = InteractionModel(config)
int8 = as_int8(model)
weights = flatten(tiny.random_params(model))
kept = place_params(int8, weights)
floats = jax.tree.map(jnp.asarray, kept, is_leaf=lambda x: isinstance(x, Int8Weight))
inputs = tiny.random_inputs(config.stream, 8, 5)

def run(executor, params):
    live = LiveModel(executor, model, config.stream, 8)
    state, found = live.init(), []
    for t in range(5):
        now = jax.tree.map(lambda x: x[:, t], inputs)
        state, out = live.step(params, state, now, np.zeros((8, 2), np.uint32))
        found.append(jax.device_get(out))
    return found, jax.device_get(state)

def difference(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    sizes = [(np.asarray(x, np.float64), np.asarray(y, np.float64)) for x, y in pairs]
    return max(float(np.max(np.abs(x - y), initial=0) / max(1, np.max(np.abs(x), initial=0))) for x, y in sizes)

wanted, result = run(Executor(), floats), {}
result["one"] = difference(wanted, run(Executor(), kept))
for shape in ((2, 1, 2, 2), (1, 2, 2, 2)):
    mesh = sharding.make_mesh(shape)
    placed = place_params(int8, weights, sharding.shardings(int8.axes, int8.abstract, mesh))
    for one, other in zip(jax.tree.leaves(placed), jax.tree.leaves(kept), strict=True):
        np.testing.assert_array_equal(one, other)
    experts = placed["transformer"]["unit_0"]["mlp"]["gate_up"]
    result[str(shape)] = difference(wanted, run(Executor(mesh), placed))
    result["parts"] = [experts.values.size // experts.values.addressable_shards[0].data.size,
                       experts.scale.size // experts.scale.addressable_shards[0].data.size]
print(json.dumps(result))
"""


def test_the_live_step_is_that_of_the_floats_on_one_device_and_on_eight():
    """float32: outputs and the whole state after five micro-turns, to 1e-5 of the largest of each array."""
    found = eight.run(SCRIPT)
    assert found.pop("parts") == [8, 4]  # over fsdp, experts and tensor; a scale has no input axis, which fsdp cuts
    assert max(found.values()) <= 1e-5, found


@pytest.mark.parametrize("spec", ["...d,vd->...v", "td,sdf->tsf", "tsf,sfd->td", "tsk,tkn->tsn", "td,epdf->ptef"])
def test_a_product_is_that_with_the_weight(spec):
    of_x, of_w, out = spec.replace("->", ",").split(",")
    rng, sizes = np.random.default_rng(0), dict(zip("tsdfvknep", (5, 3, 8, 6, 7, 4, 2, 3, 2), strict=True))
    x = jnp.asarray(rng.normal(size=[sizes[a] for a in of_x.replace("...", "t")]), jnp.float32)
    shared = tuple(i for i, a in enumerate(of_w) if a in of_x and a not in out and (a, out) != ("s", "td"))
    weight = Int8Weight(*map(jnp.asarray, quantize(rng.normal(size=[sizes[a] for a in of_w]), shared)))
    np.testing.assert_allclose(einsum(spec, x, weight), jnp.einsum(spec, x, jnp.asarray(weight)), rtol=1e-5, atol=1e-5)


def test_a_part_is_the_part_of_the_whole():
    rng = np.random.default_rng(0)
    weight = Int8Weight(*map(jnp.asarray, quantize(rng.normal(size=(4, 3, 6, 5)), (2,))))
    whole, ids = jnp.asarray(weight), jnp.asarray([3, 0, 3])
    for index in (..., 2, (slice(None), 1), (slice(1, 3), slice(None), slice(2, 4)), (1, 2, 3), ids):
        np.testing.assert_array_equal(weight[index], whole[index])


@pytest.mark.parametrize("slots", [4, 40])  # with few rows and with many, which are two kernels
def test_no_float_of_a_layers_experts_is_made(slots):
    """Of a scanned layer's experts, one at a time is; and the program takes a quarter of the bytes."""
    config = tiny.config(
        layer_types=("hybrid_sliding", "hybrid", "hybrid"),
        mlp_layer_types=("dense", "sparse", "sparse"),
        n_routed_experts=8,
        hidden_size=96,
    )
    model = InteractionModel(config)
    live, read = LiveModel(Executor(), model, config.stream, slots), {}
    for name, kept in (("float", model), ("int8", as_int8(model))):
        compiled = live.lower_step(live.executor.abstract(kept.abstract, kept.axes), live.rungs[-1]).compile()
        down = kept.abstract["transformer"]["unit_0"]["mlp"]["down"]
        experts = 4 * math.prod(down.shape[1:])
        made = [
            operation.type
            for operations in hlo.parse(compiled.as_text())[0].values()
            for operation in operations
            if operation.kind in ("fusion", "convert", "multiply", "copy", "transpose") and "f32[" in operation.type
            if hlo.num_bytes(operation.type) >= experts and ",24,96]" in operation.type
        ]
        read[name] = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(kept.abstract))
        # A CPU takes a layer out of the stack where rows are many: of floats that is such an array, of int8 not.
        assert bool(made) == (name == "float" and slots == 40), made
    assert read["int8"] < 0.3 * read["float"]


def test_what_is_stored_as_int8_stays_as_it_is():
    model = InteractionModel(tiny.config())
    weights = flatten(tiny.random_params(model))
    made = place_params(as_int8(model), weights)
    stored = {path: jax.device_get(x) for path, x in flatten(made).items()}
    again = place_params(as_int8(model), stored)
    jax.tree.map(np.testing.assert_array_equal, again, made)
    assert again["transformer"]["unembed"].values.dtype == jnp.int8
