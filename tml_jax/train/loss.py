"""What training minimises: the next token, the word heard, and the flow of the speech patches.

Token and heard losses are sums over every output slot divided by the number of slots that hold a word (or
sound, or an event): silence is weighed as often as it occurs, so its probability stays calibrated, and yet a
conversation that is mostly silent does not drown the few slots that speak.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tml_jax import sharding
from tml_jax.model.interaction import Decisions, InteractionModel, Params, Spoken
from tml_jax.model.layout import Layout, pack_axes
from tml_jax.model.primitives import Axes
from tml_jax.streams.micro_turn import UNHEARD, MicroTurnInput, MicroTurnOutput
from tml_jax.streams.text import ControlTokens
from tml_jax.train.config import TrainConfig

Metrics = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class LossOutput:
    """Everything beside the loss itself: what to report, and how many tokens each expert got."""

    metrics: Metrics
    load: dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Taught:
    """What a teacher makes of the last rows of a batch (`train.config.Rehearsal`).

    Attributes:
      params: the teacher's weights; they get no gradient.
      packs: of how many packs, from the end.
      weight: of its distribution in their targets.
    """

    params: Params
    packs: int
    weight: float


def _cross_entropy(
    logits: Float[Array, "*b v"], labels: Array, taught: tuple[Float[Array, "*b v"], Array] | None
) -> Float[Array, "*b"]:
    """Against the labels, and with a teacher's logits and its weight [*b] against a mean of both."""
    # By comparison, not by a gather: the gradient of a gather is a scatter, one element at a time on a CPU.
    target = (labels[..., None] == jnp.arange(logits.shape[-1])).astype(logits.dtype)
    if taught is not None:
        theirs, weight = taught
        target += weight[..., None] * (jax.nn.softmax(theirs, axis=-1) - target)
    # Where a vocabulary is padded its logits may be -inf, of which nothing is asked.
    return jax.nn.logsumexp(logits, axis=-1) - jnp.sum(jnp.where(target > 0, target * logits, 0), axis=-1)


def _flow_loss(
    model: InteractionModel, params: Params, spoken: Spoken, mel: Float[Array, "g s f m"], keys: Array, axes: Axes
) -> Float[Array, ""]:
    """The flow head's loss, summed over the mel patches that were spoken; `keys`: one a pack; `axes`: of the packs."""
    net = model.net(params)
    condition = net.flow.condition(spoken.hidden, net.text(spoken.token), spoken.previous)
    target = sharding.constrain(mel.reshape(*spoken.real.shape, -1).astype(jnp.float32), (*axes, None))
    condition = sharding.constrain(condition, (*axes, None))
    draw_keys = jax.vmap(lambda key: jax.random.split(key, model.config.flow.draws))(keys)
    losses = sum(jax.vmap(net.flow.loss)(target, condition, k) for k in jnp.moveaxis(draw_keys, 1, 0))
    return jnp.sum(losses * spoken.real.astype(jnp.float32)) / model.config.flow.draws


def _kinds(control: ControlTokens, real: Array, tokens: Array, heard: Array) -> dict[str, Array]:
    """Which output slots are of which kind, bool [...]."""
    listening = tokens == control.listen
    return {
        "slots": real,
        "listening": real & listening,
        "speech": real & ~listening,
        "new_words": real & ~listening & (tokens != control.speak),
        "words": real & (heard != UNHEARD) & (heard != control.nothing),
    }


def counts(model: InteractionModel, batch: tuple[MicroTurnInput, MicroTurnOutput], num_tokens: int) -> dict[str, Array]:
    """How many output slots of each kind, and mel patches that are spoken, a batch has; each at least one.

    The parts of the loss are means over them.
    """
    inputs, outputs = batch
    layout = Layout.of(model.config.stream, inputs, outputs, num_tokens)
    real = layout.outputs.real.reshape(outputs.tokens.shape)
    found = _kinds(model.control, real, outputs.tokens, outputs.heard) | {"spoken": layout.speech.real}
    return {name: jnp.maximum(jnp.sum(x, dtype=jnp.float32), 1) for name, x in found.items()}


def loss(
    model: InteractionModel,
    params: Params,
    batch: tuple[MicroTurnInput, MicroTurnOutput],
    config: TrainConfig,
    num_tokens: int,
    keys: Array,
    over: dict[str, Array],
    taught: Taught | None = None,
) -> tuple[Float[Array, ""], LossOutput]:
    """The training loss of a batch, or of a part of one; the losses and metrics of all parts add up to the whole's.

    Args:
      model, params: what is trained.
      batch: packed conversations (`streams.packed`), leading axes [B, N].
      config: weights of the parts.
      num_tokens: trunk tokens a row may hold, static.
      keys: one for each pack, [G]: for the noise on fed-back speech and the flow head's draws.
      over: `counts` of the whole batch.
      taught: a teacher of a part of it (Hinton et al. 2015); None: the labels are the targets.
    """
    inputs, outputs = batch
    feedback_keys, flow_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    axes = pack_axes(len(outputs.mel), len(outputs.tokens))
    noise = jax.vmap(lambda key: jax.random.normal(key, outputs.mel.shape[1:]))(feedback_keys)
    noise = sharding.constrain(model.config.flow.sigma_feedback * noise, (*axes, None, None))
    decisions = model.decide(params, inputs, outputs, num_tokens, noise, config.remat)
    rehearsed = None if taught is None else _rehearsed(model, taught, batch, num_tokens, noise)
    sums = _sums(model, params, decisions, outputs, config, rehearsed)
    token_loss, heard_loss = sums["token_loss"] / over["speech"], sums["heard_loss"] / over["words"]
    flow = _flow_loss(model, params, decisions.spoken, outputs.mel, flow_keys, axes) / over["spoken"]
    total = token_loss + config.heard_weight * heard_loss + config.flow_weight * flow
    metrics = {
        "loss": total,
        "token_loss": token_loss,
        "heard_loss": heard_loss,
        "flow_loss": flow,
        "word_cross_entropy": sums["new_word_loss"] / over["new_words"],
        "word_accuracy": sums["new_words_right"] / over["new_words"],
        "false_speech": sums["false_speech"] / over["listening"],
        "heard_accuracy": sums["words_right"] / over["words"],
        "speech_share": sums["speech"] / over["slots"],
    }
    return total, LossOutput(metrics, decisions.load)


