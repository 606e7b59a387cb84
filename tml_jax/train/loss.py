"""What training minimises: the next token, the word heard, and the flow of the speech patches.

Token and heard losses are sums over every output slot divided by the number of slots that hold a word (or
sound, or an event): silence is weighed as often as it occurs, so its probability stays calibrated, and yet a
conversation that is mostly silent does not drown the few slots that speak.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tml_jax.model.interaction import InteractionModel, Params, Spoken
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


def _share(hits: Array, of: Array) -> Array:
    return jnp.sum(hits & of) / jnp.maximum(jnp.sum(of), 1)


def flow_loss(
    model: InteractionModel, params: Params, spoken: Spoken, mel: Float[Array, "g s f m"], key: Array
) -> Float[Array, ""]:
    """The flow head's loss, a mean over the mel patches that were spoken."""
    net = model.net(params)
    condition = net.flow.condition(spoken.hidden, net.text(spoken.token), spoken.previous)
    rows = spoken.real.size
    target, condition = mel.reshape(rows, -1).astype(jnp.float32), condition.reshape(rows, -1)
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
    predictions = model.forward(params, inputs, outputs, num_tokens, noise, config.remat)
    control, real = model.control, predictions.real

    listening = outputs.tokens == control.listen
    speech = real & ~listening
    token_ce = _cross_entropy(predictions.logits, outputs.tokens)
    weight = jnp.where(listening, config.listen_weight, 1.0) * real
    token_loss = jnp.sum(token_ce * weight) / jnp.maximum(jnp.sum(speech), 1)

    known = real & (outputs.heard != UNHEARD)
    word = known & (outputs.heard != control.nothing)
    heard_ce = _cross_entropy(predictions.heard_logits, outputs.heard) * known
    heard_loss = jnp.sum(heard_ce) / jnp.maximum(jnp.sum(word), 1)

    flow = flow_loss(model, params, predictions.spoken, outputs.mel, flow_key)
    total = token_loss + config.heard_weight * heard_loss + config.flow_weight * flow

    said = jnp.argmax(predictions.logits, axis=-1)
    new_word = speech & (outputs.tokens != control.speak)
    metrics = {
        "loss": total,
        "token_loss": token_loss,
        "heard_loss": heard_loss,
        "flow_loss": flow,
        "word_cross_entropy": jnp.sum(token_ce * new_word) / jnp.maximum(jnp.sum(new_word), 1),
        "word_accuracy": _share(said == outputs.tokens, new_word),
        "false_speech": _share(said != control.listen, real & listening),
        "heard_accuracy": _share(jnp.argmax(predictions.heard_logits, axis=-1) == outputs.heard, word),
        "speech_share": jnp.sum(speech) / jnp.maximum(jnp.sum(real), 1),
    }
    if predictions.load:
        shares = [x / jnp.maximum(jnp.sum(x, -1, keepdims=True), 1) for x in predictions.load.values()]
        metrics["expert_imbalance"] = jnp.max(jnp.stack([jnp.max(s) * s.shape[-1] for s in shares]))
    return total, LossOutput(metrics, predictions.load)


jax.tree_util.register_dataclass(LossOutput, data_fields=["metrics", "load"], meta_fields=[])
