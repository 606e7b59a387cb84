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
from tml_jax.streams import packed, speech
from tml_jax.streams.text import Tokenizer
from tml_jax.wire.journal import Journal, journal_event

LOUD = 0.35
"""A mel frame counts as sound where its mean lies this far above silence (normalised log mel)."""


class Played(NamedTuple):
    """The journal's events of a conversation, and the model's sound: float32 from session time 0, or None."""

    events: list[dict[str, Any]]
    sound: np.ndarray | None


class Rollout:
    """A model's step, compiled once for `slots` sessions.

    Args:
      model, params: what to run. tokenizer: its own. slots: sessions at once.
      executor: where it runs; None: on the default device.
    """

    def __init__(
        self,
        model: InteractionModel,
        params: Params,
        tokenizer: Tokenizer,
        slots: int,
        executor: Executor | None = None,
    ) -> None:
        self.model, self.params, self.tokenizer, self.slots = model, params, tokenizer, slots
        self.spec = model.config.stream
        self._live = LiveModel(executor or Executor(), model, self.spec, slots)

    def run(self, conversations: Sequence[Conversation], seeds: Sequence[int], *, sound: bool = False) -> list[Played]:
        """Plays each conversation: the user's side is as simulated, the model's is its own.

        Args:
          conversations: any number; `slots` of them at once.
          seeds: of the model's draws in each.
          sound: also make the model's sound, which takes longer than the step itself.
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
        outlets = [Outlet(self.spec, self.tokenizer) for _ in conversations]
        for turn in range(turns):
            now = packed.live_turn(self.spec, inputs, turn, self.slots)
            state, out = self._live.step(self.params, state, now, rng)
            host = jax.device_get(out)
            for slot, (events, samples) in enumerate(played):
                if not now.active[slot]:
                    continue
                own = jax.tree.map(lambda x, s=slot: x[s], host)
                events += self._events(outlets[slot], turn, own)
                if samples is not None:
                    piece = outlets[slot].sound(turn, self._mel(own))
                    start = (turn + 1) * self.spec.samples
                    samples[start : start + self.spec.samples] = piece.samples if piece else 0.0
        return played

    def _mel(self, out: Any) -> np.ndarray | None:
        return np.asarray(out.mel, np.float32).reshape(-1, self.spec.mel_bins) if out.speaking else None

    def _events(self, outlet: Outlet, turn: int, out: Any) -> list[dict[str, Any]]:
        """The journal's lines of what one micro-turn wrote; its sound is heard in the next one."""
        spec, tokens = self.spec, out.tokens[: out.num_tokens]
        with Journal(None, keep=True) as journal:
            at = (turn + 1) * spec.micro_turn_s
            journal.write(outlet.decision(tokens).value, at, turn)
            loud = np.flatnonzero(loud_frames(out.mel.reshape(-1, spec.mel_bins))) if out.speaking else ()
            if len(loud):  # sound is taken to last to the micro-turn's end: a pause within a word is no silence
                journal.write("voice", at, turn, onset_ms=int(loud[0]) * spec.mel_hop * 1000 // spec.sample_rate)
            for words in outlet.words(turn, tokens, out.heard[: out.num_tokens]):
                journal_event(journal, words, spec.micro_turn_s, has_audio=True)
        return journal.events


def loud_frames(mel: np.ndarray) -> np.ndarray:
    """Which mel frames [F, bins] (normalised log mel) hold sound."""
    return mel.mean(axis=-1) > speech.SILENCE + LOUD
