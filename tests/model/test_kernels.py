"""The whole model through the TPU kernels, interpreted, beside the same model through their references."""

import jax
import numpy as np

from pallas_kernels import platform
from tests.model import tiny
from tml_jax.model.interaction import InteractionModel
from tml_jax.streams.micro_turn import empty_output


def test_gradients_through_the_kernels_match_the_references():
    """Every weight's gradient, relative to the largest of that weight."""
    config = tiny.config(layer_types=("hybrid_sliding", "hybrid"), mlp_layer_types=("dense", "sparse"))
    model = InteractionModel(config)
    params = tiny.random_params(model)
    inputs = tiny.random_inputs(config.stream, slots=2, turns=12)
    outputs = empty_output(config.stream, (2, 12))
    rng = np.random.default_rng(1)
    outputs.num_tokens[:] = inputs.active
    outputs.tokens[:] = rng.integers(0, 48, outputs.tokens.shape)
    batch = tiny.pack(inputs, outputs)
    weight = rng.normal(size=(2, 12, 1, config.text.vocab_size)).astype(np.float32)

    def gradients(implementation):
        def loss(params):
            predictions = model.forward(params, *batch, 64)
            return (predictions.logits * weight * predictions.real[..., None]).sum()

        with platform.forced(implementation):
            return jax.jit(jax.value_and_grad(loss))(params)

    (value, ours), (expected, theirs) = gradients("interpret"), gradients("reference")
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    flat = jax.tree_util.tree_leaves_with_path(theirs)
    moved = 0
    for (path, b), a in zip(flat, jax.tree.leaves(ours), strict=True):
        scale = float(np.max(np.abs(b)))
        moved += scale > 0
        assert float(np.max(np.abs(a - b))) <= 1e-5 * scale, jax.tree_util.keystr(path)
    assert moved > 30
