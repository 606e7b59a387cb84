"""`launch.serve`, one process of it, which also writes what the model wrote; ``--checkpoint=fake``: the fake model.

python -m tests.serve.pod_server OUT.npz --checkpoint=...
"""

import dataclasses
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from tests.serve.fakes import fake_bundle
from tml_jax.executor.executor import Executor
from tml_jax.executor.live import LiveModel
from tml_jax.serve import bundle

Written = dict[str, np.ndarray]


def recorded(written: Written) -> Callable[..., Any]:
    """A `LiveModel.step` that notes what it returns, by the session's seed, the micro-turn and the name."""
    step = LiveModel.step

    def stepped(self: LiveModel, params: Any, state: Any, inputs: Any, keys: np.ndarray) -> Any:
        state, outputs = step(self, params, state, inputs, keys)
        host = jax.device_get(outputs)
        for slot in np.flatnonzero(inputs.active):
            for name, values in vars(host).items():
                written[f"{keys[slot, 1]} {inputs.turn[slot]} {name}"] = values[slot]
        return state, outputs

    return stepped


def main(argv: list[str], serve: Callable[[list[str]], None]) -> None:
    """Runs it."""
    out, load = argv.pop(1), bundle.load_bundle

    def loaded(checkpoint: str, executor: Executor, dtype: str, int8: bool) -> bundle.ModelBundle:
        if checkpoint != "fake":
            return load(checkpoint, executor, dtype, int8)
        fake = fake_bundle(pathlib.Path(out).parent)
        return dataclasses.replace(fake, params=jax.device_get(fake.params), executor=executor)

    written: Written = {}
    LiveModel.step, bundle.load_bundle = recorded(written), loaded  # type: ignore[method-assign,assignment]
    serve(argv)
    if jax.process_index() == 0:
        np.savez(out, **written)  # type: ignore[arg-type]


if __name__ == "__main__":
    from launch import cli, serve  # here: its flags have the names of other commands', whose tests import this module

    sys.argv[1:2], path = [], sys.argv[1]
    cli.run(lambda argv: main([argv[0], path, *argv[1:]], serve.main))
