"""What the programs of `inkling_tiny` move between eight devices, and which experts' weights they copy, as JSON."""

import collections
import dataclasses
import json
import math
import sys

import jax

from tml_jax import sharding
from tml_jax.executor.executor import Executor
from tml_jax.executor.live import LiveModel
from tml_jax.model.interaction import InteractionModel
from tml_jax.perf import hlo
from tml_jax.streams import packed
from tml_jax.train.config import load_experiment
from tml_jax.train.trainer import Trainer

MESH, WINDOWS, SESSIONS = (1, 2, 2, 2), 8, 8


def summary(compiled: jax.stages.Compiled, model: InteractionModel) -> dict[str, int]:
    """Runs of each collective, and copies and transposes of as many bytes as a device's experts of a layer."""
    experts = 4 * math.prod(model.abstract["transformer"]["unit_0"]["mlp"]["down"].shape[1:]) // math.prod(MESH)
    text = compiled.as_text()
    found: collections.Counter[str] = collections.Counter()
    for collective in hlo.analyse(text).collectives:
        found[collective.kind] += collective.count
    for operations in hlo.parse(text)[0].values():
        for operation in operations:
            if operation.kind in ("copy", "transpose") and hlo.num_bytes(operation.type) >= experts:
                found["copies"] += 1
    return dict(sorted(found.items()))


def train_step() -> dict[str, dict[str, int]]:
    """Of a training step."""
    experiment = load_experiment("configs/inkling_tiny.py")
    experiment = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, batch_size=WINDOWS))
    trainer = Trainer(experiment, sharding.make_mesh(MESH))
    space, group, stream = experiment.data.room, experiment.data.group, experiment.model.stream
    packs = (WINDOWS // group, group * space.patches, group * space.speech)
    batch = packed.abstract(stream, (WINDOWS, space.turns), *packs)
    batch = trainer.executor.abstract(batch, sharding.leading("batch", batch))
    return {"train_step": summary(trainer.lower(trainer.abstract_state(), batch).compile(), trainer.model)}


def micro_turn() -> dict[str, dict[str, int]]:
    """Of a micro-turn, each block."""
    model = InteractionModel(load_experiment("configs/inkling_tiny.py").model)
    live = LiveModel(Executor(sharding.make_mesh(MESH)), model, model.config.stream, SESSIONS)
    params = live.executor.abstract(model.abstract, model.axes)
    return {rung.name: summary(live.lower_step(params, rung).compile(), model) for rung in live.rungs}


if __name__ == "__main__":
    print(json.dumps({"train_step": train_step, "micro_turn": micro_turn}[sys.argv[1]]()))
