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
from tml_jax.streams.micro_turn import UNHEARD, MicroTurnInput, MicroTurnOutput
from tml_jax.train.config import TrainConfig

Metrics = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class LossOutput:
    """Everything beside the loss itself: what to report, and how many tokens each expert got."""

    metrics: Metrics
    load: dict[str, Array]


def _cross_entropy(logits: Float[Array, "*b v"], labels: Array) -> Float[Array, "*b"]:
    # By comparison, not by a gather: the gradient of a gather is a scatter, one element at a time on a CPU.
    picked = jnp.sum(jnp.where(labels[..., None] == jnp.arange(logits.shape[-1]), logits, 0), axis=-1)
    return jax.nn.logsumexp(logits, axis=-1) - picked


def flow_loss(
    model: InteractionModel, params: Params, spoken: Spoken, mel: Float[Array, "g s f m"], key: Array
) -> Float[Array, ""]:
    """The flow head's loss, a mean over the mel patches that were spoken."""
    net = model.net(params)
    condition = net.flow.condition(spoken.hidden, net.text(spoken.token), spoken.previous)
    rows = spoken.real.size
    target = sharding.constrain(mel.reshape(rows, -1).astype(jnp.float32), ("batch", None))
    condition = sharding.constrain(condition.reshape(rows, -1), ("batch", None))
    draw_keys = jax.random.split(key, model.config.flow.draws)
    losses = sum(net.flow.loss(target, condition, k) for k in draw_keys) / len(draw_keys)
    weight = spoken.real.reshape(rows).astype(jnp.float32)
    return jnp.sum(losses * weight) / jnp.maximum(jnp.sum(weight), 1)


def loss(
    model: InteractionModel,
    params: Params,
    batch: tuple[MicroTurnInput, MicroTurnOutput],
    config: TrainConfig,
    num_tokens: int,
    key: Array,
) -> tuple[Float[Array, ""], LossOutput]:
    """The training loss of a batch.

    Args:
      model, params: what is trained.
      batch: packed conversations (`streams.packed`), leading axes [B, N].
      config: weights of the parts.
      num_tokens: trunk tokens a row may hold, static.
      key: for the noise on fed-back speech and the flow head's draws.
    """
    inputs, outputs = batch
    feedback_key, flow_key = jax.random.split(key)
    noise = model.config.flow.sigma_feedback * jax.random.normal(feedback_key, outputs.mel.shape)
    noise = sharding.constrain(noise, ("batch", None, None, None))
    decisions = model.decide(params, inputs, outputs, num_tokens, noise, config.remat)
    sums = _sums(model, params, decisions, outputs, config)

    def mean(of: str, over: str) -> Array:
        return sums[of] / jnp.maximum(sums[over], 1)

    token_loss, heard_loss = mean("token_loss", "speech"), mean("heard_loss", "words")
    flow = flow_loss(model, params, decisions.spoken, outputs.mel, flow_key)
    total = token_loss + config.heard_weight * heard_loss + config.flow_weight * flow
    metrics = {
        "loss": total,
        "token_loss": token_loss,
        "heard_loss": heard_loss,
        "flow_loss": flow,
        "word_cross_entropy": mean("new_word_loss", "new_words"),
        "word_accuracy": mean("new_words_right", "new_words"),
        "false_speech": mean("false_speech", "listening"),
        "heard_accuracy": mean("words_right", "words"),
        "speech_share": mean("speech", "slots"),
    }
    if decisions.load:
        shares = [x / jnp.maximum(jnp.sum(x, -1, keepdims=True), 1) for x in decisions.load.values()]
        metrics["expert_imbalance"] = jnp.max(jnp.stack([jnp.max(s) * s.shape[-1] for s in shares]))
    return total, LossOutput(metrics, decisions.load)


def _sums(
    model: InteractionModel, params: Params, decisions: Decisions, outputs: MicroTurnOutput, config: TrainConfig
) -> dict[str, Array]:
    """Losses and counts over all output slots, with logits of `config.loss_turns` micro-turns in memory at a time."""
    net, control = model.net(params), model.control

    def of(hidden: Array, real: Array, tokens: Array, heard: Array) -> dict[str, Array]:
        logits, heard_logits = net.logits(hidden), net.heard_logits(hidden)
        listening = tokens == control.listen
        token_loss = _cross_entropy(logits, tokens)
        said = jnp.argmax(logits, axis=-1)
        new_word = real & ~listening & (tokens != control.speak)
        known = real & (heard != UNHEARD)
        word = known & (heard != control.nothing)
        found = {
            "token_loss": token_loss * jnp.where(listening, config.listen_weight, 1.0) * real,
            "heard_loss": _cross_entropy(heard_logits, heard) * known,
            "new_word_loss": token_loss * new_word,
            "new_words": new_word,
            "new_words_right": new_word & (said == tokens),
            "listening": real & listening,
            "false_speech": real & listening & (said != control.listen),
            "speech": real & ~listening,
            "slots": real,
            "words": word,
            "words_right": word & (jnp.argmax(heard_logits, axis=-1) == heard),
        }
        return {name: jnp.sum(x, dtype=jnp.float32) for name, x in found.items()}

    rows = (decisions.hidden, decisions.real, outputs.tokens, outputs.heard)
    turns, size = outputs.tokens.shape[1], config.loss_turns
    if size is None or size >= turns:
        return of(*rows)

    def chunks(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, -turns % size), *((0, 0),) * (x.ndim - 2)))  # what is added is not real
        return jnp.moveaxis(x.reshape(len(x), -1, size, *x.shape[2:]), 1, 0)

    def add(sums: dict[str, Array], chunk: tuple[Array, ...]) -> tuple[dict[str, Array], None]:
        return jax.tree.map(jnp.add, sums, jax.checkpoint(of)(*chunk)), None

    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(of, *rows))
    return jax.lax.scan(add, zero, tuple(map(chunks, rows)))[0]


jax.tree_util.register_dataclass(LossOutput, data_fields=["metrics", "load"], meta_fields=[])
