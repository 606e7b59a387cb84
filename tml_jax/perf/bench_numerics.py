"""What it costs that the trainer and the sampler compute the same bits: `NumericsConfig` set, against unset.

Both sides run in float32 on all cores: a forward pass over whole conversations, and the live step. The ratios are the
price; the logits of both settings are compared in the same run.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import timing
from tml_jax.executor.executor import Executor
from tml_jax.model.config import InteractionConfig, NumericsConfig
from tml_jax.model.interaction import InteractionModel
from tml_jax.streams import packed
from tml_jax.streams.micro_turn import empty_input

CONVERSATIONS, TURNS = 2, 64
# On a CPU: tiles small enough for a live step, which fills one, and large enough for a sequence.
SETTING = NumericsConfig(key_block=64, row_tile=16)


def measure(config: InteractionConfig, repeats: int, setting: NumericsConfig = SETTING) -> dict[str, float]:
    """Median seconds of both settings, and how many times as long the one with equal bits takes.

    Args:
      config: the model; its weights are random.
      repeats: timed calls of each.
      setting: compared with none at all.

    Raises:
      ValueError: the model does not fit the setting.
    """
    block = setting.key_block or 1
    state = dataclasses.replace(config.state, sinks=-(-config.state.sinks // block) * block)
    configs = {
        name: dataclasses.replace(config, state=state, numerics=numerics)
        for name, numerics in (("free", NumericsConfig()), ("equal_bits", setting))
    }
    calls = {name: _calls(each) for name, each in configs.items()}
    result: dict[str, float] = {
        "numerics.key_block": block,
        "numerics.row_tile": setting.row_tile or 0,
        "numerics.max_logit_difference": float(jnp.max(jnp.abs(calls["free"][0]() - calls["equal_bits"][0]()))),
    }
    for which, what in enumerate((f"forward_{CONVERSATIONS}x{TURNS}", f"live_step_{CONVERSATIONS}")):
        seconds = timing.interleaved({name: pair[which] for name, pair in calls.items()}, repeats)
        result |= {f"numerics.{what}.{name}_s": value for name, value in seconds.items()}
        result[f"numerics.{what}.times_as_long"] = seconds["equal_bits"] / seconds["free"]
    return result


def _calls(config: InteractionConfig) -> tuple[Callable[[], jax.Array], Callable[[], Any]]:
    """The forward pass over `TURNS` silent micro-turns with sound, giving logits; and one live step of them."""
    model = InteractionModel(config)
    params = model.init_params(0)
    shape, spec = (CONVERSATIONS, TURNS), config.stream
    levels = np.random.default_rng(0).integers(0, spec.dmel_levels, (*shape, spec.dmel_frames, spec.dmel_bins))
    sound = {
        "active": np.ones(shape, bool),
        "turn": np.broadcast_to(np.arange(TURNS, dtype=np.int32), shape),
        "audio": levels.astype(np.int32),
        "has_audio": np.ones(shape, bool),
    }
    inputs, outputs = packed.empty(spec, shape, shape[:1], 1, 1)
    inputs = dataclasses.replace(inputs, **sound)
    outputs.num_tokens[:] = 1
    length = TURNS * (spec.audio_tokens + spec.max_output)
    forward = jax.jit(model.forward, static_argnums=3)
    step, keys = Executor().program(model.step), np.zeros((CONVERSATIONS, 2), np.uint32)
    live = model.init_state(CONVERSATIONS)
    turn = dataclasses.replace(empty_input(spec, shape[:1]), **{name: x[:, 0] for name, x in sound.items()})
    return (
        lambda: forward(params, inputs, outputs, length).logits,
        functools.partial(step, params, live, turn, keys),
    )
