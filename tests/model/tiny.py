"""Small models for tests, and conversations of random content that use every modality."""

import dataclasses
import json
import math

import jax
import numpy as np

from tml_jax.model.config import ClockConfig, FlowConfig, InteractionConfig, StateConfig, TextConfig, VisionConfig
from tml_jax.model.interaction import InteractionModel, Params
from tml_jax.streams.micro_turn import MicroTurnInput, MicroTurnOutput, StreamSpec, empty_input


def config(max_output: int = 1, **text: object) -> InteractionConfig:
    """A model of four layers, dense and sparse, local and global, with caches short enough to wrap around."""
    base = TextConfig(
        vocab_size=64,
        unpadded_vocab_size=48,
        hidden_size=32,
        layer_types=("hybrid_sliding", "hybrid", "hybrid_sliding", "hybrid"),
        mlp_layer_types=("dense", "sparse", "sparse", "sparse"),
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        swa_num_attention_heads=2,
        swa_num_key_value_heads=1,
        swa_head_dim=16,
        sliding_window_size=16,
        rel_extent=40,
        log_scaling_n_floor=50,
        intermediate_size=48,
        moe_intermediate_size=24,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_shared_experts=1,
        route_scale=2.0,
        logits_mup_width_multiplier=1.0,
    )
    return InteractionConfig(
        text=dataclasses.replace(base, **text),
        vision=VisionConfig(folds=((1, 5, 8), (1, 2, 8), (1, 4, 16), (2, 1, 0))),
        stream=StreamSpec(
            audio_tokens=2, max_patches=2, max_text=3, max_output=max_output, frame_height=40, frame_width=40
        ),
        flow=FlowConfig(width=24, depth=1, euler_steps=2),
        clock=ClockConfig(features=4),
        state=StateConfig(sinks=4, global_window=64),
    )


def tokenizer_json(rows: int = 48) -> str:
    """A tokenizer file of so many rows, one of which is a special token; the model's above has 48."""
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": rows - 1, "content": "<|end|>", **special}]
    vocab = {chr(ord("a") + i): i for i in range(rows - 1)}
    model = {"type": "BPE", "vocab": vocab, "merges": []}
    return json.dumps({"version": "1.0", "added_tokens": added, "model": model})


def random_params(model: InteractionModel, seed: int = 0) -> Params:
    """Weights drawn by numpy: compiling a hundred random draws costs more than most tests."""
    rng = np.random.default_rng(seed)

    def draw(path: tuple, x: jax.ShapeDtypeStruct, axes: tuple[str | None, ...]) -> np.ndarray:
        # A flow head of gain one would make each fed-back patch larger than the one before, without end.
        gain = 0.3 if path[0].key == "flow" else 1.0
        shape = x.shape[1:] if axes[0] == "layers" else x.shape
        if len(shape) == 1:
            return np.ones(x.shape, x.dtype)
        return (gain * rng.normal(size=x.shape) / math.sqrt(math.prod(shape) / max(shape))).astype(x.dtype)

    return jax.tree_util.tree_map_with_path(draw, model.abstract, model.axes)


def random_inputs(spec: StreamSpec, slots: int, turns: int, seed: int = 0) -> MicroTurnInput:
    """Inputs [slots, turns] of random content; blocks are ragged, and now and then a slot takes no step."""
    rng = np.random.default_rng(seed)
    inputs = empty_input(spec, (slots, turns))
    shape = (slots, turns)
    inputs.active[:] = rng.random(shape) < 0.95
    inputs.turn[:] = np.cumsum(inputs.active, axis=1) - 1
    inputs.audio[:] = rng.integers(0, spec.dmel_levels, inputs.audio.shape)
    inputs.has_audio[:] = rng.random(shape) < 0.8
    inputs.patches[:] = rng.normal(size=inputs.patches.shape)
    inputs.num_patches[:] = rng.integers(0, spec.max_patches + 1, shape)
    inputs.text[:] = rng.integers(0, 48, inputs.text.shape)
    inputs.num_text[:] = np.maximum(rng.integers(0, spec.max_text + 1, shape), ~inputs.has_audio)
    return inputs


def pack(inputs: MicroTurnInput, outputs: MicroTurnOutput, packs: int | None = None) -> tuple:
    """What live steps took and wrote, [slots, turns], as a packed batch with so many packs; None: one a slot."""
    slots = inputs.active.shape[0]
    packs = packs or slots

    def real(x: np.ndarray, count: np.ndarray) -> np.ndarray:
        keep = (np.arange(x.shape[2]) < count[..., None]) & inputs.active[..., None]
        rows = [x[i][keep[i]] for i in np.array_split(np.arange(slots), packs)]
        out = np.zeros((packs, max(1, *map(len, rows)) + 3, *x.shape[3:]), x.dtype)
        for target, row in zip(out, rows, strict=True):
            target[: len(row)] = row
        return out

    patches = real(np.asarray(inputs.patches), inputs.num_patches)
    mel = real(np.asarray(outputs.mel), outputs.num_tokens * outputs.speaking)
    return dataclasses.replace(inputs, patches=patches), dataclasses.replace(outputs, mel=mel)
