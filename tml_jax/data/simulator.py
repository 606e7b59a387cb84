"""Simulated conversations: a pure function of (seed, split, index), from a speech bank and rendered scenes.

Each conversation chains exchanges of one user until its time is up, and carries `expectations`: plain dicts that
say what a good model does, in seconds of session time (kinds: answer, silent, timer, cue, stop, goes on,
count, delegate, result), so that evaluation needs nothing else.
"""

import numpy as np

from tml_jax.data import augment, scenarios
from tml_jax.data.config import DataConfig
from tml_jax.data.director import Director
from tml_jax.data.speech_bank import SpeechBank
from tml_jax.data.timeline import Conversation, Noise, UserSpeech
from tml_jax.data.voices import Cast
from tml_jax.streams.micro_turn import StreamSpec

_SPLITS = {"train": 0, "heldout": 1}
_SAME_AGAIN = 0.5  # an exchange is of the conversation's own scenario, or of any


class Simulator:
    """Draws conversations.

    Args:
      config: what to draw.
      spec: the stream, for the times at which a model can react.
      bank: the voices.
      split: "train" or "heldout": whose voices.

    Raises:
      ValueError: the split is unknown, or the bank lacks voices for it.
    """

    def __init__(self, config: DataConfig, spec: StreamSpec, bank: SpeechBank, split: str) -> None:
        if split not in _SPLITS:
            raise ValueError(f"Unknown split {split!r}; known: {', '.join(_SPLITS)}.")
        self.config, self.spec, self.split = config, spec, split
        self.cast = Cast(config, bank, split)
        able = [(name, share) for name, share in config.shares.items() if name != "talk" or self.cast.talkers]
        names, shares = zip(*able, strict=True)
        self._names, self._shares = names, np.array(shares) / sum(shares)

    def conversation(self, index: int, scenario: str | None = None) -> Conversation:
        """The conversation of this index.

        Args:
          index: any non-negative integer.
          scenario: a name in `scenarios.SCENARIOS`: only exchanges of that kind; None: drawn, and mixed.
        """
        if scenario is not None and scenario not in scenarios.SCENARIOS:
            raise ValueError(f"Unknown scenario {scenario!r}; known: {', '.join(scenarios.SCENARIOS)}.")
        if scenario == "talk" and not self.cast.talkers:
            raise ValueError(f"The speech bank {self.cast.bank.path} has no {self.split} voice that just talks.")
        rng = np.random.default_rng((self.config.seed, _SPLITS[self.split], index))
        name = scenario or str(rng.choice(self._names, p=self._shares))
        speaker = self.cast.speaker(rng, scenarios.NEEDS[name])
        director = Director(rng, self.config, self.spec, self.cast, speaker)
        possible = [n for n in self._names if speaker.can(scenarios.NEEDS[n])]
        filmed = name in scenarios.FILMED
        if filmed:
            director.limit = float(rng.uniform(*self.config.behaviour.filmed_duration))
        while True:
            scenarios.SCENARIOS[name](director)
            director.pause()
            if director.now > director.limit - 4.0:
                break
            if scenario is None and name not in scenarios.WHOLE and rng.random() > _SAME_AGAIN:
                able = [n for n in possible if filmed or n not in scenarios.FILMED]
                name = str(rng.choice([n for n in able if n not in scenarios.WHOLE]))
        director.limit = max(director.limit, director.now)
        if filmed:
            scenarios.film(director)
        self._add_noise(director)
        events, expectations = tuple(director.events), tuple(director.expectations)
        return Conversation(director.limit, events, True, scenario or name, expectations, speaker.name)

    def _add_noise(self, director: Director) -> None:
        acoustics, rng = self.config.acoustics, director.rng
        if rng.random() >= acoustics.noise_share:
            return
        spoken = any(isinstance(event, UserSpeech) for event in director.events)
        level = director.voice.level_db - rng.uniform(*acoustics.snr) if spoken else rng.uniform(-65.0, -30.0)
        length = round(director.limit * self.spec.sample_rate)
        director.events.append(Noise(0.0, augment.draw_noise(rng, self.cast.noises, length, level)))
