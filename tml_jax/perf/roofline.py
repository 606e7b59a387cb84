"""How fast a compiled program could be: its work over what the chips' published figures allow.

Three times of a call: of the matrix units, from the model's own arithmetic (a compiler counts a loop's body once and no
custom kernel); of HBM, from the bytes that the program holds; of the links, from the bytes of its collectives and
where their groups lie on the torus. They are bounds: if all three overlap perfectly a call takes the longest of them,
if nothing does their sum. A real call lies between, or above.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from pallas_kernels.sharded_experts import cost
from pallas_kernels.static.chips import Chip
from tml_jax.model.interaction import InteractionModel
from tml_jax.model.plan import layer_plan
from tml_jax.perf import hlo
from tml_jax.train.config import ExperimentConfig
from tml_jax.train.muon import TURNS

# Bytes that cross a device's links for each byte of a collective's larger side, in a group of n.
_CROSSINGS = {
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}


@dataclasses.dataclass(frozen=True)
class Work:
    """Arithmetic of a call, all devices together.

    Attributes:
      needed: FLOPs of the model itself, the numerator of MFU. done: with what is computed again, and the optimiser.
    """

    needed: float
    done: float


@dataclasses.dataclass(frozen=True)
class Bound:
    """Seconds of a call on each device, by what takes them."""

    compute: float
    memory: float
    links: float
    needed: float

    @property
    def binds(self) -> str:
        """What takes the longest."""
        times = {"compute": self.compute, "HBM": self.memory, "links": self.links}
        return max(times, key=lambda name: times[name])

    @property
    def overlapped(self) -> float:
        """Seconds if all overlap."""
        return max(self.compute, self.memory, self.links)

    @property
    def apart(self) -> float:
        """Seconds if nothing overlaps."""
        return self.compute + self.memory + self.links

    def mfu(self, seconds: float) -> float:
        """Of the matrix units' peak, the share that the model's own arithmetic would take; `needed` is at peak."""
        return self.needed / seconds


def forward(model: InteractionModel, tokens: float, context: float, slots: float) -> tuple[float, float]:
    """FLOPs of the layers, and of reading out, for so many trunk tokens and output slots.

    Args:
      model: whose weights count. tokens: trunk tokens. context: tokens that a global layer sees, on average.
      slots: output slots, each with logits of the next token and of the word heard.
    """
    text, plan = model.config.text, layer_plan(model.config.text)
    of_layers = 0.0
    for group in plan:
        weights = model.abstract["transformer"][group.name]
        routed = sum(_size(weights["mlp"][name]) for name in ("gate_up", "down")) if group.mlp_type == "sparse" else 0
        share = text.num_experts_per_tok / text.n_routed_experts if routed else 0.0
        of_layers += 2 * tokens * (sum(map(_size, jax.tree.leaves(weights))) - routed * (1 - share))
        local = group.layer_type == "hybrid_sliding"
        heads = text.swa_num_attention_heads * text.swa_head_dim if local else text.num_attention_heads * text.head_dim
        seen = min(context, text.sliding_window_size) if local else context
        of_layers += 4 * tokens * seen * heads * max(1, group.repeats)
    unembed, heard = model.abstract["transformer"]["unembed"], model.abstract["heard"]
    return of_layers, 2 * slots * (2 * _size(unembed) + sum(map(_size, jax.tree.leaves(heard))))


def of_train_step(experiment: ExperimentConfig, model: InteractionModel, windows: int) -> Work:
    """Of a step of `windows` full windows: forward, twice that backward, and once more what is computed again."""
    data = experiment.data
    slots = windows * data.window_turns * model.config.stream.max_output
    tokens, sight = data.window_tokens, model.config.state.sinks + model.config.state.global_window
    beyond = max(tokens - sight, 0)  # queries that see no more than that
    context = ((tokens - beyond) ** 2 / 2 + beyond * sight) / tokens
    layers, read_out = forward(model, windows * tokens, context, slots)
    again = layers if experiment.train.remat else 0.0
    return Work(3 * (layers + read_out), 3 * (layers + read_out) + again + read_out + _muon(model))


def of_micro_turn(model: InteractionModel, sessions: int, block: int) -> Work:
    """Of `sessions` blocks of `block` trunk tokens over full caches, in which nobody speaks."""
    state = model.config.state
    work = sum(forward(model, sessions * block, state.sinks + state.global_window, sessions))
    return Work(work, work)


def _muon(model: InteractionModel) -> float:
    """Newton-Schulz of the layers' matrices: in each turn a Gram matrix, its square and a product with both."""
    total = 0.0
    for weight, roles in zip(
        jax.tree.leaves(model.abstract["transformer"]),
        jax.tree.leaves(model.matrices["transformer"], is_leaf=lambda x: x is None or isinstance(x, tuple)),
        strict=True,
    ):
        if roles:
            m, n = sorted(math.prod(weight.shape[i] for i in side) for side in roles)
            total += _size(weight) / (m * n) * TURNS * (4 * m * m * n + 2 * m**3)
    return total


def _size(x: Any) -> int:
    return math.prod(x.shape)


def bound(
    work: Work, traffic: float, collectives: Iterable[hlo.Collective], mesh: Mapping[str, int], chip: Chip
) -> Bound:
    """The three times of a call.

    Args:
      work: of the call. traffic: bytes that a device moves to and from HBM.
      collectives: of the program. mesh: sizes of its axes. chip: whose published figures count.
    """
    peak = chip.flops_per_second * math.prod(mesh.values())
    links = sum(seconds(collective, chip) for collective in collectives)
    return Bound(work.done / peak, traffic / chip.bytes_per_second, links, work.needed / peak)


def seconds(collective: hlo.Collective, chip: Chip) -> float:
    """What a collective takes of the links of its group, laid as near to a cube as it can be."""
    n = collective.group_size
    if n < 2:
        return 0.0
    axes, link = cost.ICI[chip.info.chip_version]
    sides = cost.torus(n, axes)
    lanes = max(1, sum(min(side, 3) - 1 for side in sides)) * link
    if collective.kind.endswith("all-to-all"):
        return collective.bytes * cost.mean_hops(sides) / lanes
    return collective.bytes * _CROSSINGS[collective.kind](n) / lanes


@functools.cache
def chip_of(topology: str) -> Chip:
    """The chip of a slice such as ``v5p:2x4x4``."""
    return Chip(topology.partition(":")[0])
