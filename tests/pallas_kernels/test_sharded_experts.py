"""Experts cut over eight devices give what one device gives, each way; and which way is chosen."""

import os

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding, PartitionSpec

from pallas_kernels import platform
from pallas_kernels.sharded_experts import bench, exchange
from pallas_kernels.sharded_experts.api import Placement, routed_experts
from pallas_kernels.sharded_experts.cost import Exchange, torus
from pallas_kernels.static.compile import ENVIRONMENT
from tests import eight
from tml_jax.perf import hlo

SCRIPT = """
import json
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType
from pallas_kernels.grouped_matmul.reference import expert_mlp
from pallas_kernels.sharded_experts.api import Placement, routed_experts

T, D, F, E, K = 512, 16, 24, 16, 3
keys = jax.random.split(jax.random.key(0), 6)
x, weights, grad = (jax.random.normal(k, s) for k, s in zip(keys, ((T, D), (T, K), (T, D))))
gate_up, down = jax.random.normal(keys[3], (2, E, 2, D, F)) / 4, jax.random.normal(keys[4], (2, E, F, D)) / 5
even = jax.random.randint(keys[5], (T, K), 0, E + 1)  # E: no expert
ids = {"even": even, "all on one device": even % 3, "no expert": jnp.full_like(even, E)}

def with_gradients(f, *args):
    y, vjp = jax.vjp(f, *args)
    return y, *vjp(grad.astype(y.dtype))

found = {}
def compare(name, shape, placement, which, stacked):
    mesh = jax.make_mesh(shape, ("data", "fsdp", "expert", "tensor"), axis_types=(AxisType.Auto,) * 4)
    chosen, layer = ids[which], jnp.int32(1) if stacked else None
    weight = (gate_up, down) if stacked else (gate_up[1], down[1])
    with jax.set_mesh(mesh):
        place = Placement(jax.sharding.get_abstract_mesh(), **placement)
        ours = jax.jit(lambda *a: with_gradients(
            lambda x, w, g, d: routed_experts(x, chosen, w, g, d, layer, place), *a))(x, weights, *weight)
    theirs = jax.jit(lambda *a: with_gradients(lambda x, w, g, d: expert_mlp(x, chosen, w, g, d), *a))(
        x, weights, gate_up[1], down[1])
    if stacked:
        for wrong in (a[0] for a in ours[3:]):
            assert not np.any(wrong), "a gradient of the other layer"
        ours = (*ours[:3], *(a[1] for a in ours[3:]))
    found[name] = max(float(jnp.max(jnp.abs(a - b)) / (jnp.max(jnp.abs(b)) + 1e-6)) for a, b in zip(ours, theirs))

def cut(way, tokens=("data", "fsdp", "expert"), width=None):
    return dict(tokens=(tokens,), experts="expert", hidden="tensor", width=width, way=way)

for way in ("all_gather", "all_to_all"):
    for which in ids:
        compare(f"{way}, {which}", (1, 1, 8, 1), cut(way), which, stacked=False)
    compare(f"{way}, four axes", (1, 2, 2, 2), cut(way, width="fsdp"), "even", stacked=True)
compare("tokens everywhere", (2, 1, 2, 2), cut(None, tokens=("data",)), "even", stacked=True)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found():
    return eight.run(SCRIPT)


def test_eight_devices_equal_one(found):
    """Values and all gradients, both ways, with even and with hopelessly uneven choices."""
    assert len(found) == 9
    assert max(found.values()) <= 1e-5, found


def chip(name):
    return pltpu.get_tpu_info_for_chip(*platform.CHIPS[name])


@pytest.mark.parametrize("name", platform.CHIPS)
def test_small_groups_gather_and_large_ones_exchange(name):
    ways = [Exchange(8192, 6, 8192, devices).cheaper(chip(name)) for devices in (2, 8, 32)]
    assert ways == ["all_gather", "all_to_all", "all_to_all"]


@pytest.mark.parametrize("name", platform.CHIPS)
def test_the_bench_takes_the_way_that_it_shows_to_be_faster(name):
    text, rows = bench.table(name)
    for row in rows:
        faster = "all_gather" if row["all_gather_s"] <= row["all_to_all_s"] else "all_to_all"
        assert row["chosen"] == ("all_gather" if row["few"] else faster)
    assert {row["chosen"] for row in rows} == {"all_gather", "all_to_all"}
    assert len(text.splitlines()) == len(rows) + 2


def test_the_sides_of_a_torus():
    assert torus(8, 3) == (2, 2, 2) and torus(32, 2) == (8, 4) and torus(6, 2) == (3, 2) and torus(1, 2) == (1, 1)


def compile_layer(topology, way, tokens, k, d=4096, f=2048, experts=256):
    """What a training step's routed experts compile to, forward and backward, on an expert group of eight devices."""
    pytest.importorskip("libtpu")
    os.environ.update(ENVIRONMENT)
    slice_ = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    mesh = topologies.make_mesh(slice_, (1, 1, 8, 1), ("data", "fsdp", "expert", "tensor"))
    placement = Placement(mesh.abstract_mesh, (("expert",),), "expert", None, None, way)

    def array(shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec("expert")))

    def step(x, weights, gate_up, down, ids, grad):
        y, vjp = jax.vjp(
            lambda *args: routed_experts(*args[:1], ids, *args[1:], None, placement), x, weights, gate_up, down
        )
        return y, vjp(grad)

    rows = array((8 * tokens, d))
    arrays = [rows, array((8 * tokens, k)), array((experts, 2, d, f)), array((experts, f, d))]
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        compiled = jax.jit(step).lower(*arrays, array((8 * tokens, k), jnp.int32), rows).compile()
    return hlo.analyse(compiled.as_text()), compiled.memory_analysis()


@pytest.mark.tpu_compile
@pytest.mark.parametrize("topology", ["v5p:2x2x2", "v6e:2x4"])
def test_a_training_layer_compiles_and_moves_what_the_choice_counts(topology):
    """The program's collectives have the bytes that `cost` weighs; travelling choices need less memory."""
    tokens, k, row, devices = 8192, 6, 2 * 4096, 8
    gathered, memory = compile_layer(topology, "all_gather", tokens, k=k)
    moved = {c.kind: c for c in gathered.collectives}
    assert "ragged-all-to-all" not in moved
    # x forward, and the gradient of the result backward; expert ids and weights are small.
    assert moved["all-gather"].bytes == pytest.approx(2 * devices * tokens * row, rel=0.01)
    sent, less_memory = compile_layer(topology, "all_to_all", tokens, k=k)
    ragged = next(c for c in sent.collectives if c.kind == "ragged-all-to-all")
    # There and back; for the gradients there once more, with those of the results, and back. With them, but for the
    # results, travel the choices' weights, each in a tile's 128 lanes.
    room, choices, scale = exchange.room(tokens * k, devices), tokens * k, 4 * 128
    assert ragged.count == 8
    assert ragged.bytes == (3 * room + 2 * choices) * row + (2 * room + choices) * scale
    assert less_memory.temp_size_in_bytes < memory.temp_size_in_bytes / 3
