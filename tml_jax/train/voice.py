"""Trains the vocoder's voice: to name linear magnitudes from mel magnitudes as they are in recordings.

Half of what it hears is the assistant, half are the other training voices of the assistant's engine. Of each of the
assistant's texts one take in four is kept from it (`takes`), to be measured with.
"""

import collections
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tml_jax.data import augment
from tml_jax.data.speech_bank import SAMPLE_RATE, Clip, SpeechBank
from tml_jax.streams import magnitudes, spectrum, speech
from tml_jax.streams.micro_turn import StreamSpec

BATCH, FRAMES = 16, 64
_LEVEL_DB, _LOUDER_DB, _GAP_S = -18.0, 6.0, 0.1  # as the model's own speech is levelled, and by how much others differ
_NOISE = 0.15  # normalised mel, at the most: what a model writes is not quite what a recording has
_QUIETEST = 1e-2  # linear magnitudes below are all the same
_CLIP_NORM, _WARMUP, _WEIGHT_DECAY = 1.0, 100, 1e-4


class Takes(NamedTuple):
    """The assistant's clips: to train on, and to measure with."""

    train: list[Clip]
    heldout: list[Clip]


def takes(bank: SpeechBank) -> Takes:
    """The assistant's clips; of each text another take is held out, of texts with a single take one in four."""
    texts: dict[str, list[Clip]] = collections.defaultdict(list)
    for clip in bank.select(kind="assistant"):
        texts[clip.text].append(clip)
    parted = Takes([], [])
    for i, clips in enumerate(texts.values()):
        for k, clip in enumerate(clips):
            (parted.train if (i + k) % 4 else parted.heldout).append(clip)
    return parted


class Sounds:
    """Draws what is heard in training.

    Raises:
      ValueError: the bank has no assistant, or the stream another rate.
    """

    def __init__(self, bank: SpeechBank, spec: StreamSpec, seed: int) -> None:
        own = takes(bank).train
        if not own:
            raise ValueError(f"The speech bank {bank.path} has no clips of the assistant.")
        if spec.sample_rate != SAMPLE_RATE:
            raise ValueError(f"The stream has {spec.sample_rate} Hz, and a speech bank's voices have {SAMPLE_RATE}.")
        others = [c for c in bank.select(split="train", engine=own[0].engine) if c.kind != "assistant"]
        self._length = (FRAMES - 1) * spec.mel_hop + spec.mel_window
        self._rng = np.random.default_rng(seed)
        self._bank, self._groups = bank, (own, others or own)

    def batch(self) -> np.ndarray:
        """Pieces of speech, float32 [BATCH, samples], of the assistant and of the others by turns."""
        return np.stack([self._piece(self._groups[i % 2]) for i in range(BATCH)])

    @functools.cache  # noqa: B019  lives as long as the run
    def _audio(self, clip: Clip) -> np.ndarray:
        return augment.set_level(self._bank.audio(clip), _LEVEL_DB)

    def _piece(self, clips: Sequence[Clip]) -> np.ndarray:
        rng, parts, size = self._rng, list[np.ndarray](), 0
        while size < self._length + SAMPLE_RATE:
            said, gap = self._audio(clips[rng.integers(len(clips))]), int(rng.uniform(0, _GAP_S) * SAMPLE_RATE)
            parts += [said, np.zeros(gap, np.float32)]
            size += len(said) + gap
        start = rng.integers(size - self._length)
        gain = 10 ** (rng.uniform(-_LOUDER_DB, _LOUDER_DB) / 20)
        return np.concatenate(parts)[start : start + self._length] * np.float32(gain)


def init(spec: StreamSpec, key: jax.Array) -> dict[str, jax.Array]:
    """Fresh weights, with which magnitudes are nearly those of the filters alone."""
    weights = {}
    for name, shape in magnitudes.shapes(spec).items():
        key, own = jax.random.split(key)
        scale = (0.1 if name == "out.weight" else 1.0) * (len(shape) > 1) / np.sqrt(shape[0])
        weights[name] = scale * jax.random.normal(own, shape)
    return weights


class Trainer:
    """The step, compiled once.

    Args:
      spec: of the stream.
      steps: of the whole run, by which the learning rate falls.
      learning_rate: AdamW's, at its peak.
    """

    def __init__(self, spec: StreamSpec, steps: int, learning_rate: float = 2e-3) -> None:
        self.spec, self._filters = spec, magnitudes.Filters.of(spec)
        self._window = spectrum.hann_window(spec.mel_window).astype(np.float32)
        warmup = min(_WARMUP, steps // 2)
        rate = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup, steps, learning_rate / 100)
        self._optimizer = optax.chain(
            optax.clip_by_global_norm(_CLIP_NORM), optax.adamw(rate, weight_decay=_WEIGHT_DECAY)
        )
        self.step = jax.jit(self._step)

    def start(self, weights: dict[str, jax.Array]) -> Any:
        """The optimiser's state before the first step."""
        return self._optimizer.init(weights)

    def loss(self, weights: magnitudes.Weights, sound: jax.Array, key: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
        """What is minimised, and its parts.

        Mean distance of the logarithms, and spectral convergence (S. Arik et al., 2019): the norm of the error beside
        that of the truth, piece by piece.

        Args:
          weights: the voice.
          sound: [pieces, samples].
          key: of the noise on the mel.
        """
        hops = sound.reshape(len(sound), -1, self.spec.mel_hop)
        count = hops.shape[1] - self.spec.mel_window // self.spec.mel_hop + 1
        parts = [hops[:, i : i + count] for i in range(self.spec.mel_window // self.spec.mel_hop)]
        truth = jnp.abs(jnp.fft.rfft(jnp.concatenate(parts, axis=-1) * self._window))
        level, noise = jax.random.split(key)
        log10 = jnp.log10(jnp.maximum(self._filters.mel(truth), speech.FLOOR))
        shaken = jax.random.uniform(level, (len(sound), 1, 1)) * jax.random.normal(noise, log10.shape)
        mel = jnp.maximum(10 ** (log10 + _NOISE * speech.STD * shaken) - speech.FLOOR, 0)
        found, truth = magnitudes.estimate(weights, self._filters, mel), truth[:, magnitudes.CONTEXT :]
        log = jnp.abs(jnp.log(found + _QUIETEST) - jnp.log(truth + _QUIETEST)).mean()
        norm = jnp.sqrt(jnp.sum(truth**2, axis=(1, 2)) + 1e-3)
        convergence = jnp.mean(jnp.sqrt(jnp.sum((found - truth) ** 2, axis=(1, 2)) + 1e-9) / norm)
        return log + convergence, {"log": log, "convergence": convergence}

    def _step(
        self, weights: dict[str, jax.Array], state: Any, sound: jax.Array, key: jax.Array
    ) -> tuple[dict[str, jax.Array], Any, dict[str, jax.Array]]:
        gradients, parts = jax.grad(self.loss, has_aux=True)(weights, sound, key)
        updates, state = self._optimizer.update(gradients, state, weights)
        return optax.apply_updates(weights, updates), state, parts
