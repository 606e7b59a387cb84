"""Whole numbers as words and back: "eighty four" <-> 84, for -999 to 999."""

from collections.abc import Sequence

UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
SPANISH = ("cero", "uno", "dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve", "diez")
"""Zero to ten."""
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_UNIT = {word: value for value, word in enumerate(UNITS)}
_TEN = {word: 20 + 10 * i for i, word in enumerate(TENS)}
LARGEST = 999


def to_words(number: int) -> str:
    """-3 -> "minus three", 84 -> "eighty four", 144 -> "one hundred forty four".

    Raises:
      ValueError: the number is beyond `LARGEST`.
    """
    if abs(number) > LARGEST:
        raise ValueError(f"{number} has no words here: they go up to {LARGEST}.")
    if number < 0:
        return f"minus {to_words(-number)}"
    words = []
    if number >= 100:
        words += [UNITS[number // 100], "hundred"]
        number %= 100
        if not number:
            return " ".join(words)
    if number >= 20:
        words.append(TENS[number // 10 - 2])
        number %= 10
        if not number:
            return " ".join(words)
    return " ".join([*words, UNITS[number]])


def parse_words(words: Sequence[str]) -> tuple[int, int] | None:
    """Reads a number at the head of `words`.

    Returns:
      The number and how many words it took, or None where no number stands there.
    """
    if not words:
        return None
    if words[0] == "minus":
        rest = parse_words(words[1:])
        return rest and (-rest[0], rest[1] + 1)
    if words[0].isdecimal() and len(words[0]) <= 3:
        return int(words[0]), 1
    value, used, head = 0, 0, _UNIT.get(words[0])
    if head is not None and 1 <= head <= 9 and len(words) > 1 and words[1] == "hundred":
        value, used = 100 * head, 2
        if len(words) > 3 and words[2] == "and" and (words[3] in _UNIT or words[3] in _TEN):
            used = 3
    if used < len(words) and words[used] in _TEN:
        value += _TEN[words[used]]
        used += 1
        if used < len(words) and 1 <= _UNIT.get(words[used], 0) <= 9:
            return value + _UNIT[words[used]], used + 1
        return value, used
    if used < len(words) and words[used] in _UNIT and not (used and words[used] == "zero"):
        return value + _UNIT[words[used]], used + 1
    return (value, used) if used else None


def from_words(text: str) -> int:
    """ "eighty four" -> 84.

    Raises:
      ValueError: the text is no number.
    """
    words = text.split()
    found = parse_words(words)
    if found is None or found[1] != len(words):
        raise ValueError(f"{text!r} is no number in words.")
    return found[0]
