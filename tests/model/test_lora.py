"""LoRA's gradients on eight devices, fully sharded, experts and tensors cut: those of one device."""

from tests import eight

SCRIPT = """
import json
import jax, numpy as np
from tests.model import tiny
from tml_jax import sharding
from tml_jax.checkpoint.huggingface import flatten
from tml_jax.executor.executor import Executor
from tml_jax.model.interaction import InteractionModel
from tml_jax.model.lora import Lora, LoraConfig

# A dense layer, and two sparse ones that are stacked and scanned.
config = tiny.config(layer_types=("hybrid_sliding", "hybrid", "hybrid"), mlp_layer_types=("dense", "sparse", "sparse"))
model = InteractionModel(config)
lora, rng = Lora(model, LoraConfig(rank=2)), np.random.default_rng(0)
base = tiny.random_params(model)
trained = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), lora.abstract)
x, way = rng.normal(size=(2, 4, 12, 32)).astype(np.float32)

def loss(trained, base):
    hidden, _ = model.net(lora.merge(base, trained)).transformer.sequence(x, remat=True)
    return (hidden * way).sum()

found, cut = [], []
for shape in ((1, 1, 1, 1), (1, 2, 2, 2)):
    executor = Executor.of_shape(shape)
    placed = jax.device_put(trained, executor.shardings(lora.axes, lora.abstract))
    frozen = jax.device_put(base, executor.shardings(model.axes, model.abstract))
    found.append(flatten(jax.device_get(executor.program(jax.grad(loss))(placed, frozen))))
    cut.append(sum(not x.sharding.is_fully_replicated for x in jax.tree.leaves(placed)))
one, eight = ({k: v for k, v in g.items() if k.endswith((".lora_a", ".lora_b"))} for g in found)
print(json.dumps({
    "off": max(float(np.abs(one[k] - eight[k]).max() / np.abs(one[k]).max()) for k in one),
    "smallest": min(float(np.abs(v).max()) for v in one.values()),
    "cut": cut,
}))
"""


def test_gradients_on_eight_devices_are_those_of_one():
    found = eight.run(SCRIPT)
    assert found["smallest"] > 1e-3 and found["off"] <= 1e-5
    assert found["cut"][0] == 0 and found["cut"][1] > 20
