"""The flow head: a patch of mel frames from a hidden state, by conditional flow matching.

Flow matching (Lipman et al. 2023, arXiv:2210.02747) along straight paths ``x_t = (1 - t) noise + t mel``, with an
adaLN MLP a patch (Li et al. 2024, arXiv:2406.11838). The network predicts the clean patch, not the velocity
(Li & He 2025, arXiv:2511.13720): speech fills a small part of the patch's dimensions and noise all of them, so
a narrow network can name the first and not pass on the second. The velocity follows: ``(clean - x_t) / (1 - t)``.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt32

from tml_jax.model.config import FlowConfig
from tml_jax.model.primitives import Declare, Linear

# Below this distance from t = 1 the velocity is not divided further (training draws t up to 1).
MIN_REMAINING = 0.1
TIME_FEATURES = 32


def _norm(x: Array) -> Array:
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


class FlowHead(nnx.Module):
    """Predicts the clean patch from a noisy one, the time and a condition."""

    def __init__(self, make: Declare, config: FlowConfig, patch: int, hidden_size: int) -> None:
        w = config.width
        self.depth, self.steps = config.depth, config.euler_steps
        self.cond_hidden = Linear(make, (hidden_size, w), ("embed", "mlp"))
        self.cond_token = Linear(make, (hidden_size, w), ("embed", "mlp"))
        self.cond_previous = Linear(make, (patch, w), (None, "mlp"))
        self.time = Linear(make, (2 * TIME_FEATURES, w), (None, "mlp"))
        self.enter = Linear(make, (patch, w), (None, "mlp"))
        for i in range(config.depth):
            setattr(self, f"mod_{i}", Linear(make, (w, 3, w), ("mlp", None, None), gain=0.1))
            setattr(self, f"up_{i}", Linear(make, (w, w), ("mlp", None)))
            setattr(self, f"down_{i}", Linear(make, (w, w), ("mlp", None), gain=0.5))
        self.mod_out = Linear(make, (w, 2, w), ("mlp", None, None), gain=0.1)
        self.leave = Linear(make, (w, patch), ("mlp", None), gain=0.1)

    def condition(
        self, hidden: Float[Array, "*b d"], token: Float[Array, "*b d"], previous: Float[Array, "*b p"]
    ) -> Float[Array, "*b w"]:
        """What the patch is drawn from: the hidden state, the embedding of the token just chosen, the patch before."""
        return self.cond_hidden(hidden) + self.cond_token(token) + self.cond_previous(previous.astype(hidden.dtype))

    def clean(
        self, x: Float[Array, "*b p"], t: Float[Array, "*b"], condition: Float[Array, "*b w"]
    ) -> Float[Array, "*b p"]:
        """The clean patch, given a noisy one at time t in [0, 1]."""
        angle = 1000.0 * t[..., None] * jnp.exp(-jnp.linspace(0.0, 9.2, TIME_FEATURES))
        features = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1).astype(condition.dtype)
        c = jax.nn.silu(condition + self.time(features))
        h = self.enter(x.astype(c.dtype))
        for i in range(self.depth):
            shift, scale, gate = jnp.moveaxis(getattr(self, f"mod_{i}")(c), -2, 0)
            y = _norm(h) * (1 + scale) + shift
            h = h + (1 + gate) * getattr(self, f"down_{i}")(jax.nn.silu(getattr(self, f"up_{i}")(y)))
        shift, scale = jnp.moveaxis(self.mod_out(c), -2, 0)
        return self.leave(_norm(h) * (1 + scale) + shift).astype(jnp.float32)

    def loss(self, mel: Float[Array, "n p"], condition: Float[Array, "n w"], key: Array) -> Float[Array, " n"]:
        """The flow-matching loss of each patch, one draw of noise and time each: the mean squared velocity error."""
        noise_key, time_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, mel.shape)
        t = jax.random.uniform(time_key, mel.shape[:-1])
        x = (1 - t[:, None]) * noise + t[:, None] * mel
        error = (self.clean(x, t, condition) - mel) / jnp.maximum(1 - t, MIN_REMAINING)[:, None]
        return jnp.mean(error * error, axis=-1)

    def sample(self, condition: Float[Array, "b w"], keys: UInt32[Array, "b 2"]) -> Float[Array, "b p"]:
        """Draws a patch by Euler steps; row i's noise depends on ``keys[i]`` alone."""
        size = self.enter.w.shape[0]
        x = jax.vmap(lambda key: jax.random.normal(key, (size,)))(keys)
        for i in range(self.steps):
            t = jnp.full(x.shape[:-1], i / self.steps)
            velocity = (self.clean(x, t, condition) - x) / (1 - t)[:, None]
            x = x + velocity / self.steps
        return x
