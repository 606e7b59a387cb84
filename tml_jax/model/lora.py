"""LoRA: a frozen model, and low-rank additions to its linear maps that are trained (Hu et al. 2021, arXiv:2106.09685).

A weight W stands for ``W + alpha / rank * A B`` (`model.adapted`), each expert's for its own A and B. Gradients, the
optimiser's state and the average are of A and B alone.

What the published weights don't hold cannot be adapted and is trained whole: the heads, and in both vocabulary tables
the rows of the control tokens. All else stays as it is, the experts' correction biases included.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Int

from tml_jax.model.adapted import Adapted, LowRank
from tml_jax.model.interaction import InteractionModel, Params

# The decoder's linear maps, by their names in `transformers` (gate and up are one there for the experts, and here for
# all), and where a layer keeps them.
TARGETS = {
    "q_proj": "attn.q.w",
    "k_proj": "attn.k.w",
    "v_proj": "attn.v.w",
    "r_proj": "attn.r.w",
    "o_proj": "attn.o",
    "gate_up_proj": "mlp.gate_up.w",
    "down_proj": "mlp.down.w",
    "experts.gate_up_proj": "mlp.gate_up",
    "experts.down_proj": "mlp.down",
    "shared_experts.gate_up_proj": "mlp.shared_gate_up",
    "shared_experts.down_proj": "mlp.shared_down",
}
# The parts of a model that are Inkling's; the others are trained whole.
BACKBONE = ("text", "audio", "vision", "transformer")
# Tables with a row for each token.
_TABLES = ("text.table", "transformer.unembed")
A, B, ROWS = ".lora_a", ".lora_b", ".control_rows"


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """What is added to which weights.

    Attributes:
      rank: of each addition; each expert has its own of this rank.
      alpha: the additions are multiplied by alpha / rank.
      targets: names in `TARGETS`; one that the model has no such weight for adds nothing.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = tuple(TARGETS)

    @property
    def scale(self) -> float:
        """What an addition is multiplied by."""
        return self.alpha / self.rank


class Lora:
    """What a LoRA run trains of a model: a tree of float32 arrays that lies beside the frozen weights.

    It is a part of the model's own tree, with ``weight.lora_a`` and ``weight.lora_b`` where a weight is adapted and
    ``table.control_rows`` where some rows of a table are trained.

    Attributes:
      config, model: what is added to what. abstract: the tree's shapes. axes: its logical axes.
      maps: of each adapted weight, by dotted path, how its addition lies.
      rows: of the vocabulary tables, those of the control tokens.

    Raises:
      ValueError: a rank below 1, or a target that there is no such thing as.
    """

    def __init__(self, model: InteractionModel, config: LoraConfig) -> None:
        if config.rank < 1:
            raise ValueError(f"A LoRA has a rank of 1 or more, not {config.rank}.")
        if unknown := [name for name in config.targets if name not in TARGETS]:
            raise ValueError(f"There is no LoRA target {unknown[0]!r}; known: {', '.join(TARGETS)}.")
        self.config, self.model = config, model
        vocab = model.config.text.vocab_size
        self.rows = slice(min(model.control.base, vocab), min(model.control.stop, vocab))
        shapes, roles, axes = (_flatten(tree) for tree in (model.abstract, model.matrices, model.axes))
        wanted = {TARGETS[name] for name in config.targets}
        self.maps = {
            path: _low_rank(x.ndim, roles[path], axes[path]) for path, x in shapes.items() if inner(path) in wanted
        }
        sizes: dict[str, tuple[int, ...]] = {}
        logical: dict[str, tuple[str | None, ...]] = {}
        for path, x in shapes.items():
            if path in self.maps:
                low_rank = self.maps[path]
                sizes[path + A], logical[path + A] = (
                    low_rank.of_a(x.shape, config.rank),
                    low_rank.of_a(axes[path], None),
                )
                sizes[path + B], logical[path + B] = (
                    low_rank.of_b(x.shape, config.rank),
                    low_rank.of_b(axes[path], None),
                )
            elif path in _TABLES:
                sizes[path + ROWS] = (self.rows.stop - self.rows.start, *x.shape[1:])
                logical[path + ROWS] = (None, *axes[path][1:])
            elif path.partition(".")[0] not in BACKBONE:
                sizes[path], logical[path] = x.shape, axes[path]
        self.abstract = _nest({path: jax.ShapeDtypeStruct(size, jnp.float32) for path, size in sizes.items()})
        self.axes = _nest(logical)

    def init(self, base: Params, seed: Int[Array, ""] | int) -> Params:
        """What is trained, as it begins: A random, B zero, all else as it is in the model."""
        weights, key = _flatten(base), jax.random.key(seed)
        fresh = {}
        for i, (path, x) in enumerate(_flatten(self.abstract).items()):
            if path.endswith(A):
                inputs = self.maps[path.removesuffix(A)].inputs
                std = 1 / math.sqrt(math.prod(x.shape[-1 - len(inputs) : -1]))
                fresh[path] = std * jax.random.normal(jax.random.fold_in(key, i), x.shape)
            elif path.endswith(B):
                fresh[path] = jnp.zeros(x.shape)
            elif path.endswith(ROWS):
                fresh[path] = weights[path.removesuffix(ROWS)][self.rows].astype(jnp.float32)
            else:
                fresh[path] = weights[path].astype(jnp.float32)
        return _nest(fresh)

    def merge(self, base: Params, trained: Params) -> Params:
        """The model's params for `InteractionModel`: nothing of `base` has a gradient."""
        new, params = _flatten(trained), {}
        for path, frozen in _flatten(jax.lax.stop_gradient(base)).items():
            if path in self.maps:
                params[path] = Adapted(frozen, new[path + A], new[path + B], self.maps[path], self.config.scale)
            elif path + ROWS in new:
                params[path] = frozen.at[self.rows].set(new[path + ROWS].astype(frozen.dtype))
            else:
                params[path] = new[path].astype(frozen.dtype) if path in new else frozen
        return _nest(params)


def _low_rank(ndim: int, roles: Any, axes: Sequence[str | None]) -> LowRank:
    stack = int(axes[0] == "layers")
    inputs, outputs = (tuple(i - stack for i in side) for side in roles)
    return LowRank(tuple(i for i in range(ndim - stack) if i not in inputs + outputs), inputs, outputs)


def inner(path: str) -> str:
    """A weight's place in its layer; of one that is in none, empty."""
    return path.split(".", 2)[-1] if path.startswith("transformer.") else ""


def _flatten(tree: Params) -> dict[str, Any]:
    return traverse_util.flatten_dict(tree, sep=".")


def _nest(flat: dict[str, Any]) -> Params:
    return traverse_util.unflatten_dict(flat, sep=".")
