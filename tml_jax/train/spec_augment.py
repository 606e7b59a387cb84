"""Other ears in every step: the user's sound warped and masked in its dMel levels, on the device.

A model that is short of voices learns those that it has by heart, the more so where a batch is replayed. SpecAugment
(Park et al., arXiv:1904.08779) takes away bands of frequencies and frames, so that a word has to be known by the rest
of it; vocal-tract length perturbation (Jaitly and Hinton, 2013) stretches the frequency axis, as another throat would.
Both are drawn anew in each step.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt8

from tml_jax.streams import spectrum


@dataclasses.dataclass(frozen=True)
class SpecAugment:
    """How far the sound of a training batch is changed.

    Attributes:
      warp: the frequency axis of a conversation is stretched by up to this share, either way.
      bands, band_bins: so many bands of up to so many mel bins are silent for a stretch of `stretch` micro-turns.
      frames: probability that a frame is silent.
    """

    warp: float = 0.0
    bands: int = 0
    band_bins: int = 0
    stretch: int = 8
    frames: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.warp < 0.5 or not 0.0 <= self.frames < 1.0 or min(self.bands, self.band_bins) < 0:
            raise ValueError(f"A warp is below 0.5, a probability below 1, and nothing is negative, unlike in {self}.")
        if self.stretch < 1:
            raise ValueError(f"A stretch has a micro-turn or more, not {self.stretch}.")


def change_sound(
    levels: UInt8[Array, "b n f m"], config: SpecAugment, sample_rate: int, key: jax.Array
) -> UInt8[Array, "b n f m"]:
    """The dMel levels of a batch as other ears would have them.

    Args:
      levels: [conversations, micro-turns, frames, bins].
      config: how far to go.
      sample_rate: of the sound that the levels are of, hertz.
      key: of what is drawn.
    """
    rows, turns, frames, bins = levels.shape
    warp_key, width_key, start_key, frame_key = jax.random.split(key, 4)
    if config.warp:
        source = _warped_bins(jax.random.uniform(warp_key, (rows,), minval=-1.0), config.warp, bins, sample_rate)
        # A product with one-hot rows moves bins exactly, and on a CPU far sooner than a gather.
        move = jax.nn.one_hot(source, bins, dtype=jnp.bfloat16)
        levels = jnp.einsum("bnfm,bkm->bnfk", levels.astype(jnp.bfloat16), move).astype(levels.dtype)
    silent = jax.random.uniform(frame_key, (rows, turns, frames, 1)) < config.frames
    if config.bands and config.band_bins:
        shape = (rows, -(-turns // config.stretch), config.bands, 1)
        width = jax.random.uniform(width_key, shape, maxval=config.band_bins + 1.0)
        start = jax.random.uniform(start_key, shape) * (bins - jnp.floor(width))
        at = jnp.arange(bins)
        masked = jnp.any((at >= jnp.floor(start)) & (at < jnp.floor(start) + jnp.floor(width)), axis=2)
        silent |= jnp.repeat(masked, config.stretch, axis=1)[:, :turns, None]
    return jnp.where(silent, jnp.zeros((), levels.dtype), levels)


def _warped_bins(draw: Array, warp: float, bins: int, sample_rate: int) -> Array:
    """For each conversation [b] and bin, the bin whose level it gets: [b, bins]; `draw` is in [-1, 1]."""
    centres = spectrum.mel_centres(bins, sample_rate)
    hertz = centres * (1 + warp * draw[:, None])
    return jnp.argmin(jnp.abs(hertz[..., None] - centres), axis=-1)
