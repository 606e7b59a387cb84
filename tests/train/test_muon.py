"""Muon's orthogonalisation against optax's own, and the same on a mesh as on one device."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from tests.train.experiment_small import CONFIG as SMALL
from tml_jax.model.interaction import InteractionModel
from tml_jax.train import muon
from tml_jax.train.optimizer import make_optimizer


def test_a_step_is_that_of_optax():
    """optax corrects a young momentum for its age; of one direction that changes only the length."""
    model, train = InteractionModel(SMALL.model), SMALL.train
    tx = make_optimizer(model, train)
    keys = iter(jax.random.split(jax.random.key(0), 1000))

    def draw():
        return jax.tree.map(lambda p: jax.random.normal(next(keys), p.shape), model.abstract)

    params, gradient = draw(), draw()
    gradients = gradient, jax.tree.map(lambda g: 2 * g, gradient)
    roles = jax.tree.map_with_path(
        lambda path, _, r: r if path[0].key == "transformer" else None, model.abstract, model.matrices
    )
    dimensions = jax.tree.map(lambda _, r: r and contrib.MuonDimensionNumbers(*r), model.abstract, roles)
    theirs = optax.chain(
        optax.clip_by_global_norm(train.clip_norm),
        contrib.muon(
            train.learning_rate,
            weight_decay=train.weight_decay,
            weight_decay_mask=jax.tree.map(lambda _, r: r is not None, model.abstract, roles),
            adam_learning_rate=train.adam_learning_rate,
            adam_b2=0.98,
            muon_weight_dimension_numbers=dimensions,
        ),
    )
    found = []
    for transformation in (tx, theirs):
        state = transformation.init(params)
        for now in gradients:
            updates, state = jax.jit(transformation.update)(now, state, params)
        found.append(updates)
    for (path, ours), expected in zip(jax.tree.leaves_with_path(found[0]), jax.tree.leaves(found[1]), strict=True):
        assert np.linalg.norm(ours - expected) <= 1e-4 * np.linalg.norm(expected), jax.tree_util.keystr(path)


def test_in_chunks_as_at_once(monkeypatch):
    x = jax.random.normal(jax.random.key(0), (6, 8, 12))
    roles, axes = [((1,), (2,))], [(None, None, None)]
    whole = muon.orthogonalise([x], roles, axes, jnp.float32)[0]
    monkeypatch.setattr(muon, "_CHUNK", 2 * 8 * 12)
    np.testing.assert_allclose(muon.orthogonalise([x], roles, axes, jnp.float32)[0], whole, atol=1e-5)
    values = np.linalg.svd(np.asarray(whole) / np.sqrt(1.5), compute_uv=False)
    assert values.min() > 0.6 and values.max() < 1.3


SCRIPT = """
import json, re
import jax, jax.numpy as jnp, numpy as np
from tml_jax import sharding
from tml_jax.train import muon

# A stack of experts, cut by experts and rows; a prime number of maps with heads, of two shapes that go together; a map
# of more rows than columns; a lone matrix that every device has a copy of.
shapes = [(3, 4, 16, 2, 24), (5, 16, 4, 8), (2, 16, 4, 8), (32, 16), (7, 9)]
roles = [((2,), (4,)), ((1,), (2, 3)), ((1,), (2, 3)), ((0,), (1,)), ((0,), (1,))]
axes = [(None, "expert", "embed", None, "expert_mlp"), (None, "embed", "heads", None), (None, "embed", "heads", None),
        ("mlp", "embed"), (None, None)]
rng = np.random.default_rng(0)
weights = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
run = lambda xs: muon.orthogonalise(xs, roles, axes, jnp.float32)
alone = jax.jit(run)(weights)
found = {}
for shape in ((8, 1, 1, 1), (1, 2, 4, 1), (1, 2, 2, 2), (2, 4, 1, 1), (1, 1, 4, 2)):
    mesh = sharding.make_mesh(shape)
    with jax.set_mesh(mesh):
        placed = [jax.device_put(w, s) for w, s in zip(weights, (sharding.shardings(a, w, mesh)
                  for a, w in zip(axes, weights)))]
        program = jax.jit(run)
        done = program(placed)
        same = all(d.sharding.is_equivalent_to(p.sharding, p.ndim) for d, p in zip(done, placed))
        text = program.lower(placed).compile().as_text()
    # Of the experts' matrices, how many a device multiplies by their own transpose at once.
    experts = [int(n) for n in re.findall(r"f32\\[(\\d+),16,16\\]\\S* dot\\(", text)]
    error = max(float(np.max(np.abs(a - b))) for a, b in zip(alone, done))
    found[str(shape)] = {"error": error, "same": same, "experts": experts}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def on_meshes():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=os.environ | flags, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_mesh_gives_what_one_device_gives_and_leaves_it_where_it_was(on_meshes):
    for shape, found in on_meshes.items():
        assert found["error"] <= 1e-5 and found["same"], (shape, found)


def test_matrices_are_shared_out(on_meshes):
    """24 of the experts' over 8 devices, wherever they were cut and wherever there were copies."""
    for shape, found in on_meshes.items():
        assert set(found["experts"]) == {3}, (shape, found)
