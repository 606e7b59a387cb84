"""Numbers and dates in words and back, beyond the numbers that the stream's small world has."""

import datetime
import re
from collections.abc import Sequence
from fractions import Fraction

from tml_jax.streams import number_words

LARGEST = 10**15
_SCALES = (("trillion", 10**12), ("billion", 10**9), ("million", 10**6), ("thousand", 1000))
_SCALE = dict(_SCALES)
_ORDINALS = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth"}
_ORDINALS |= {"twelve": "twelfth", "twenty": "twentieth", "thirty": "thirtieth"}
_TOKEN = re.compile(r"\d[\d,]*(?:\.\d+)?|[^\W\d_]+|[-+*/^()%×÷]")
MONTHS = tuple(datetime.date(2000, month, 1).strftime("%B").lower() for month in range(1, 13))
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


def split(text: str) -> list[str]:
    """Lower-case words, numbers and signs of arithmetic: "It's 3.5 O'Clock!" -> it s 3.5 o clock."""
    return _TOKEN.findall(text.lower())


def say_number(value: Fraction) -> str | None:
    """ "eighty four", "minus three", "two point five", "about three point three three"; None beyond `LARGEST`."""
    if abs(value) >= LARGEST:
        return None
    if value < 0:
        positive = say_number(-value)
        assert positive is not None
        return f"about minus {positive[6:]}" if positive.startswith("about ") else f"minus {positive}"
    if value.denominator == 1:
        return _whole(int(value))
    places = 2
    while value < Fraction(1, 10 ** (places - 1)) and places < 12:  # two digits that are not zero
        places += 1
    scaled = round(value * 10**places)
    whole, rest = divmod(scaled, 10**places)
    digits = [number_words.UNITS[int(digit)] for digit in f"{rest:0{places}d}".rstrip("0")]
    words = " ".join([_whole(whole), *(["point", *digits] if digits else [])])
    return words if Fraction(scaled, 10**places) == value else f"about {words}"


def _whole(number: int) -> str:
    words = []
    for name, size in _SCALES:
        if number >= size:
            words += [number_words.to_words(number // size), name]
            number %= size
    if number or not words:
        words.append(number_words.to_words(number))
    return " ".join(words)


def read_number(words: Sequence[str]) -> tuple[Fraction, int] | None:
    """A number at the head of `words`, and how many of them it took: "3.5", "two thousand five", "three point one"."""
    if not words:
        return None
    if words[0][0].isdigit():
        if len(words[0]) > 20:
            return None
        value, used = Fraction(words[0].replace(",", "")), 1
        while used < len(words) and words[used] in _SCALE:
            value, used = value * _SCALE[words[used]], used + 1
        return value, used
    if words[0] == "minus":
        return None
    total, used, limit = Fraction(0), 0, LARGEST
    while part := number_words.parse_words(words[used:]):
        if used and words[used][0].isdigit():
            break
        number, count = part
        scale = _SCALE.get(words[used + count]) if used + count < len(words) else None
        if (scale or 1) >= limit:
            break
        total, used = total + number * (scale or 1), used + count + (scale is not None)
        limit = scale or 1
        if limit == 1:
            break
        if used + 1 < len(words) and words[used] == "and" and number_words.parse_words(words[used + 1 :]):
            used += 1
    if not used:
        return None
    if words[used : used + 1] == ["point"]:
        digits = ""
        for word in words[used + 1 :]:
            if word not in number_words.UNITS[:10]:
                break
            digits += str(number_words.UNITS.index(word))
        if digits:
            total, used = total + Fraction(int(digits), 10 ** len(digits)), used + 1 + len(digits)
    return total, used


def say_ordinal(number: int) -> str:
    """21 -> "twenty first"."""
    *head, last = _whole(number).split()
    ending = f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th"
    return " ".join([*head, _ORDINALS.get(last, ending)])


_DAYS = {say_ordinal(day): day for day in range(1, 32)}


def read_day(words: Sequence[str]) -> tuple[int, int] | None:
    """A day of the month at the head of `words`: "third", "twenty first", "3", "3 rd", "three"."""
    for used in (2, 1):
        if len(words) >= used and (day := _DAYS.get(" ".join(words[:used]))):
            return day, used
    found = read_number(words)
    if found is None or found[0].denominator != 1 or not 1 <= found[0] <= 31:
        return None
    used = found[1]
    return int(found[0]), used + (words[used : used + 1] in (["st"], ["nd"], ["rd"], ["th"]))


def say_date(day: datetime.date, today: datetime.date) -> str:
    """ "saturday december nineteenth", with the year where it is another than today's."""
    year = "" if day.year == today.year else f" {_say_year(day.year)}"
    return f"{WEEKDAYS[day.weekday()]} {MONTHS[day.month - 1]} {say_ordinal(day.day)}{year}"


def _say_year(year: int) -> str:
    century, rest = divmod(year, 100)
    if year % 1000 < 10 or not rest or not 1000 <= year < 10_000:
        return _whole(year)
    return f"{_whole(century)} {'o ' if rest < 10 else ''}{_whole(rest)}"


def say_time(moment: datetime.datetime) -> str:
    """19:15 is "seven fifteen", 10:00 "ten o clock", 7:05 "seven zero five"."""
    hour = number_words.to_words(moment.hour % 12 or 12)
    if moment.minute == 0:
        return f"{hour} o clock"
    zero = "zero " if moment.minute < 10 else ""
    return f"{hour} {zero}{number_words.to_words(moment.minute)}"
