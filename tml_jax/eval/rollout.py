"""Runs a model over simulated users, many sessions at once, through the very step that serves."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from tml_jax.data.timeline import Conversation, render
from tml_jax.executor.executor import Executor
from tml_jax.executor.live import LiveModel
from tml_jax.model.interaction import InteractionModel, Params
from tml_jax.serve.outlet import Outlet
from tml_jax.streams import magnitudes, packed, vocoder
from tml_jax.streams.text import Tokenizer
from tml_jax.wire.events import Sound
from tml_jax.wire.journal import Journal, journal_event


class Played(NamedTuple):
    """The journal's events of a conversation, and the model's sound: float32 from session time 0, or None."""

    events: list[dict[str, Any]]
    sound: np.ndarray | None


class Rollout:
    """A model's step, compiled once for `slots` sessions.

    Args:
      model, params: what to run. tokenizer: its own. slots: sessions at once.
      executor: where it runs; None: on the default device.
      voice: weights for the vocoder; None: it plays any voice.
    """

    def __init__(
        self,
        model: InteractionModel,
        params: Params,
        tokenizer: Tokenizer,
        slots: int,
        executor: Executor | None = None,
        voice: magnitudes.Weights | None = None,
    ) -> None:
        self.model, self.params, self.tokenizer, self.slots = model, params, tokenizer, slots
        self.spec, self._voice = model.config.stream, voice and vocoder.placed(voice)
        self._live = LiveModel(executor or Executor(), model, self.spec, slots)

    def run(self, conversations: Sequence[Conversation], seeds: Sequence[int], *, sound: bool = False) -> list[Played]:
        """Plays each conversation: the user's side is as simulated, the model's is its own.

        Args:
          conversations: any number; `slots` of them at once.
          seeds: of the model's draws in each.
          sound: also keep the model's sound; the journal dates it either way.
        """
        played: list[Played] = []
        for first in range(0, len(conversations), self.slots):
            last = first + self.slots
            played += self._run(conversations[first:last], seeds[first:last], sound)
        return played

    def _run(self, conversations: Sequence[Conversation], seeds: Sequence[int], sound: bool) -> list[Played]:
        inputs = [render(c, self.spec, self.tokenizer)[0] for c in conversations]
        turns = max(len(i.active) for i in inputs)
        rng = np.zeros((self.slots, 2), np.uint32)
        rng[: len(seeds), 0] = seeds
        state = self._live.init()
        heard = [np.zeros((len(i.active) + 1) * self.spec.samples, np.float32) if sound else None for i in inputs]
        played = [Played([], samples) for samples in heard]
        outlets = [Outlet(self.spec, self.tokenizer, self._voice) for _ in conversations]
        for turn in range(turns):
            now = packed.live_turn(self.spec, inputs, turn, self.slots)
            state, out = self._live.step(self.params, state, now, rng)
            host = jax.device_get(out)
            for slot, (events, samples) in enumerate(played):
                if not now.active[slot]:
                    continue
                told, piece = self._tell(outlets[slot], turn, jax.tree.map(lambda x, s=slot: x[s], host))
                events += told
                if samples is not None and piece is not None:
                    start = (turn + 1) * self.spec.samples
                    samples[start : start + self.spec.samples] = piece.samples
        return played

    def _tell(self, outlet: Outlet, turn: int, out: Any) -> tuple[list[dict[str, Any]], Sound | None]:
        """The journal's lines of what one micro-turn wrote, and its sound, which is heard in the next one."""
        tokens, period = out.tokens[: out.num_tokens], self.spec.micro_turn_s
        mel = np.asarray(out.mel, np.float32).reshape(-1, self.spec.mel_bins) if out.speaking else None
        sound = outlet.sound(turn, mel)
        with Journal(None, keep=True) as journal:
            journal.write(outlet.decision(tokens).value, (turn + 1) * period, turn)
            if sound is not None:
                journal_event(journal, sound, period, has_audio=True)
            for words in outlet.words(turn, tokens, out.heard[: out.num_tokens]):
                journal_event(journal, words, period, has_audio=True)
        return journal.events, sound
