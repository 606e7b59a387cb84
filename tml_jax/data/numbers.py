"""Number words: "eighty four" <-> 84, as people say them."""

UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
TENS = ("thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def to_words(number: int) -> str:
    """A number from -999 to 999 in words, digits of a compound apart: ``84 -> "eighty four"``."""
    if not -999 <= number <= 999:
        raise ValueError(f"{number} is beyond the numbers that are spoken here, -999 to 999.")
    if number < 0:
        return "minus " + to_words(-number)
    if number <= 20:
        return UNITS[number]
    hundreds, rest = divmod(number, 100)
    if hundreds:
        return f"{UNITS[hundreds]} hundred" + (f" {to_words(rest)}" if rest else "")
    tens, ones = divmod(rest, 10)
    head = "twenty" if tens == 2 else TENS[tens - 3]
    return f"{head} {UNITS[ones]}" if ones else head


def from_word(word: str) -> int:
    """The number that one of the words up to twenty names.

    Raises:
      ValueError: the word names none.
    """
    if word not in UNITS:
        raise ValueError(f"{word!r} is no number from zero to twenty.")
    return UNITS.index(word)
