"""The whole network: embeddings, decoder, unembedding, the `heard` head and the flow head.

Micro-turns become trunk tokens here, by the same embeddings for whole conversations (`embed_sequence`) and for the live
stream (`embed_inputs`, `embed_outputs`).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from tml_jax.model.config import InteractionConfig
from tml_jax.model.embed import AudioEmbed, Clock, TextEmbed, VisionEmbed
from tml_jax.model.flow_head import FlowHead
from tml_jax.model.layout import Layout
from tml_jax.model.primitives import Declare, Linear, RMSNorm, in_tiles
from tml_jax.model.transformer import Transformer
from tml_jax.streams.micro_turn import MicroTurnInput, MicroTurnOutput


class InteractionNet(nnx.Module):
    """Every weight of an interaction model."""

    def __init__(self, make: Declare, config: InteractionConfig) -> None:
        spec, d = config.stream, config.text.hidden_size
        self.max_output, self.audio_tokens = spec.max_output, spec.audio_tokens
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

    def embed_inputs(self, inputs: MicroTurnInput) -> tuple[Float[Array, "b s d"], Bool[Array, "b s"]]:
        """Input blocks [B] -> all slots [B, S, D], and which are real. The first real one carries the clock.

        Blocks may have less room for patches and for text than the spec has, or none.
        """
        parts = [(self.embed_audio(inputs.audio), jnp.where(inputs.has_audio, self.audio_tokens, 0))]
        if inputs.patches.shape[1]:
            parts.append((self.embed_patches(inputs.patches), inputs.num_patches))
        if inputs.text.shape[1]:
            parts.append((self.embed_text(inputs.text), inputs.num_text))
        real = [jnp.arange(x.shape[1]) < count[:, None] for x, count in parts]
        real = jnp.concatenate(real, axis=1) & inputs.active[:, None]
        first = real & (jnp.cumsum(real, axis=1) == 1)
        x = jnp.concatenate([x for x, _ in parts], axis=1)
        return x + jnp.where(first[..., None], self.embed_clock(inputs.turn)[:, None], 0), real

    def embed_outputs(
        self, tokens: Int[Array, " b"], mel: Float[Array, "b f m"], speaking: Bool[Array, " b"]
    ) -> Float[Array, "b d"]:
        """Output tokens as the trunk reads them back: the token, and the mel patch where it carries one."""
        return self.embed_text(tokens) + jnp.where(speaking[:, None], self.embed_mel(mel), 0)

    def embed_sequence(
        self, inputs: MicroTurnInput, outputs: MicroTurnOutput, mel: Float[Array, "g s f m"], layout: Layout
    ) -> Float[Array, "b l d"]:
        """Packed conversations [B, N] -> their trunk tokens [B, L, D]: the same embeddings, each straight to its place.

        `mel` is what is fed back of `outputs.mel`.
        """
        shape = layout.valid.shape
        ids = layout.text.there(inputs.text.reshape(shape[0], -1))
        ids += layout.outputs.there(outputs.tokens.reshape(shape[0], -1))
        worded = (layout.text.has | layout.outputs.has)[..., None]
        x = layout.audio.there(self.embed_audio(inputs.audio).reshape(shape[0], layout.audio.token.shape[1], -1))
        x += layout.patches.there(self.embed_patches(inputs.patches)).reshape(x.shape)
        x += jnp.where(worded, self.embed_text(ids), 0)
        x += layout.speech.there(self.embed_mel(mel)).reshape(x.shape)
        return x + jnp.where(layout.first[..., None], self.embed_clock(layout.turn), 0)

    def embed_audio(self, levels: Int[Array, "*b f m"]) -> Float[Array, "*b a d"]:
        """dMel levels [..., dmel_frames, bins] -> audio tokens."""
        return in_tiles(self.audio, self.row_tile, levels.ndim - 2, levels)

    def embed_patches(self, patches: Float[Array, "*b t h w c"]) -> Float[Array, "*b d"]:
        """Patches, one token each."""
        return in_tiles(self.vision, self.row_tile, patches.ndim - 4, patches)

    def embed_text(self, ids: Int[Array, "*b"]) -> Float[Array, "*b d"]:
        """Token ids."""
        return in_tiles(self.text, self.row_tile, ids.ndim, ids)

    def embed_mel(self, mel: Float[Array, "*b f m"]) -> Float[Array, "*b d"]:
        """Mel patches as they are fed back."""

        def embed(mel: Array) -> Array:
            return self.mel_in(mel.reshape(*mel.shape[:-2], self.patch).astype(self.mel_in.w.dtype))

        return in_tiles(embed, self.row_tile, mel.ndim - 2, mel)

    def embed_clock(self, turn: Int[Array, "*b"]) -> Float[Array, "*b d"]:
        """The time at which a micro-turn begins, of its index."""
        return in_tiles(self.clock, self.row_tile, turn.ndim, turn)

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


def session_keys(keys: Array, turn: Int[Array, " b"], slot: Int[Array, ""] | int) -> Array:
    """The key of each session's output slot in a micro-turn: a function of the session's own key and turn."""
    return jax.vmap(lambda key, t: jax.random.fold_in(jax.random.fold_in(key, t), slot))(keys, turn)
