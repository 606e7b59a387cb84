"""The whole network: embeddings, decoder, unembedding, the `heard` head and the flow head.

Micro-turns become trunk tokens here (`embed_inputs`, `embed_outputs`, `Packing`), in one way for whole
conversations and for the live stream.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from tml_jax.model.config import InteractionConfig
from tml_jax.model.embed import AudioEmbed, Clock, TextEmbed, VisionEmbed
from tml_jax.model.flow_head import FlowHead
from tml_jax.model.primitives import Declare, Linear, RMSNorm, in_tiles
from tml_jax.model.transformer import Transformer
from tml_jax.streams.micro_turn import MicroTurnInput


class InteractionNet(nnx.Module):
    """Every weight of an interaction model."""

    def __init__(self, make: Declare, config: InteractionConfig) -> None:
        spec, d = config.stream, config.text.hidden_size
        self.max_output = spec.max_output
        self.row_tile = config.numerics.row_tile
        self.patch = spec.mel_frames_per_patch * spec.mel_bins
        self.text = TextEmbed(make, config.text)
        self.audio = AudioEmbed(make, config)
        self.vision = VisionEmbed(make, config.vision, d)
        self.clock = Clock(make, config.clock, spec, d)
        self.mel_in = Linear(make, (self.patch, d), (None, "embed"), gain=0.5)
        self.transformer = Transformer(make, config)
        self.heard = Linear(make, (d, d), ("embed", None))
        self.heard_norm = RMSNorm(make, d)
        self.flow = FlowHead(make, config.flow, self.patch, d)

    def embed_inputs(self, inputs: MicroTurnInput) -> tuple[Float[Array, "*b s d"], Bool[Array, "*b s"]]:
        """Input blocks [...] -> all slots [..., S, D], and which are real. The first real one carries the clock."""
        return in_tiles(self._embed_inputs, self.row_tile, inputs.turn.ndim, inputs)

    def _embed_inputs(self, inputs: MicroTurnInput) -> tuple[Array, Array]:
        audio = self.audio(inputs.audio)
        patches = self.vision(inputs.patches)
        text = self.text(inputs.text)
        x = jnp.concatenate([audio, patches, text], axis=-2)
        n_audio = jnp.where(inputs.has_audio, audio.shape[-2], 0)
        real = jnp.concatenate(
            [
                jnp.arange(n) < count[..., None]
                for n, count in (
                    (audio.shape[-2], n_audio),
                    (patches.shape[-2], inputs.num_patches),
                    (text.shape[-2], inputs.num_text),
                )
            ],
            axis=-1,
        )
        real &= inputs.active[..., None]
        first = real & (jnp.cumsum(real, axis=-1) == 1)
        return x + jnp.where(first[..., None], self.clock(inputs.turn)[..., None, :], 0), real

    def embed_outputs(
        self, tokens: Int[Array, "*b"], mel: Float[Array, "*b f m"], speaking: Bool[Array, "*b"]
    ) -> Float[Array, "*b d"]:
        """Output tokens as the trunk reads them back: the token, and the mel patch where it carries one."""

        def embed(tokens: Array, mel: Array, speaking: Array) -> Array:
            x = self.text(tokens)
            patch = self.mel_in(mel.reshape(*mel.shape[:-2], self.patch).astype(x.dtype))
            return x + jnp.where(speaking[..., None], patch, 0)

        return in_tiles(embed, self.row_tile, tokens.ndim, tokens, mel, speaking)

    def logits(self, hidden: Float[Array, "*b d"]) -> Float[Array, "*b v"]:
        """The next output token, from the hidden state that decides."""
        return in_tiles(self.transformer.logits, self.row_tile, hidden.ndim - 1, hidden)

    def heard_logits(self, hidden: Float[Array, "*b d"]) -> Float[Array, "*b v"]:
        """The user's word that has just ended, from the hidden state that decides."""

        def heard(hidden: Array) -> Array:
            return self.transformer.logits(self.heard_norm(self.heard(hidden)))

        return in_tiles(heard, self.row_tile, hidden.ndim - 1, hidden)

    def draw_mel(
        self, hidden: Float[Array, "b d"], token: Int[Array, " b"], previous: Float[Array, "b f m"], keys: Array
    ) -> Float[Array, "b f m"]:
        """Draws the mel patch that goes with a token; `keys` holds each session's random key."""

        def draw(hidden: Array, token: Array, previous: Array, keys: Array) -> Array:
            condition = self.flow.condition(hidden, self.text(token), previous.reshape(*token.shape, -1))
            patch = self.flow.sample(condition.reshape(token.size, -1), keys.reshape(token.size, 2))
            return patch.reshape(*token.shape, -1)

        return in_tiles(draw, self.row_tile, 1, hidden, token, previous, keys).reshape(previous.shape)


@dataclasses.dataclass(frozen=True)
class Packing:
    """Where the slots of ragged blocks lie once only the real ones are kept, in order.

    Attributes:
      order: int32 [B, L], the slot at each token position. count: int32 [B], real tokens.
      where: int32 [B, S], the token position of each slot. real: bool [B, S].
    """

    order: Int[Array, "b l"]
    count: Int[Array, " b"]
    where: Int[Array, "b s"]
    real: Bool[Array, "b s"]

    @classmethod
    def of(cls, real: Bool[Array, "b s"], length: int) -> "Packing":
        """Packs the real ones of S slots into `length` token positions; no row may have more real slots than that."""
        order = jnp.argsort(~real, axis=1, stable=True)[:, :length]
        order = jnp.pad(order, ((0, 0), (0, max(0, length - real.shape[1]))))  # more room than slots
        where = jnp.cumsum(real, axis=1, dtype=jnp.int32) - 1
        return cls(order, jnp.sum(real, axis=1, dtype=jnp.int32), where, real & (where < length))

    def pack(self, x: Float[Array, "b s d"]) -> Float[Array, "b l d"]:
        """Slots -> tokens; zero past the last real one."""
        filled = jnp.arange(self.order.shape[1]) < self.count[:, None]
        return _move(x, self.order, filled, self.where, self.real)

    def unpack(self, x: Float[Array, "b l d"]) -> Float[Array, "b s d"]:
        """Tokens -> slots; zero in those that are not real."""
        filled = jnp.arange(self.order.shape[1]) < self.count[:, None]
        return _move(x, self.where, self.real, self.order, filled)


@jax.custom_vjp
def _move(x: Array, index: Array, keep: Array, back: Array, back_keep: Array) -> Array:
    """Rows of x at `index` where `keep`, else zero. Its gradient is the same movement back: a gather, not a scatter."""
    moved = jnp.take_along_axis(x, jnp.clip(index, 0, x.shape[1] - 1)[:, :, None], axis=1)
    return jnp.where(keep[:, :, None], moved, 0)


def _move_fwd(x: Array, *maps: Array) -> tuple[Array, tuple[Array, ...]]:
    return _move(x, *maps), maps


def _move_bwd(maps: tuple[Array, ...], grad: Array) -> tuple[Array | None, ...]:
    index, keep, back, back_keep = maps
    return _move(grad, back, back_keep, index, keep), None, None, None, None


_move.defvjp(_move_fwd, _move_bwd)


def session_keys(keys: Array, turn: Int[Array, " b"], slot: int) -> Array:
    """The key of each session's output slot in a micro-turn: a function of the session's own key and turn."""
    return jax.vmap(lambda key, t: jax.random.fold_in(jax.random.fold_in(key, t), slot))(keys, turn)
