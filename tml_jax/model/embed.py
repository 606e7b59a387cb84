"""Signals to trunk tokens, without encoders: text rows, bags of dMel embeddings, folded patches, the clock."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from pallas_kernels.int8 import Int8Weight
from tml_jax.model.config import ClockConfig, InteractionConfig, TextConfig, VisionConfig
from tml_jax.model.primitives import Declare, Linear, RMSNorm
from tml_jax.streams.micro_turn import StreamSpec

SMALL_TABLE = 4096
"""Rows up to which a look-up is a product with one-hot rows: its gradient is then a product too, not a scatter."""


class TextEmbed(nnx.Module):
    """A row of the table, normed."""

    def __init__(self, make: Declare, config: TextConfig) -> None:
        self.table = make.table((config.vocab_size, config.hidden_size), ("vocab", "embed"), config.initializer_range)
        self.norm = RMSNorm(make, config.hidden_size, config.rms_norm_eps)

    def __call__(self, ids: Int[Array, "*b"]) -> Float[Array, "*b d"]:
        """Token ids [...] -> [..., D]."""
        table = self.table[...]
        if table.shape[0] <= SMALL_TABLE and not isinstance(table, Int8Weight):
            return self.norm(jax.nn.one_hot(ids, table.shape[0], dtype=table.dtype) @ table)
        return self.norm(jnp.asarray(table[ids]))


class AudioEmbed(nnx.Module):
    """A bag of embeddings: RMSNorm(sum over frames and bins of E[frame, bin, level]).

    Inkling has one frame a token; a spec with fewer audio tokens gives each frame of a token a table of its own.
    """

    def __init__(self, make: Declare, config: InteractionConfig) -> None:
        spec = config.stream
        self.frames = spec.dmel_frames // spec.audio_tokens
        shape = (self.frames, spec.dmel_bins, spec.dmel_levels, config.text.hidden_size)
        self.table = make.table(shape, (None, None, None, "embed"), config.text.initializer_range)
        self.norm = RMSNorm(make, config.text.hidden_size)

    def __call__(self, levels: Int[Array, "*b f m"]) -> Float[Array, "*b a d"]:
        """dMel levels [..., dmel_frames, bins] -> [..., audio_tokens, D]."""
        *lead, frames, bins = levels.shape
        levels = levels.reshape(*lead, frames // self.frames, self.frames, bins)
        table = jnp.asarray(self.table[...])
        # A product with one-hot rows: on the MXU, and on a CPU too, far cheaper than thousands of gathered rows.
        onehot = jax.nn.one_hot(levels, table.shape[2], dtype=table.dtype).reshape(*levels.shape[:-2], -1)
        # Flat, as the table lies: the axes' product would be taken in an order of its own, and the table copied for it.
        return self.norm(jnp.matmul(onehot, table.reshape(-1, table.shape[3])))


class VisionEmbed(nnx.Module):
    """hMLP: folds a patch of space-time into depth, layer by layer, with no mixing between patches."""

    def __init__(self, make: Declare, config: VisionConfig, hidden_size: int) -> None:
        channels = 3
        self.folds = config.folds
        last = len(config.folds) - 1
        for i, (frames, side, width) in enumerate(config.folds):
            out = hidden_size if i == last else width
            setattr(
                self,
                f"fold_{i}",
                Linear(make, (channels * frames * side * side, out), (None, "embed" if i == last else None)),
            )
            if i < last:
                setattr(self, f"norm_{i}", RMSNorm(make, out))
            channels = out
        self.norm = RMSNorm(make, hidden_size)

    def __call__(self, patches: Float[Array, "*b t h w c"]) -> Float[Array, "*b d"]:
        """Normalised pixels [..., frames, side, side, 3] -> [..., D]."""
        *lead, _, _, _, channels = patches.shape
        # Cells in cells, the last fold's outermost: then each fold is a reshape, and cells are rows of a product.
        times, sides = ([fold[i] for fold in reversed(self.folds)] for i in (0, 1))
        x = patches.astype(self.norm.w.dtype).reshape(*lead, *times, *sides, *sides, channels)
        axes = np.arange(3 * len(self.folds)).reshape(3, -1).T.reshape(-1) + len(lead)
        x = x.transpose(*range(len(lead)), *axes, x.ndim - 1)
        for i, (frames, side, _) in enumerate(self.folds):
            x = x.reshape(*lead, -1, frames * side * side * channels)
            x = getattr(self, f"fold_{i}")(x)
            channels = x.shape[-1]
            if i < len(self.folds) - 1:
                x = jax.nn.gelu(getattr(self, f"norm_{i}")(x), approximate=False)
        return self.norm(x).reshape(*lead, -1)


class Clock(nnx.Module):
    """Fourier features of the elapsed time, projected: "every four seconds" needs no counting."""

    def __init__(self, make: Declare, config: ClockConfig, spec: StreamSpec, hidden_size: int) -> None:
        ratio = config.max_period_s / config.min_period_s
        last = max(1, config.features - 1)
        self.periods = tuple(config.min_period_s * ratio ** (i / last) for i in range(config.features))
        self.seconds = spec.micro_turn_s
        self.proj = Linear(make, (2 * config.features, hidden_size), (None, "embed"))

    def __call__(self, turn: Int[Array, "*b"]) -> Float[Array, "*b d"]:
        """Index of the micro-turn [...] -> [..., D]."""
        phase = 2 * jnp.pi * self.seconds / jnp.asarray(self.periods, jnp.float32)
        angle = turn[..., None].astype(jnp.float32) * phase
        features = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
        return self.proj(features.astype(self.proj.w.dtype))
