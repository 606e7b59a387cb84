"""Text: strings <-> token ids, the control tokens, and streaming decoding.

Tokenizers are byte-level BPE files in the format of the `tokenizers` library: the tiny one of this repository
(`vocabulary`) or Inkling's published one. The stream's own control tokens are no part of either: they take the
first unused rows of the model's embedding, so that no file and no weight changes shape.
"""

import codecs
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterable

import tokenizers


@dataclasses.dataclass(frozen=True)
class ControlTokens:
    """Ids of the control tokens: `base` and the rows after it, where `base` is the number of rows the tokenizer uses.

    Output decisions: `listen` (stay silent), `speak` (sound goes on, no new word), `end` (end of a text-only block),
    `delegate` (hand over to the background model). Heads of an input text: `background` (a result), `user` (typed),
    `instructions`; `tick` stands in an otherwise empty input block. `nothing` is the `heard` channel's "no word".
    """

    base: int
    listen: int = dataclasses.field(init=False)
    speak: int = dataclasses.field(init=False)
    end: int = dataclasses.field(init=False)
    delegate: int = dataclasses.field(init=False)
    background: int = dataclasses.field(init=False)
    user: int = dataclasses.field(init=False)
    instructions: int = dataclasses.field(init=False)
    tick: int = dataclasses.field(init=False)
    nothing: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        if self.base < 0:
            raise ValueError(f"The control tokens must follow the tokenizer's rows, but base={self.base}.")
        for i, name in enumerate(self.names()):
            object.__setattr__(self, name, self.base + i)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Their names, in the order of their rows."""
        return tuple(field.name for field in dataclasses.fields(cls) if not field.init)

    @property
    def stop(self) -> int:
        """One past the last control token: the fewest rows that the model's embedding can have."""
        return self.nothing + 1

    def name(self, token: int) -> str | None:
        """``"<|listen|>"`` and so on; None where `token` is no control token."""
        return f"<|{self.names()[token - self.base]}|>" if self.base <= token < self.stop else None


def _byte_alphabet() -> dict[str, int]:
    """The printable character by which byte-level BPE writes each byte (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


BYTE_OF = _byte_alphabet()
"""The byte that each character of a byte-level token stands for."""


class Tokenizer:
    """A byte-level BPE tokenizer with the control tokens after it. Adds no token of its own at the beginning or end.

    Attributes:
      path: the file it was read from.
      vocab_size: rows that the tokenizer uses, up to its highest id; the model's embedding has more.
      control: ids of the control tokens.
      checksum: of what its tokens mean.
    """

    def __init__(self, path: str | os.PathLike[str], base: int | None = None) -> None:
        """Reads a tokenizer file.

        Args:
          path: a `tokenizer.json`.
          base: row of the first control token, where that is not the number of rows the tokenizer uses.

        Raises:
          ValueError: the file is missing or is no tokenizer, or `base` would overwrite rows of the tokenizer.
        """
        self.path = pathlib.Path(path)
        try:
            text = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
            raise ValueError(f"The tokenizer {str(self.path)!r} cannot be read: {reason}.") from error
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises a bare Exception
            raise ValueError(
                f"{str(self.path)!r} is no tokenizer.json of the tokenizers library (damaged or cut off?): {error}."
            ) from error
        # What a user types is text, even if it spells the name of a special token.
        self._tokenizer.encode_special_tokens = True
        self.vocab_size = 1 + max(self._tokenizer.get_vocab().values(), default=-1)
        if base is not None and base < self.vocab_size:
            raise ValueError(f"base={base} would overwrite the tokenizer's {self.vocab_size} rows.")
        self.control = ControlTokens(self.vocab_size if base is None else base)
        self.checksum = hashlib.sha256(f"{self.control.base} {text}".encode()).hexdigest()[:16]
        self._special = frozenset(i for i, t in self._tokenizer.get_added_tokens_decoder().items() if t.special)

    def same_tokens(self, other: "Tokenizer") -> bool:
        """Whether both mean the same by every row."""
        return self._tokenizer.get_vocab() == other._tokenizer.get_vocab()

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`. A word inside a sentence is written with its leading space: ``encode(" seven")``."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; control tokens and unused rows stand for no text."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def is_word(self, token: int) -> bool:
        """Whether `token` stands for text."""
        return 0 <= token < self.vocab_size and int(token) not in self._special

    def token_bytes(self, token: int) -> bytes:
        """The bytes that `token` stands for: any part of a UTF-8 text, empty where it stands for no text."""
        piece = self._tokenizer.id_to_token(int(token)) if self.is_word(token) else None
        if piece is None:
            return b""
        return b"".join(bytes([BYTE_OF[c]]) if c in BYTE_OF else c.encode() for c in piece)


class TextDecoder:
    """Decodes a stream of tokens, holding back the bytes of an unfinished character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The characters that `token` completes; bytes that are no UTF-8 become U+FFFD."""
        return self._utf8.decode(self._tokenizer.token_bytes(token))

    @property
    def pending(self) -> bool:
        """Whether bytes of an unfinished character are held back."""
        return bool(self._utf8.getstate()[0])

    def state(self) -> tuple[bytes, int]:
        """All that it remembers."""
        return self._utf8.getstate()

    def go_on(self, state: tuple[bytes, int]) -> None:
        """Goes on where another one was."""
        self._utf8.setstate((state[0], state[1]))

    def flush(self) -> str:
        """What was held back, as U+FFFD: the stream ends here or jumps."""
        return self._utf8.decode(b"", final=True)
