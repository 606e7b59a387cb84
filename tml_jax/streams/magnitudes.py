"""Mel magnitudes to linear ones: by the mel filters alone, or by a small network that has heard a voice.

The filters cannot tell harmonics apart where they are wide, from about 1 kHz on. The network can: the low bins say how
high the voice is, and so where all its harmonics lie.
"""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from tml_jax.streams import spectrum, speech
from tml_jax.streams.micro_turn import StreamSpec

REACH = 3
"""Frames that one of the two convolutions sees: a frame and those before it."""

CONTEXT = 2 * (REACH - 1)
"""Frames of the past that an estimate looks at."""

WIDTH = 256
Weights = Mapping[str, jax.Array]


class Filters(NamedTuple):
    """The mel filters of a spec, as matrices.

    Attributes:
      weights: [bins of the FFT, mel bins].
      coverage: [bins of the FFT], 1 / sum of the filters over a bin; 0 where no filter looks.
    """

    weights: np.ndarray
    coverage: np.ndarray

    @classmethod
    def of(cls, spec: StreamSpec) -> "Filters":
        """Those of a spec."""
        filters = spectrum.MelFilters(spec.mel_window, spec.mel_bins, spec.sample_rate, np.float32)
        total = filters.total
        coverage = np.divide(1, total, out=np.zeros_like(total), where=total > 1e-6 * total.max())
        return cls(filters.apply(np.eye(len(total), dtype=np.float32)), coverage)

    def mel(self, magnitude: Float[jax.Array, "... bins"]) -> Float[jax.Array, "... mels"]:
        """Mel magnitudes of linear ones."""
        return jnp.matmul(magnitude, self.weights, precision="highest")

    def fit(self, magnitude: Float[jax.Array, "... bins"], target: Float[jax.Array, "... mels"]) -> jax.Array:
        """Factors that bring magnitudes towards the mel magnitudes `target` (and keep them positive)."""
        return self.spread(target / jnp.maximum(self.mel(magnitude), 1e-8))

    def spread(self, mel: Float[jax.Array, "... mels"]) -> Float[jax.Array, "... bins"]:
        """Of each bin the mean of what the filters over it have, by their weights."""
        return jnp.matmul(mel, self.weights.T, precision="highest") * self.coverage

    def smooth(self, target: Float[jax.Array, "... mels"]) -> Float[jax.Array, "... bins"]:
        """The smoothest magnitudes that have about the mel magnitudes `target`."""
        return self.spread(target / np.maximum(self.weights.sum(axis=0), 1e-8))


def shapes(spec: StreamSpec) -> dict[str, tuple[int, ...]]:
    """Of the network's weights, by name."""
    bins = spec.mel_window // 2 + 1
    maps = {"near": (REACH * spec.mel_bins, WIDTH), "far": (REACH * WIDTH, WIDTH), "deep": (WIDTH, WIDTH)}
    maps["out"] = (WIDTH, bins)
    return {f"{name}.weight": size for name, size in maps.items()} | {f"{n}.bias": s[1:] for n, s in maps.items()}


def checksum(weights: Weights) -> str:
    """Of all names and bits: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + np.asarray(weights[name]).tobytes())
    return digest.hexdigest()[:16]


def estimate(
    weights: Weights, filters: Filters, mel: Float[jax.Array, "... frames mels"]
) -> Float[jax.Array, "... rest bins"]:
    """Linear magnitudes of all frames but the first `CONTEXT`, each from itself and the frames before it.

    Args:
      weights: as `shapes` has them.
      filters: of the same spec.
      mel: mel magnitudes; 0 is silence.
    """

    def dense(name: str, x: jax.Array) -> jax.Array:
        return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def convolve(name: str, x: jax.Array) -> jax.Array:
        count = x.shape[-2] - REACH + 1
        return dense(name, jnp.concatenate([x[..., i : i + count, :] for i in range(REACH)], axis=-1))

    x = (jnp.log10(mel + speech.FLOOR) - speech.MEAN) / speech.STD
    x = jax.nn.gelu(convolve("near", x))
    x = x[..., REACH - 1 :, :] + jax.nn.gelu(convolve("far", x))
    x += jax.nn.gelu(dense("deep", x))
    return filters.smooth(mel[..., CONTEXT:, :]) * jnp.exp(dense("out", x))
