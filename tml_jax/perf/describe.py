"""What a model costs, from its declaration alone: parameters, active parameters, state and work per micro-turn."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from tml_jax.model.interaction import InteractionModel
from tml_jax.model.lora import Lora
from tml_jax.model.plan import layer_plan
from tml_jax.model.state import declare_state, is_leaf
from tml_jax.train.config import ExperimentConfig


def count(tree: Any) -> int:
    """Numbers in a tree of arrays or ShapeDtypeStructs."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def text_tower(model: InteractionModel) -> tuple[int, int]:
    """Parameters of the text tower, in all and active for one token.

    The tower is the embedding, the decoder and the unembedding. Active are all but the routed experts that a token
    does not choose.
    """
    text = model.config.text
    trunk, embed = model.abstract["transformer"], model.abstract["text"]
    idle = 0
    for group in layer_plan(text):
        if group.mlp_type == "sparse":
            mlp = trunk[group.name]["mlp"]
            routed = count([mlp["gate_up"], mlp["down"]])
            idle += routed * (text.n_routed_experts - text.num_experts_per_tok) // text.n_routed_experts
    total = count([trunk, embed])
    return total, total - idle


def describe(experiment: ExperimentConfig) -> str:
    """A few lines on an experiment's model; nothing is allocated."""
    model = InteractionModel(experiment.model, jnp.dtype(experiment.train.dtype))
    text, stream = experiment.model.text, experiment.model.stream
    tower, active = text_tower(model)
    state = declare_state(experiment.model, 1, model.dtype)
    state_bytes = sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(state, is_leaf=is_leaf))
    groups = ", ".join(f"{g.name}: {g.mlp_type} {g.layer_type} x{max(1, g.repeats)}" for g in layer_plan(text))
    lines = [
        f"{experiment.name}: {text.num_hidden_layers} layers, d {text.hidden_size} ({groups})",
        f"parameters in all:        {model.num_params() / 1e9:.3f} B",
        f"parameters, text tower:   {tower / 1e9:.2f} B",
        f"active per token:         {active / 1e9:.2f} B",
        *(f"  {name + ':':22s}  {count(tree) / 1e6:.3f} M" for name, tree in model.abstract.items()),
        f"session state:            {state_bytes / 2**20:.2f} MiB",
        f"trunk tokens, silent turn:  {stream.audio_tokens + 1}",
        f"trunk tokens, spoken turn:  {stream.audio_tokens + stream.max_output}",
    ]
    if experiment.train.lora is not None:
        trained = count(Lora(model, experiment.train.lora).abstract)
        lines.append(f"trained by LoRA:          {trained / 1e9:.3f} B")
    return "\n".join(lines)