def expert_imbalance(load: dict[str, Array]) -> Metrics:
    """How many times its share the busiest expert of a model got; nothing of a model without experts."""
    shares = [x / jnp.maximum(jnp.sum(x, -1, keepdims=True), 1) for x in load.values()]
    return {"expert_imbalance": jnp.max(jnp.stack([jnp.max(s) * s.shape[-1] for s in shares]))} if shares else {}


@dataclasses.dataclass(frozen=True)
class _Rehearsed:
    """A teacher's hidden states for a whole batch, zero where it says nothing, and its weight, [B, N, slots]."""

    params: Params
    hidden: Array
    weight: Array


def _rehearsed(
    model: InteractionModel,
    taught: Taught,
    batch: tuple[MicroTurnInput, MicroTurnOutput],
    num_tokens: int,
    noise: Array,
) -> _Rehearsed:
    packs = len(noise)

    def last(x: Array) -> Array:
        """Its last packs, of an array with a row a pack or a row a conversation."""
        return x[len(x) // packs * (packs - taught.packs) :]

    inputs, outputs = jax.tree.map(last, batch)
    hidden = model.decide(taught.params, inputs, outputs, num_tokens, last(noise), False).hidden
    rows = len(batch[1].tokens)
    before = (rows - len(hidden), *(0,) * (hidden.ndim - 1))
    weight = jnp.where(jnp.arange(rows) >= before[0], taught.weight, 0.0)
    weight = jnp.broadcast_to(weight[:, None, None], batch[1].tokens.shape)
    hidden = jnp.pad(jax.lax.stop_gradient(hidden), [(n, 0) for n in before])
    return _Rehearsed(taught.params, hidden, weight)


def _sums(
    model: InteractionModel,
    params: Params,
    decisions: Decisions,
    outputs: MicroTurnOutput,
    config: TrainConfig,
    rehearsed: _Rehearsed | None,
) -> dict[str, Array]:
    """Sums over all output slots, with logits of `config.loss_turns` micro-turns in memory at a time.

    Where windows are cut along time these are as many of each part.
    """
    net, control = model.net(params), model.control
    teacher = None if rehearsed is None else model.net(rehearsed.params)

    def of(hidden: Array, real: Array, tokens: Array, heard: Array, *rehearsed: Array) -> dict[str, Array]:
        logits, heard_logits = net.logits(hidden), net.heard_logits(hidden)
        said_by = heard_by = None
        if teacher is not None:
            theirs, weight = rehearsed
            said_by, heard_by = (teacher.logits(theirs), weight), (teacher.heard_logits(theirs), weight)
        kinds = _kinds(control, real, tokens, heard)
        token_loss = _cross_entropy(logits, tokens, said_by)
        said = jnp.argmax(logits, axis=-1)
        found = {
            "token_loss": token_loss * jnp.where(kinds["listening"], config.listen_weight, 1.0) * real,
            "heard_loss": _cross_entropy(heard_logits, heard, heard_by) * (real & (heard != UNHEARD)),
            "new_word_loss": token_loss * kinds["new_words"],
            "new_words_right": kinds["new_words"] & (said == tokens),
            "false_speech": kinds["listening"] & (said != control.listen),
            "speech": kinds["speech"],
            "words_right": kinds["words"] & (jnp.argmax(heard_logits, axis=-1) == heard),
        }
        return {name: jnp.sum(x, dtype=jnp.float32) for name, x in found.items()}

    rows = [decisions.hidden, decisions.real, outputs.tokens, outputs.heard]
    rows += [] if rehearsed is None else [rehearsed.hidden, rehearsed.weight]
    turns, size = outputs.tokens.shape[1], config.loss_turns
    if size is None or size >= turns:
        return of(*rows)

    parts = sharding.num_parts(outputs.tokens.shape)
    size = -(-size // parts)

    def chunks(x: Array) -> Array:
        """[B, N, ...] -> [chunks, B, parts, size, ...]."""
        x, rest = x.reshape(len(x), parts, -1, *x.shape[2:]), (None,) * (x.ndim - 2)
        x = jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % size), *((0, 0),) * (x.ndim - 3)))  # added ones are not real
        x = jnp.moveaxis(x.reshape(*x.shape[:2], -1, size, *x.shape[3:]), 2, 0)
        return sharding.constrain(x, (None, "batch", "sequence", None, *rest))

    def add(sums: dict[str, Array], chunk: tuple[Array, ...]) -> tuple[dict[str, Array], None]:
        return jax.tree.map(jnp.add, sums, jax.checkpoint(of)(*chunk)), None

    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(of, *rows))
    return jax.lax.scan(add, zero, tuple(map(chunks, rows)))[0]


jax.tree_util.register_dataclass(LossOutput, data_fields=["metrics", "load"], meta_fields=[])
