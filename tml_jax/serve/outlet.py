"""What the model writes, made into words and sound, one micro-turn after the other."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from tml_jax.streams import magnitudes
from tml_jax.streams.micro_turn import StreamSpec
from tml_jax.streams.text import TextDecoder, Tokenizer
from tml_jax.streams.vocoder import Vocoder
from tml_jax.wire import events

AUDIBLE = 1e-4  # sound below this is not told
OVERLAP = 3  # micro-turns from words that silence the model to its silence
LATE = 2  # micro-turns from the end of a word to its being heard, at most

Piece = tuple[str, int, int]


class _Text:
    """Tokens -> whole characters with their times; the bytes of an unfinished character wait, over micro-turns."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._decoder = tokenizer, TextDecoder(tokenizer)
        self._since: int | None = None  # when the first token began whose text is still to come

    def push(self, tokens: Iterable[tuple[int, int, int]]) -> Piece | None:
        """Of (token, start_ms, end_ms) the text that they complete, and its times; None where they complete none."""
        text, start_ms, end_ms = "", None, 0
        for token, begins_ms, ends_ms in tokens:
            if not self._tokenizer.is_word(token):
                continue
            self._since = begins_ms if self._since is None else self._since
            if piece := self._decoder.push(token):
                text, end_ms = text + piece, ends_ms
                start_ms = self._since if start_ms is None else start_ms
                self._since = begins_ms if self._decoder.pending else None
        return None if start_ms is None else (text, start_ms, end_ms)

    def state(self) -> dict[str, Any]:
        """All that it remembers."""
        return {"decoder": self._decoder.state(), "since": self._since}

    def go_on(self, state: dict[str, Any]) -> None:
        """Goes on where another one was."""
        self._decoder.go_on(state["decoder"])
        self._since = state["since"]


class _Heard(_Text):
    """The same of what is heard, where a word that begins again at once is the same one, named in two micro-turns."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self._last: int | None = None

    def push(self, tokens: Iterable[tuple[int, int, int]]) -> Piece | None:
        """As `_Text.push`, of one micro-turn after the other."""
        new = []
        for piece in tokens:
            again = piece[0] == self._last and self._tokenizer.decode([piece[0]]).startswith(" ")
            new += [] if again else [piece]
            self._last = piece[0]
        return super().push(new)

    def state(self) -> dict[str, Any]:
        """All that it remembers."""
        return super().state() | {"last": self._last}

    def go_on(self, state: dict[str, Any]) -> None:
        """Goes on where another one was."""
        super().go_on(state)
        self._last = state["last"]


class _Speech:
    """Counts the stretches of the model's speech, and tells which of them the user cut short.

    Whether the user spoke over it is what the model heard, in words: loudness would take any noise for an interruption,
    and cut the ends of sentences.

    Attributes:
      epoch: the present or last stretch, from 1; 0 before the first.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self._since: int | None = None  # micro-turn in which the present one began
        self._heard: int | None = None  # micro-turn in which the user was last heard

    def push(self, turn: int, speaks: bool, hears: bool) -> int:
        """One micro-turn: the epoch that it ends, where the user did that, else 0."""
        self._heard = turn if hears else self._heard
        since, heard = self._since, self._heard
        if speaks:
            self.epoch += since is None
            self._since = turn if since is None else since
            return 0
        self._since = None
        over = since is not None and heard is not None and heard >= max(since + LATE, turn - OVERLAP + 1)
        return self.epoch if over else 0

    def state(self) -> dict[str, Any]:
        """All that it remembers."""
        return {"epoch": self.epoch, "since": self._since, "heard": self._heard}

    def go_on(self, state: dict[str, Any]) -> None:
        """Goes on where another one was."""
        self.epoch, self._since, self._heard = state["epoch"], state["since"], state["heard"]


class Outlet:
    """One session's. Not thread-safe: one call at a time, micro-turns in order."""

    def __init__(self, spec: StreamSpec, tokenizer: Tokenizer, voice: magnitudes.Weights | None = None) -> None:
        """Makes the outlet of a session that begins; `voice` is the vocoder's."""
        self._spec, self._tokenizer, self._control = spec, tokenizer, tokenizer.control
        self._said, self._heard, self._speech = _Text(tokenizer), _Heard(tokenizer), _Speech()
        self._vocoder = Vocoder(spec, voice)

    @property
    def _parts(self) -> dict[str, Any]:
        return {"said": self._said, "heard": self._heard, "vocoder": self._vocoder, "speech": self._speech}

    def state(self) -> dict[str, Any]:
        """All that it remembers."""
        return {name: part.state() for name, part in self._parts.items()}

    def go_on(self, state: dict[str, Any]) -> None:
        """Goes on where another one was."""
        for name, part in self._parts.items():
            part.go_on(state[name])

    def decision(self, tokens: np.ndarray) -> events.Decision:
        """What the micro-turn's tokens, at least one, decide."""
        silent = {self._control.listen: events.Decision.LISTEN, self._control.delegate: events.Decision.DELEGATE}
        return silent.get(int(tokens[0]), events.Decision.SPEAK)

    def yielded(self, turn: int, tokens: np.ndarray, heard: np.ndarray) -> int:
        """The epoch that ends in micro-turn `turn` because the user spoke over it; 0 where none does."""
        speaks = self.decision(tokens) is events.Decision.SPEAK
        return self._speech.push(turn, speaks, any(self._tokenizer.is_word(int(token)) for token in heard))

    def words(self, turn: int, tokens: np.ndarray, heard: np.ndarray) -> list[events.HeardWords | events.Words]:
        """What micro-turn `turn` says, and heard in it: each token of what is said leads a part of the next one."""
        found: list[events.HeardWords | events.Words] = []
        now, period = turn * self._spec.micro_turn_ms, self._spec.micro_turn_ms
        if piece := self._heard.push((int(token), now, now + period) for token in heard):
            found.append(events.HeardWords(turn, *piece))
        times = [now + period + i * period // self._spec.max_output for i in range(self._spec.max_output + 1)]
        if piece := self._said.push((int(token), times[i], times[i + 1]) for i, token in enumerate(tokens)):
            found.append(events.Words(turn, *piece))
        return found

    def sound(self, turn: int, mel: np.ndarray | None) -> events.Sound | None:
        """The sound that micro-turn `turn` makes; None where nothing can be heard.

        Args:
          turn: the micro-turn.
          mel: [mel_frames, mel_bins], or None where the model is silent.
        """
        samples = self._vocoder.push(mel)
        if np.abs(samples).max() <= AUDIBLE:
            return None
        start_ms = (turn + 1) * self._spec.micro_turn_ms
        level = float(np.sqrt(np.mean(samples * samples)))
        return events.Sound(turn, start_ms, start_ms + self._spec.micro_turn_ms, samples, level, self._speech.epoch)
