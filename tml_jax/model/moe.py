"""Inkling's feed-forward blocks: the dense gated MLP, and the mixture of routed and shared experts.

Router: the k experts with the highest ``sigmoid(logit) + correction`` are chosen; weights are the sigmoids of
the k chosen **and** the shared experts, normalised to sum to one, times `route_scale`, times a learned scale.
The correction bias carries no gradient: training moves it to balance the load (Wang et al. 2024,
arXiv:2408.15664).
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from pallas_kernels.int8 import einsum
from pallas_kernels.sharded_experts.api import Placement, routed_experts
from tml_jax import sharding
from tml_jax.model.config import TextConfig
from tml_jax.model.primitives import Axes, Declare, Linear

# What the routed experts gave: a layer that is recomputed had better keep it, for their tokens travel.
ROUTED = "routed"


class DenseMlp(nnx.Module):
    """``down(silu(gate(x)) * up(x))`` times a learned scale."""

    def __init__(self, make: Declare, config: TextConfig) -> None:
        d, f = config.hidden_size, config.intermediate_size
        self.gate_up = Linear(make, (d, 2, f), ("embed", None, "mlp"))
        self.down = Linear(make, (f, d), ("mlp", "embed"))
        self.scale = make.full((1,), (None,), 1.0)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """[B, T, D] -> [B, T, D]."""
        gate, up = jnp.moveaxis(self.gate_up(x), -2, 0)
        return self.down(jax.nn.silu(gate) * up) * self.scale[...]


class Moe(nnx.Module):
    """Routed experts, top-k of `n_routed_experts`, and the shared experts that see every token.

    Attributes:
      indexed: the weights that may also be those of all layers, stacked, of which `__call__` takes a `layer`: a slice
        of them would be a copy of every expert, of which a micro-turn needs a few.
    """

    indexed = ("gate_up", "down")

    def __init__(self, make: Declare, config: TextConfig) -> None:
        d, f = config.hidden_size, config.moe_intermediate_size
        self.k, self.routed, self.shared = config.num_experts_per_tok, config.n_routed_experts, config.n_shared_experts
        self.route_scale = config.route_scale
        self.router = make.table((self.routed + self.shared, d), (None, "embed"), 1 / math.sqrt(d))
        self.correction = make.full((self.routed,), (None,), 0.0, dtype=jnp.float32)
        self.scale = make.full((1,), (None,), 1.0, dtype=jnp.float32)
        # Gate and up are planes of their own: side by side in the last two axes a TPU would pad and copy them.
        self.gate_up = make.matrix((self.routed, 2, d, f), ("expert", None, "embed", "expert_mlp"), (2,), (0,))
        self.down = make.matrix((self.routed, f, d), ("expert", "expert_mlp", "embed"), (1,), (0,))
        self.shared_gate_up = make.matrix((self.shared, 2, d, f), (None, None, "embed", "expert_mlp"), (2,), (0,))
        self.shared_down = make.matrix((self.shared, f, d), (None, "expert_mlp", "embed"), (1,), (0,))

    def route(self, x: Float[Array, "*b d"]) -> tuple[Int[Array, "*b k"], Float[Array, "*b k"], Float[Array, "*b s"]]:
        """Chosen experts [..., k], their weights [..., k] and the shared experts' weights [..., s], in float32."""
        logits = x.astype(jnp.float32) @ self.router[...].astype(jnp.float32).T
        routed, shared = logits[..., : self.routed], logits[..., self.routed :]
        choice = jax.nn.sigmoid(routed) + jax.lax.stop_gradient(self.correction[...])
        _, ids = jax.lax.top_k(choice, self.k)
        # A choice by comparison: the gradient of a gather would be a scatter.
        picked = jnp.sum(jnp.where(ids[..., None] == jnp.arange(self.routed), routed[..., None, :], 0), axis=-1)
        chosen = jnp.concatenate([picked, shared], axis=-1)
        weights = jax.nn.softmax(jax.nn.log_sigmoid(chosen), axis=-1) * self.route_scale * self.scale[...]
        return ids, weights[..., : self.k], weights[..., self.k :]

    def __call__(
        self,
        x: Float[Array, "b t d"],
        valid: Array | None = None,
        layer: Int[Array, ""] | None = None,
        axes: Axes = ("batch", None),
    ) -> tuple[Float[Array, "b t d"], Int[Array, "b t k"]]:
        """Runs the experts.

        Args:
          x: [B, T, D].
          valid: bool [B, T], tokens that are real: others use no expert and don't count in the load. None: all.
          layer: int32, which layer of `indexed` weights that are stacked. None: they are of one layer.
          axes: logical axes of the rows of x.

        Returns:
          [B, T, D], and the experts that each token chose, int32 [B, T, k]; a token that isn't real: past the last.
        """
        with jax.named_scope("route"):
            ids, weights, gammas = self.route(x)
            if valid is not None:
                # An expert id past the last one is dropped: padding costs nothing and can't disturb anyone.
                ids = jnp.where(valid[..., None], ids, self.routed)
                weights = jnp.where(valid[..., None], weights, 0)
        with jax.named_scope("experts"):
            experts = self.gate_up.get_value(), self.down.get_value()
            y = routed_experts(x, ids, weights.astype(x.dtype), *experts, layer, _placement(x, axes, *experts))
            y = checkpoint_name(y, ROUTED)
        with jax.named_scope("shared_experts"):
            # A product each: for one of both, a CPU would transpose the weights in every call.
            gate, up = (einsum("btd,sdf->btsf", x, self.shared_gate_up[...][:, plane]) for plane in (0, 1))
            hidden = jax.nn.silu(gate) * up * gammas.astype(x.dtype)[..., None]
            y = y + einsum("btsf,sfd->btd", hidden, self.shared_down[...])
        return y, ids


def _placement(x: Array, axes: Axes, gate_up: Array, down: Array) -> Placement | None:
    """Where the tokens x and the experts' weights lie; None: on one device."""
    mesh = sharding.current_mesh()
    if mesh is None:
        return None
    *_, width, hidden = gate_up.shape
    sizes = (("expert", down.shape[-3]), ("expert_mlp", hidden), ("embed", width))
    weights = (next(iter(sharding.mesh_axes(axis, size, mesh)), None) for axis, size in sizes)
    return Placement(mesh, sharding.cuts(axes, x.shape[:2], mesh), *weights)
