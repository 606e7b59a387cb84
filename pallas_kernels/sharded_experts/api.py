"""The routed experts wherever their weights lie: on one device, or cut over a mesh (`jax.shard_map`)."""

import dataclasses
import functools
from typing import Any, Protocol

import jax
from jax import lax
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Float, Int

from pallas_kernels import platform
from pallas_kernels.expert_gemv import api as expert_gemv
from pallas_kernels.grouped_matmul import api as grouped_matmul
from pallas_kernels.sharded_experts import exchange
from pallas_kernels.sharded_experts.cost import Exchange, Way


class Made(Protocol):
    """A weight that is made of others where it is used, each device its own part of it; a tree of arrays."""

    shape: tuple[int, ...]

    def __getitem__(self, index: Any) -> Array:
        """The weight, at [...]."""

    def specs(self, cut: PartitionSpec) -> Any:
        """How the arrays are cut where the weight is cut so, a like tree."""


def _whole(weight: Any) -> Array:
    return weight if isinstance(weight, jax.Array) else weight[...]


def _specs(weight: Any, cut: PartitionSpec) -> Any:
    return weight.specs(cut) if hasattr(weight, "specs") else cut


@dataclasses.dataclass(frozen=True)
class Placement:
    """How a call lies on a mesh.

    Attributes:
      mesh: of the call.
      tokens: mesh axes that x, ids and weights are cut over, of each dimension of theirs but the last.
      experts, hidden, width: the mesh axis that E, F and D of the experts' weights are cut over.
      way: how tokens come to experts that are cut over one of the tokens' axes. None: the cheaper one (`cost`).
    """

    mesh: AbstractMesh
    tokens: tuple[tuple[str, ...], ...] = ((),)
    experts: str | None = None
    hidden: str | None = None
    width: str | None = None
    way: Way | None = None


def routed_experts(
    x: Float[Array, "*t d"],
    expert_ids: Int[Array, "*t k"],
    weights: Float[Array, "*t k"],
    gate_up: "Float[Array, '*l e 2 d f'] | Made",
    down: "Float[Array, '*l e f d'] | Made",
    layer: Int[Array, ""] | None = None,
    placement: Placement | None = None,
) -> Float[Array, "*t d"]:
    """``sum_k weights * down_e(silu(gate_e(x)) * up_e(x))``, by `expert_gemv` or `grouped_matmul`.

    Args:
      x: [..., D] tokens. expert_ids: int32 [..., k]; an id of E or more uses no expert and gives nothing. weights:
        [..., k].
      gate_up: [E, 2, D, F]; down: [E, F, D]; arrays or `Made` of some. layer: int32; with it both are stacked over
        layers, [L, ...].
      placement: how the arrays lie on a mesh. None: all on one device.

    Returns:
      [..., D], cut as x is. Every choice is computed, however uneven they are.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    if placement is None:
        y = _local(*_rows(x, expert_ids, weights), _whole(gate_up), _whole(down), layer)
        return y.reshape(x.shape)
    lead = () if layer is None else (None,)
    rows = PartitionSpec(*(axes or None for axes in placement.tokens), None)
    experts, hidden, width = placement.experts, placement.hidden, placement.width
    cut = PartitionSpec(*lead, experts, None, width, hidden), PartitionSpec(*lead, experts, hidden, width)
    cut = _specs(gate_up, cut[0]), _specs(down, cut[1])
    specs = (rows, rows, rows, *cut, None if layer is None else PartitionSpec())
    body = functools.partial(_on_this_device, placement=placement, cut=cut)
    run = jax.shard_map(body, mesh=placement.mesh, in_specs=specs, out_specs=rows, check_vma=False)
    return run(x, expert_ids, weights, gate_up, down, layer)


def _on_this_device(
    x: Array,
    ids: Array,
    weights: Array,
    gate_up: Any,
    down: Any,
    layer: Array | None,
    *,
    placement: Placement,
    cut: Any,
) -> Array:
    shape, (x, ids, weights) = x.shape, _rows(x, ids, weights)
    if placement.width is not None:  # fully sharded weights: gather this layer's, for as long as it needs them
        lead = 0 if layer is None else 1
        if layer is not None:
            (gate_up, down), layer = jax.tree.map(lambda w: w[layer], (gate_up, down)), None

        def whole(x: Array, spec: PartitionSpec) -> Array:
            axes = tuple(spec)[lead:]
            if placement.width not in axes:
                return x
            return lax.all_gather(x, placement.width, axis=axes.index(placement.width), tiled=True)

        gate_up, down = jax.tree.map(whole, (gate_up, down), cut)
    gate_up, down = _whole(gate_up), _whole(down)
    own = gate_up.shape[-4]

    experts = gate_up, down, layer
    partial = [] if placement.hidden is None else [placement.hidden]
    axis = placement.experts
    if axis is None:
        y = _local(x, ids, weights, *experts)
    elif axis not in sum(placement.tokens, ()):
        y = _local(x, exchange.own_ids(ids, own, axis), weights, *experts)
        partial.append(axis)
    elif _way(placement, x, ids, axis) == "all_gather":
        y = exchange.gather(x, ids, weights, experts, own, axis, _local)
    else:
        y = exchange.all_to_all(x, ids, weights, experts, own, axis, _local, placement.mesh.axis_names)
    return (lax.psum(y, tuple(partial)) if partial else y).reshape(shape)


def _rows(x: Array, ids: Array, weights: Array) -> tuple[Array, Array, Array]:
    """Arrays [..., N] as [T, N]."""
    return x.reshape(-1, x.shape[-1]), ids.reshape(-1, ids.shape[-1]), weights.reshape(-1, weights.shape[-1])


def _way(placement: Placement, x: Array, ids: Array, axis: str) -> Way:
    """What was asked for, else the cheaper way; a handful of tokens, which decode together, gathers, and so do GPUs."""
    devices = placement.mesh.shape[axis]
    if placement.way is not None:
        return placement.way
    # `exchange` has no ragged exchange but a TPU's: elsewhere travelling gathers too. A CPU stands in for a TPU.
    if platform.implementation() == "gpu" or expert_gemv.is_few(devices * ids.shape[0], ids.shape[1]):
        return "all_gather"
    call = Exchange(ids.shape[0], ids.shape[1], x.shape[1] * x.dtype.itemsize, devices)
    return call.cheaper(platform.chip())


def _local(x: Array, ids: Array, weights: Array, gate_up: Array, down: Array, layer: Array | None) -> Array:
    if expert_gemv.is_few(*ids.shape):
        return expert_gemv.expert_gemv(x, ids, weights, gate_up, down, layer=layer)
    return grouped_matmul.expert_mlp(x, ids, weights, gate_up, down, layer)
