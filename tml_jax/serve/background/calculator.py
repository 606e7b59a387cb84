"""Arithmetic in words and digits, with units: "what is twelve times seven", "five kilometers plus 200 meters in miles".

Products bind before sums and powers before products; "then" goes on with what was worked out so far, and so does
"that". Values are exact fractions, but for roots.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from tml_jax.serve.background import spoken, units

_SUMS = {"plus": 1, "+": 1, "add": 1, "minus": -1, "-": -1, "subtract": -1}
_PRODUCTS = {
    "times": 1,
    "*": 1,
    "×": 1,
    "x": 1,
    "multiplied": 1,
    "multiply": 1,
    "divided": -1,
    "divide": -1,
    "/": -1,
    "÷": -1,
}
_PREFIXES: tuple[tuple[str, Any], ...] = (
    ("the square root of", "root"),
    ("square root of", "root"),
    ("half of", Fraction(1, 2)),
    ("a half of", Fraction(1, 2)),
    ("half", Fraction(1, 2)),
    ("a third of", Fraction(1, 3)),
    ("a quarter of", Fraction(1, 4)),
    ("twice", Fraction(2)),
    ("double", Fraction(2)),
    ("a dozen", "dozen"),
)
_RESULT = ("that", "it", "this")
MAX_DEPTH, MAX_WORDS = 50, 500


class _NoNumber(Exception):
    """No expression stands here."""


class _Parser:
    """Reads one expression at the head of some words; `operations` counts what there was to work out."""

    def __init__(self, words: Sequence[str], with_units: bool, before: Any = None) -> None:
        self.words, self.at, self.operations, self.before = list(words), 0, 0, before
        self._units = units.registry() if with_units else None
        self._depth = 0

    def head(self, phrase: str) -> bool:
        """Takes these words, if they come next."""
        wanted = phrase.split()
        if self.words[self.at : self.at + len(wanted)] != wanted:
            return False
        self.at += len(wanted)
        return True

    @property
    def next(self) -> str:
        """The next word, or nothing."""
        return self.words[self.at] if self.at < len(self.words) else ""

    def _sign(self) -> None:
        """Takes a sign; a word that was said or heard twice counts once, two written ones are no doubling."""
        sign = self.next
        self.at += 1
        while sign.isalpha() and self.next == sign:
            self.at += 1

    def sum(self, value: Any = None) -> Any:
        """What follows is added up, from `value` on if there is one. What is cut off after a sign is left."""
        value = self._product(self._power() if value is None else value)
        while sign := _SUMS.get(self.next):
            back = self.at, self.operations
            self._sign()
            try:
                right = self._product(self._power())
            except _NoNumber:
                self.at, self.operations = back
                break
            value = value + right if sign > 0 else value - right
            self.operations += 1
        return value

    def _product(self, value: Any) -> Any:
        while sign := _PRODUCTS.get(self.next):
            back = self.at, self.operations
            self._sign()
            self.head("by") or self.head("it by") or self.head("that by")
            try:
                right = self._power()
            except _NoNumber:
                self.at, self.operations = back
                break
            value = value * right if sign > 0 else value / right
            self.operations += 1
        return value

    def _power(self) -> Any:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _NoNumber
        try:
            return self._postfix(self._primary())
        finally:
            self._depth -= 1

    def _primary(self) -> Any:
        if self.head("minus") or self.head("-"):
            return -self._power()
        for phrase, what in _PREFIXES:
            if self.head(phrase):
                self.operations += 1
                if what == "dozen":
                    return Fraction(12)
                value = self._power()
                return _root(value) if what == "root" else what * value
        if self.head("("):
            value = self.sum()
            if not self.head(")"):
                raise _NoNumber
            return value
        if self.next in _RESULT and self.before is not None:
            self.at += 1
            return self.before
        found = spoken.read_number(self.words[self.at :])
        if found is None and self.next in ("a", "an") and self._units and units.read_unit(self.words[self.at + 1 :]):
            found = Fraction(1), 1
        if found is None:
            raise _NoNumber
        value, used = found
        self.at += used
        unit = units.read_unit(self.words[self.at :]) if self._units else None
        if unit is None:
            return value
        self.at += unit[1]
        return self._units.Quantity(value, unit[0])

    def _postfix(self, value: Any) -> Any:
        while True:
            if self.head("squared"):
                value = _power(value, Fraction(2))
            elif self.head("cubed"):
                value = _power(value, Fraction(3))
            elif self.head("to the power of") or self.head("^"):
                value = _power(value, self._power())
            elif self.head("percent of") or self.head("% of"):
                value = value / 100 * self._power()
            elif self.head("%") or self.head("percent"):
                value = value / 100
            else:
                return value
            self.operations += 1


def _root(value: Any) -> Any:
    if not isinstance(value, Fraction) or value < 0:
        raise ArithmeticError
    up, down = math.isqrt(value.numerator), math.isqrt(value.denominator)
    exact = Fraction(up, down)
    return exact if exact * exact == value else Fraction(math.sqrt(value))


def _power(value: Any, exponent: Any) -> Any:
    if not isinstance(exponent, Fraction) or exponent.denominator != 1 or abs(exponent) > 64:
        raise ArithmeticError
    size = Fraction(getattr(value, "magnitude", value))
    if max(abs(size.numerator), size.denominator) > spoken.LARGEST:
        raise ArithmeticError
    return value ** int(exponent)


def read_count(words: Sequence[str]) -> tuple[Fraction, int] | None:
    """A plain number or expression at the head of `words`, without units, and how many of them it took."""
    parser = _Parser(words, with_units=False)
    try:
        value = parser.sum()
    except (_NoNumber, ArithmeticError):
        return None
    return value, parser.at


def quantities(text: str) -> list[Any]:
    """All numbers with a unit that stand in a text."""
    words, found, at = spoken.split(text)[:MAX_WORDS], [], 0
    while at < len(words):
        parser = _Parser(words[at:], with_units=True)
        try:
            value = parser.sum()
        except Exception:  # a text is no expression
            at += 1
            continue
        found += [] if isinstance(value, Fraction) else [value]
        at += max(1, parser.at)
    return found


def convert(value: Any, unit: str) -> Any:
    """A quantity in another unit. Raises ArithmeticError where it cannot be."""
    try:
        return value.to(unit)
    except Exception as error:  # pint raises several of its own
        raise ArithmeticError from error


def say(value: Any) -> str | None:
    """A number or quantity in words; None where it has none."""
    if isinstance(value, Fraction):
        return spoken.say_number(value)
    magnitude = Fraction(value.magnitude).limit_denominator(10**12)
    words = spoken.say_number(magnitude)
    if words is None or not str(value.units):
        return words
    return f"{words} {units.say_unit(str(value.units), abs(magnitude) == 1)}"


def calculate(question: str) -> str | None:
    """The last thing in the question that can be worked out, in words; None where there is none.

    Raises:
      ArithmeticError: what there is has no answer, as a division by zero, or none that can be said.
    """
    words = spoken.split(question)[-MAX_WORDS:]
    wanted = _wanted_unit(words)
    answer, value, at = None, None, 0
    while at < len(words):
        parser = _Parser(words[at:], with_units=True, before=value)
        try:
            found = _statement(parser, wanted, goes_on=value is not None)
        except _NoNumber:
            at += 1
            continue
        except ArithmeticError:
            raise
        except Exception as error:  # pint's, where units do not fit
            raise ArithmeticError(str(error)) from error
        at += max(1, parser.at)
        if parser.operations:
            value = answer = found
    if answer is None:
        return None
    words_of_it = say(answer)
    if words_of_it is None:
        raise ArithmeticError("beyond all words")
    return words_of_it


def _wanted_unit(words: Sequence[str]) -> str | None:
    """ "how many miles are ..." -> "mile"."""
    for at in range(len(words) - 2):
        if list(words[at : at + 2]) == ["how", "many"] and (unit := units.read_unit(words[at + 2 :])):
            return unit[0]
    return None


def _statement(parser: _Parser, wanted: str | None, goes_on: bool) -> Any:
    """One expression, or what is done next with the last one, and what unit it is wanted in."""
    if goes_on and parser.head("then"):
        sign, product = _SUMS.get(parser.next), _PRODUCTS.get(parser.next)
        if sign is None and product is None:
            raise _NoNumber
        before = parser.operations
        value = parser.sum(parser.before)
        if parser.operations == before:
            raise _NoNumber
    else:
        value = parser.sum()
    for word in ("in", "to", "into", "as"):
        if parser.next == word and (unit := units.read_unit(parser.words[parser.at + 1 :])):
            if isinstance(value, Fraction):
                raise ArithmeticError("a number of what?")
            parser.at += 1 + unit[1]
            parser.operations += 1
            return convert(value, unit[0])
    if wanted is not None and not isinstance(value, Fraction):
        parser.operations += 1
        return convert(value, wanted)
    return value
