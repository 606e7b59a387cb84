"""What the background model can do so far: arithmetic and the time of day.

A tool takes the last thing that was asked, in words, and answers in words that the small model can say, or None
where the question is not for it.
"""

import dataclasses
import datetime
import re
from collections.abc import Callable

from tml_jax.streams import number_words

UNKNOWN = "i do not know"
Tool = Callable[[str], str | None]

_OPERATORS: dict[str, Callable[[int, int], int]] = {
    "times": lambda a, b: a * b,
    "plus": lambda a, b: a + b,
    "minus": lambda a, b: a - b,
}


def split_words(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return re.findall(r"[^\W\d_]+|\d+", text.lower().replace("o'clock", "o clock"))


def calculate(question: str) -> str | None:
    """The last "A times|plus|minus B" in the question, worked out: "what is twelve times seven" -> "eighty four"."""
    words, answer, at = split_words(question), None, 0
    while at < len(words):
        left = number_words.parse_words(words[at:])
        if left is None:
            at += 1
            continue
        value, used = left
        at += used
        while at < len(words) and words[at] in _OPERATORS:
            right = number_words.parse_words(words[at + 1 :])
            if right is None:
                break
            value = _OPERATORS[words[at]](value, right[0])
            at += 1 + right[1]
            answer = value
    if answer is None:
        return None
    return number_words.to_words(answer) if abs(answer) <= number_words.LARGEST else UNKNOWN


@dataclasses.dataclass(frozen=True)
class Clock:
    """Tells the time: 19:15 is "it is seven fifteen", 10:00 "it is ten o clock", 7:05 "it is seven zero five"."""

    now: Callable[[], datetime.datetime] = datetime.datetime.now

    def __call__(self, question: str) -> str | None:
        """Answers a question with "time" in it."""
        if "time" not in split_words(question):
            return None
        moment = self.now()
        hour = number_words.to_words(moment.hour % 12 or 12)
        if moment.minute == 0:
            return f"it is {hour} o clock"
        zero = "zero " if moment.minute < 10 else ""
        return f"it is {hour} {zero}{number_words.to_words(moment.minute)}"


DEFAULT_TOOLS: tuple[Tool, ...] = (calculate, Clock())
