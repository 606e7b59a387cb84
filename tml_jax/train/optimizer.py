"""The optimiser: Muon for the decoder's linear maps, AdamW for all else; experts are balanced apart.

Muon (Jordan et al. 2024) learnt this stream's speech twice as well as AdamW at equal data in our trials. Which
weights are linear maps, and along which axes, comes from the weights' own declaration.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tml_jax.model.interaction import InteractionModel, Params
from tml_jax.model.lora import inner
from tml_jax.train import muon
from tml_jax.train.config import TrainConfig

# Of Muon's momentum, and of AdamW's second moment.
_MOMENTUM, _ADAM_B2 = 0.95, 0.98


def schedule(config: TrainConfig, step: int, progress: float) -> float:
    """The factor of the learning rates: linear warm-up by steps, constant, and a linear cool-down to zero.

    Args:
      config: of the run.
      step: steps taken so far.
      progress: how much of the run is over, 0 to 1, by steps or by time; its last `cooldown` cools down.
    """
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return warmup * min(1.0, max(0.0, 1.0 - progress) / max(config.cooldown, 1e-9))


def make_optimizer(model: InteractionModel, config: TrainConfig) -> optax.GradientTransformation:
    """The gradient transformation for `model`'s params, or of what LoRA trains of it, at the peak learning rates.

    Raises:
      ValueError: the config freezes a weight that the model has not.
    """
    clip = optax.clip_by_global_norm(config.clip_norm)
    by_adamw = optax.adam(config.adam_learning_rate, b2=_ADAM_B2, nesterov=True)
    if config.lora is not None:
        return optax.chain(clip, by_adamw)

    paths = [_dotted(path) for path, _ in jax.tree.leaves_with_path(model.abstract)]
    if unknown := set(config.frozen) - {*paths, *map(inner, paths)}:
        raise ValueError(f"train.frozen names {min(unknown)!r}, which is no weight of this model.")

    # The decoder's maps are Muon's; what reads signals in and writes them out is AdamW's, as embeddings are.
    def label(path: tuple[Any, ...], _: Any, roles: muon.Roles | None) -> str:
        if is_frozen(path, config):
            return "frozen"
        return "muon" if roles and path[0].key == "transformer" else "adamw"

    labels = jax.tree.map_with_path(label, model.abstract, model.matrices)
    by_muon = optax.chain(
        optax.trace(_MOMENTUM, nesterov=True),
        optax.stateless(lambda updates, _: _orthogonalised(updates, model, jnp.dtype(config.dtype))),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(config.learning_rate),
    )
    return optax.chain(
        clip, optax.partition({"muon": by_muon, "adamw": by_adamw, "frozen": optax.set_to_zero()}, labels)
    )


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(key.key for key in path)


def is_frozen(path: tuple[Any, ...], config: TrainConfig) -> bool:
    """Whether a run leaves the weight at this path of the model's tree as it is."""
    name = _dotted(path)
    return name in config.frozen or inner(name) in config.frozen


def _orthogonalised(updates: Params, model: InteractionModel, dtype: jnp.dtype) -> Params:
    """Those of the model's weights that are in `updates`, by what the model declares of each."""
    roles, axes = (
        {tuple(path): leaf for path, leaf in jax.tree.leaves_with_path(tree, is_leaf=lambda x: not isinstance(x, dict))}
        for tree in (model.matrices, model.axes)
    )
    paths, weights = zip(*((tuple(path), leaf) for path, leaf in jax.tree.leaves_with_path(updates)), strict=True)
    done = muon.orthogonalise(weights, [roles[p] for p in paths], [axes[p] for p in paths], dtype)
    return jax.tree.unflatten(jax.tree.structure(updates), done)


def optimizer_shardings(tx: optax.GradientTransformation, params: Params, shardings: Any, mesh: Mesh) -> Any:
    """Shardings of the optimiser's state: what is shaped like a weight lies where the weight lies."""
    # Muon's state holds partial copies of the weights' tree, so a leaf is known by the end of its path.
    of_weight = {tuple(path): s for path, s in jax.tree_util.tree_flatten_with_path(shardings)[0]}
    replicated = NamedSharding(mesh, PartitionSpec())

    def place(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        tails = (path[i:] for i in range(len(path)))
        return next((of_weight[tail] for tail in tails if leaf.shape and tail in of_weight), replicated)

    return jax.tree_util.tree_map_with_path(place, jax.eval_shape(tx.init, params))


def balance_experts(params: Params, load: dict[str, jax.Array], rate: float) -> Params:
    """Moves each expert's correction bias against its load (arXiv:2408.15664): up where it got too few tokens.

    Args:
      params: the model's weights.
      load: tokens per expert of each sparse layer group, [E] or [repeats, E].
      rate: the size of the move.
    """
    layers = dict(params["transformer"])
    for name, tokens in load.items():
        move = rate * jnp.sign(jnp.mean(tokens, axis=-1, keepdims=True) - tokens)
        mlp = layers[name]["mlp"]
        layers[name] = layers[name] | {"mlp": mlp | {"correction": mlp["correction"] + move}}
    return params | {"transformer": layers}
