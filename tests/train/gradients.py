"""Loss and gradients of the shipped `inkling_tiny` on meshes, by one process or several; see `test_gradients`.

    python -m tests.train.gradients OUT 8,1,1,1 1,2,4,1 2/1,2,4,1 [ADDRESS PROCESSES ID]

writes one ``OUT/<mesh>.npz`` a mesh: "loss", "cut" (how many weights are), and the gradient of each weight by its path.
A number before a mesh is that of the windows; they are longer ones then.
"""

import dataclasses
import math
import pathlib
import sys

import jax
import numpy as np
from jax import lax
from jax._src.lax.parallel import reduce_scatter_p
from jax.interpreters import mlir

from tml_jax import sharding
from tml_jax.checkpoint.store import load_params
from tml_jax.data.pipeline import Pipeline
from tml_jax.train.config import load_experiment
from tml_jax.train.trainer import Trainer

TOKENIZER = "checkpoints/inkling_tiny/tokenizer.json"


def experiment(windows):
    """The config itself, but for a batch of eight short windows, or a few longer ones with chunks in the loss."""
    config = load_experiment("configs/inkling_tiny.py")
    turns, tokens, loss_turns = (64, 128, 24) if windows else (12, 32, None)
    shares = dataclasses.replace(config.data.shares, count=20.0)  # pictures have to matter, or only noise is compared
    data = dataclasses.replace(config.data, shares=shares, window_turns=turns, window_tokens=tokens, group=1)
    train = dataclasses.replace(config.train, batch_size=windows or 8, loss_turns=loss_turns)
    return dataclasses.replace(config, data=data, train=train)


def gradients(mesh, windows):
    """The loss of the first batch, its gradients and how many of the weights are cut."""
    config = experiment(windows)
    trainer = Trainer(config, mesh)
    groups = trainer.groups()
    pipeline = Pipeline(config.data, config.model.stream, TOKENIZER, config.train.batch_size, "train", groups)
    _, params = load_params("checkpoints/inkling_tiny", mesh=mesh)
    # Off the optimum, where the gradients of the flow head are small differences of large sums.
    params = jax.tree.map(lambda x: 1.1 * x, params)

    program = trainer.executor.program(trainer.gradients, out_shardings=trainer.executor.sharding())
    found, out = jax.device_get(program(params, trainer.place(next(pipeline.batches())), jax.random.key(0)))
    cut = sum(not x.sharding.is_fully_replicated for x in jax.tree.leaves(params))
    return out.metrics["loss"], found, cut


def reduce_scatter(x, *, scatter_dimension, axis_name, axis_size, tiled, **_):
    """By an all-reduce: on a CPU the collective itself gives wrong numbers above 256 KiB (jax-ml/jax#40830)."""
    assert tiled
    size = x.shape[scatter_dimension] // axis_size
    return lax.dynamic_slice_in_dim(lax.psum(x, axis_name), lax.axis_index(axis_name) * size, size, scatter_dimension)


def main(out, *arguments):
    """Runs it."""
    shapes = [argument for argument in arguments if "," in argument]
    if pod := [argument for argument in arguments if "," not in argument]:
        jax.distributed.initialize(pod[0], int(pod[1]), int(pod[2]))
        mlir.register_lowering(reduce_scatter_p, mlir.lower_fun(reduce_scatter, multiple_results=False))
    for shape in shapes:
        windows, _, sizes = shape.rpartition("/")
        sizes = tuple(map(int, sizes.split(",")))
        mesh = sharding.make_mesh(sizes, jax.devices()[: math.prod(sizes)])
        loss, found, cut = gradients(mesh, int(windows or 0))
        if jax.process_index() == 0:
            leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(found)}
            np.savez(pathlib.Path(out) / f"{shape.replace('/', 'x')}.npz", loss=loss, cut=cut, **leaves)


if __name__ == "__main__":
    main(*sys.argv[1:])
