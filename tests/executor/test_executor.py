import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import platform
from tests.model import tiny
from tml_jax.executor.executor import Executor, compilations
from tml_jax.executor.live import LiveModel, ladder
from tml_jax.model.interaction import InteractionModel
from tml_jax.streams.micro_turn import empty_input
from tml_jax.train.config import load_experiment

SLOTS = 2


def test_the_implementation_is_an_argument_of_what_is_compiled():
    """The same function, the same arguments: each executor compiles it its own way, whoever comes first."""

    def name(x: jax.Array) -> jax.Array:
        return x + ("reference", "cpu", "gpu").index(platform.implementation())

    mesh = Executor().mesh
    programs = [Executor(mesh, one).program(name) for one in ("gpu", "reference", "cpu")]
    assert [int(run(0)) for run in (*programs, *programs)] == [2, 0, 1] * 2


def test_a_program_takes_over_the_memory_of_what_it_is_given():
    x = jnp.zeros(3)
    add = Executor().program(lambda x, y: x + y, donate=0)
    assert add(x, np.ones(3)).tolist() == [1, 1, 1] and x.is_deleted()


@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (1, 2, 2, 2)])
def test_more_devices_than_there_are_are_refused(shape):
    with pytest.raises(ValueError, match=r"needs \d devices; there are 1"):
        Executor.of_shape(shape)


@pytest.fixture(scope="module")
def live() -> tuple[LiveModel, InteractionModel]:
    config = tiny.config(layer_types=("hybrid_sliding", "hybrid"), mlp_layer_types=("dense", "sparse"))
    config = dataclasses.replace(config, stream=dataclasses.replace(config.stream, max_text=10))
    model = InteractionModel(config)
    return LiveModel(Executor(), model, config.stream, SLOTS), model


@pytest.mark.parametrize(("name", "lengths"), [("small", (4, 36, 76, 108)), ("tiny", (2, 10))])
def test_a_ladder_of_blocks_without_rungs_that_save_little(name, lengths):
    spec = load_experiment(f"configs/inkling_{name}.py").model.stream
    rungs = ladder(spec)
    assert tuple(spec.audio_tokens + rung.patches + rung.text for rung in rungs) == lengths
    assert rungs[-1].holds(spec.max_patches, spec.max_text)


def test_nothing_compiles_after_the_warm_up(live):
    programs, model = live
    params = jax.device_put(tiny.random_params(model))
    state = programs.warm_up(params)
    before = compilations.count
    inputs = tiny.random_inputs(model.config.stream, SLOTS, 4)
    inputs.num_text[:] *= np.arange(4) % 2
    assert len(programs.rungs) == 2
    for turn in range(4):
        now = jax.tree.map(lambda x, t=turn: x[:, t], inputs)
        state, _ = programs.step(params, state, now, np.zeros((SLOTS, 2), np.uint32))
        state = programs.reset(state, np.array([False, True]))
    assert compilations.count == before


def test_what_is_compiled_ahead_of_time_is_what_runs(live):
    programs, model = live
    params = jax.device_put(tiny.random_params(model), programs.executor.shardings(model.axes, model.abstract))
    inputs, keys = empty_input(model.config.stream, (SLOTS,)), np.zeros((SLOTS, 2), np.uint32)
    for rung in programs.rungs:
        running = programs._step.lower(params, programs.init(), rung.cut(inputs), keys).as_text()
        ahead = programs.lower_step(programs.executor.abstract(model.abstract, model.axes), rung).as_text()
        assert ahead == running
