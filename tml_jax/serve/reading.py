"""How much text a session's model may be given: what it reads takes time, in which it reads nothing else."""

from tml_jax.serve import intake
from tml_jax.streams.micro_turn import StreamSpec
from tml_jax.streams.text import Tokenizer


class Reading:
    """How a model reads.

    Attributes:
      most: tokens of text that may wait to be read.
    """

    def __init__(self, tokenizer: Tokenizer, spec: StreamSpec, max_text_ms: int) -> None:
        """Of the model of this stream, for which there may be as much text as it reads in `max_text_ms`."""
        self._tokenizer = tokenizer
        self.most = max_text_ms * spec.max_text // spec.micro_turn_ms

    def tokens(self, head: int, text: str) -> list[int]:
        """A text as the model reads it, after the token that says what it is."""
        return [head, *self._tokenizer.encode(" " + text)]

    def count(self, text: str) -> int:
        """Tokens of a text, which is not much longer than one may be: a million characters take seconds."""
        return len(self.tokens(0, text))

    def check_instructions(self, text: str) -> None:
        """Raises BadInputError where instructions are longer than may be read at once."""
        for unit, measure, most in (("characters", len, intake.MAX_TEXT), ("tokens", self.count, self.most)):
            if (size := measure(text)) > most:
                raise intake.BadInputError(f"Instructions of {size} {unit} are too long: send at most {most}.")

    def fits(self, text: str) -> bool:
        """Whether these instructions are none too long."""
        try:
            self.check_instructions(text)
        except intake.BadInputError:
            return False
        return True
