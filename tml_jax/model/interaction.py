"""`InteractionModel`: the functional shell. Weights and sessions are plain pytrees across every `jax.jit`.

The NNX module is declared once, abstractly; `params` is the plain nested dict of its arrays. Everything here is
a pure function of (params, arrays) and is made to be jitted by its caller.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt32

from tml_jax import sharding
from tml_jax.model import state as state_lib
from tml_jax.model.config import InteractionConfig
from tml_jax.model.layout import Layout
from tml_jax.model.net import InteractionNet
from tml_jax.model.primitives import Declare, later
from tml_jax.model.state import StreamState
from tml_jax.model.step import micro_turn_step
from tml_jax.streams.micro_turn import MicroTurnInput, MicroTurnOutput
from tml_jax.streams.text import ControlTokens

Params = dict[str, Any]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["hidden", "token", "previous", "real"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class Spoken:
    """What the flow head draws each mel patch from; packed as the patches are, [G, S].

    Attributes:
      hidden: [G, S, D], the hidden state that decided. token: int32 [G, S], what it decided.
      previous: [G, S, patch], the mel patch of the output slot before, as it was fed back; zero if it was silent.
      real: bool [G, S], patches that there are.
    """

    hidden: Float[Array, "g s d"]
    token: Int[Array, "g s"]
    previous: Float[Array, "g s p"]
    real: Bool[Array, "g s"]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["hidden", "real", "spoken", "load"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Decisions:
    """What decides at each output slot of given conversations; `InteractionNet` makes logits of it.

    Attributes:
      hidden: [B, N, O, D]. real: bool [B, N, O], slots that exist.
      spoken: of the slots that speak. load: tokens per expert of each sparse layer group.
    """

    hidden: Float[Array, "b n o d"]
    real: Bool[Array, "b n o"]
    spoken: Spoken
    load: dict[str, Array]


class Predictions(NamedTuple):
    """What the model would have written at each output slot of given conversations, and what decided it.

    Attributes:
      logits, heard_logits: [B, N, O, V] float32. real: as in `Decisions`.
      decisions: what they are of.
    """

    logits: Float[Array, "b n o v"]
    heard_logits: Float[Array, "b n o v"]
    real: Bool[Array, "b n o"]
    decisions: Decisions


class InteractionModel:
    """An interaction model of a given size.

    Attributes:
      config: its sizes. control: the ids of its control tokens: the embedding rows that the tokenizer doesn't use.
      abstract: `params` as ShapeDtypeStructs, without allocating them. axes: their logical axes.
      matrices: for each weight that is a linear map its (input axes, output axes), else None.
    """

    def __init__(self, config: InteractionConfig, dtype: Any = jnp.float32) -> None:
        self.config, self.dtype = config, dtype
        self.control = ControlTokens(config.text.tokenizer_rows)
        net = nnx.eval_shape(lambda: self._declare(0))
        self._graphdef, weights = nnx.split(net)
        self.abstract: Params = nnx.to_pure_dict(weights)
        self.axes = self._metadata(weights, "axes")
        self.matrices = self._metadata(weights, "matrix")

    @staticmethod
    def _metadata(weights: nnx.State, name: str) -> Params:
        return nnx.to_pure_dict(jax.tree.map(lambda v: v.get_metadata(name), weights, is_leaf=_is_variable))

    def _declare(self, seed: Int[Array, ""] | int) -> InteractionNet:
        return InteractionNet(Declare(nnx.Rngs(jax.random.key(seed)), self.dtype), self.config)

    def net(self, params: Params) -> InteractionNet:
        """The module around these weights; made while tracing, at no cost when it runs."""
        return nnx.merge(self._graphdef, nnx.State(params))

    def init_params(self, seed: Int[Array, ""] | int) -> Params:
        """Fresh weights."""
        return nnx.to_pure_dict(nnx.split(self._declare(seed))[1])

    def with_new_control(self, params: Params) -> Params:
        """Weights whose control tokens are new: their rows become the mean of the tokenizer's rows.

        So they begin as no token in particular (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language
        Models"), where those of published weights, which no text ever used, may be anything.
        """

        def change(table: Float[Array, "v d"]) -> Float[Array, "v d"]:
            mean = jnp.mean(table[: self.control.base], axis=0)
            return table.at[self.control.base : self.control.stop].set(mean)

        text, transformer = params["text"], params["transformer"]
        return params | {
            "text": text | {"table": change(text["table"])},
            "transformer": transformer | {"unembed": change(transformer["unembed"])},
        }

    def num_params(self) -> int:
        """Weights in all."""
        return sum(math.prod(x.shape) for x in jax.tree.leaves(self.abstract))

    def init_state(self, num_slots: int) -> StreamState:
        """`num_slots` empty sessions."""
        return state_lib.init_state(self.config, num_slots, self.dtype)

    def state_axes(self, num_slots: int) -> Any:
        """Logical axes of the arrays of `init_state`."""
        declared = state_lib.declare_state(self.config, num_slots, self.dtype)
        return jax.tree.map(lambda leaf: leaf.axes, declared, is_leaf=state_lib.is_leaf)

    def reset(self, state: StreamState, mask: Bool[Array, " b"]) -> StreamState:
        """Empties the sessions where `mask` is True."""
        return state_lib.reset_slots(state, mask)

    def step(
        self, params: Params, state: StreamState, inputs: MicroTurnInput, rng: UInt32[Array, "b 2"]
    ) -> tuple[StreamState, MicroTurnOutput]:
        """`micro_turn_step` with these weights."""
        return micro_turn_step(self.net(params), self.control, state, inputs, rng)

    def forward(self, params: Params, inputs: MicroTurnInput, outputs: MicroTurnOutput, num_tokens: int) -> Predictions:
        """Whole conversations at once, every output given: what would have been written at each slot; see `decide`."""
        net, decisions = self.net(params), self.decide(params, inputs, outputs, num_tokens)
        logits, heard = net.logits(decisions.hidden), net.heard_logits(decisions.hidden)
        return Predictions(logits, heard, decisions.real, decisions)

    def decide(
        self,
        params: Params,
        inputs: MicroTurnInput,
        outputs: MicroTurnOutput,
        num_tokens: int,
        feedback_noise: Float[Array, "g s f m"] | None = None,
        remat: bool = False,
    ) -> Decisions:
        """Whole conversations at once, every output given: what would have decided at each slot.

        Args:
          params: the weights.
          inputs, outputs: a packed batch (`streams.packed`), leading axes [B, N] (conversation, micro-turn).
          num_tokens: trunk tokens that a conversation may hold (static); no row may have more.
          feedback_noise: added to the mel patches where they are fed back; None: nothing.
          remat: trade work for memory in the backward pass.
        """
        net = self.net(params)
        b, n, o = outputs.tokens.shape
        mel = outputs.mel if feedback_noise is None else outputs.mel + feedback_noise
        with jax.named_scope("embed"):
            layout = Layout.of(self.config.stream, inputs, outputs, num_tokens)
            x = sharding.constrain(net.embed_sequence(inputs, outputs, mel, layout), ("batch", "sequence", None))
        hidden, load = net.transformer.sequence(x, layout.valid, remat)
        # The hidden state just before an output token is the one that predicts it.
        hidden = later(hidden, 1)
        decided = layout.outputs.back(hidden).reshape(b, n, o, -1)
        real = layout.outputs.real.reshape(b, n, o)
        return Decisions(decided, real, _spoken(layout, hidden, outputs, mel), load)


def _spoken(layout: Layout, hidden: Array, outputs: MicroTurnOutput, mel: Array) -> Spoken:
    slots, real = layout.spoken, layout.speech.real
    patches = jnp.where(real[..., None], mel.reshape(*real.shape, -1), 0)
    before = jnp.pad(slots, ((0, 0), (1, 0)), constant_values=-2)[:, :-1]
    # The patch before is that of the slot before, unless that is silent, or of the pack's conversation before.
    follows = (before == slots - 1) & (slots % math.prod(outputs.tokens.shape[1:]) != 0)
    previous = jnp.where(follows[..., None], later(patches, 1), 0)
    token = jnp.take_along_axis(outputs.tokens.reshape(len(slots), -1), slots, axis=1)
    return Spoken(layout.speech.back(hidden), token, previous, real)


def _is_variable(x: object) -> bool:
    return isinstance(x, nnx.Variable)
