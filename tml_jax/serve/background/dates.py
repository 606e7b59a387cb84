"""The clock and the calendar: "what time is it", "what day is in three weeks", "how many days until christmas"."""

import calendar
import dataclasses
import datetime
import itertools
from collections.abc import Callable, Sequence

from tml_jax.serve.background import calculator, spoken

_SPANS = ("second", "minute", "hour", "day", "week", "month", "year")
_SPAN = {name: name for name in _SPANS} | {f"{name}s": name for name in _SPANS}
_FEASTS = {
    **{"christmas eve": (12, 24), "christmas": (12, 25), "new year s eve": (12, 31), "new year s day": (1, 1)},
    **{"new year": (1, 1), "new years": (1, 1), "halloween": (10, 31), "valentine s day": (2, 14)},
}
_NEAR = {"today": 0, "now": 0, "tomorrow": 1, "yesterday": -1, "the day after tomorrow": 2}


def _starts(words: Sequence[str], phrase: str) -> int:
    """How many words `phrase` takes at the head of `words`; 0 where it does not stand there."""
    wanted = phrase.split()
    return len(wanted) if list(words[: len(wanted)]) == wanted else 0


def _span(words: Sequence[str]) -> tuple[int, str, int] | None:
    """ "three weeks" -> (3, "week", 2): how many, of what, and how many words it took."""
    if words and words[0] in ("a", "an") and len(words) > 1 and words[1] in _SPAN:
        return 1, _SPAN[words[1]], 2
    found = calculator.read_count(words)
    if found is None:
        return None
    value, used = found
    unit = _SPAN.get(words[used]) if used < len(words) else None
    if unit is None or value.denominator != 1 or abs(value) > 10**6:
        return None
    return int(value), unit, used + 1


def shift(moment: datetime.datetime, count: int, unit: str) -> datetime.datetime:
    """Goes `count` of a unit on; the last of a month stays a last of a month where the other has fewer days.

    Raises:
      ArithmeticError: the calendar does not go so far.
    """
    try:
        if unit not in ("month", "year"):
            return moment + datetime.timedelta(**{f"{unit}s": count})
        months = moment.year * 12 + moment.month - 1 + count * (12 if unit == "year" else 1)
        year, month = divmod(months, 12)
        day = min(moment.day, calendar.monthrange(year, month + 1)[1])
        return moment.replace(year=year, month=month + 1, day=day)
    except (ValueError, OverflowError) as error:
        raise ArithmeticError("beyond the calendar") from error


@dataclasses.dataclass(frozen=True)
class Almanac:
    """Answers questions about times and days.

    Attributes:
      now: the clock, local time.
    """

    now: Callable[[], datetime.datetime] = datetime.datetime.now

    def __call__(self, question: str) -> str | None:
        """The answer in words, or None where the question is not about times or days.

        Raises:
          ArithmeticError: the calendar does not go so far.
        """
        words, now = spoken.split(question.lower().replace("o'clock", "o clock")), self.now()
        for word in ("until", "till", "to"):
            if (count := self._count(words, word, now)) is not None:
                return count
        if (count := self._between(words, now)) is not None:
            return count
        moment, clock = self._moment(words, now)
        if "time" in words and (clock or moment is None):
            return f"it is {spoken.say_time(moment or now)}"
        pairs = itertools.pairwise(words)
        if any(first in ("what", "which", "the") and then in ("day", "date", "weekday") for first, then in pairs):
            return f"it is {spoken.say_date((moment or now).date(), now.date())}"
        return None

    def _moment(self, words: Sequence[str], now: datetime.datetime) -> tuple[datetime.datetime | None, bool]:
        """The moment that is asked about, and whether by the clock: "in two hours", "three days ago", "march third"."""
        for at in range(len(words)):
            if words[at] == "in" and (span := _span(words[at + 1 :])):
                return shift(now, span[0], span[1]), span[1] in _SPANS[:3]
            if span := _span(words[at:]):
                rest = words[at + span[2] :]
                if _starts(rest, "ago"):
                    return shift(now, -span[0], span[1]), span[1] in _SPANS[:3]
                for word, sign in (("after", 1), ("from", 1), ("before", -1)):
                    if _starts(rest, word) and (day := self._day(rest[1:], now)):
                        return shift(_midnight(day[0]), sign * span[0], span[1]), False
            if day := self._day(words[at:], now):
                return _midnight(day[0]), False
        return None, False

    def _day(self, words: Sequence[str], now: datetime.datetime) -> tuple[datetime.date, int] | None:
        """A day at the head of `words`, the next such one, and how many words it took."""
        today = now.date()
        for phrase, days in sorted(_NEAR.items(), key=lambda item: -len(item[0])):
            if used := _starts(words, phrase):
                return today + datetime.timedelta(days=days), used
        for phrase, (month, day) in sorted(_FEASTS.items(), key=lambda item: -len(item[0])):
            if used := _starts(words, phrase):
                return self._dated(words, used, month, day, today)
        skip = 1 if words[:1] in (["next"], ["the"]) else 0
        name, *rest = list(words[skip:]) or [""]
        if name in spoken.WEEKDAYS:
            ahead = (spoken.WEEKDAYS.index(name) - today.weekday() - 1) % 7 + 1
            return today + datetime.timedelta(days=ahead), skip + 1
        if name in spoken.MONTHS and (found := spoken.read_day(rest)):
            return self._dated(words, skip + 1 + found[1], spoken.MONTHS.index(name) + 1, found[0], today)
        if (found := spoken.read_day(words[skip:])) and _starts(words[skip + found[1] :], "of"):
            after = skip + found[1] + 1
            if after < len(words) and words[after] in spoken.MONTHS:
                return self._dated(words, after + 1, spoken.MONTHS.index(words[after]) + 1, found[0], today)
        return None

    def _dated(
        self, words: Sequence[str], used: int, month: int, day: int, today: datetime.date
    ) -> tuple[datetime.date, int] | None:
        """That day of the year that is named next in words, or else of the first year in which it is still to come."""
        year = words[used] if used < len(words) else ""
        named = year.isdigit() and len(year) == 4
        for candidate in (int(year),) if named else range(today.year, today.year + 9):
            try:
                found = datetime.date(candidate, month, day)
            except ValueError:  # there is no such day in that year
                continue
            if named or found >= today:
                return found, used + named
        return None

    def _count(self, words: Sequence[str], word: str, now: datetime.datetime) -> str | None:
        """ "how many days until christmas"."""
        unit = _counted(words)
        if unit is None or word not in words:
            return None
        day = self._day(words[words.index(word) + 1 :], now)
        return None if day is None else _say_days((day[0] - now.date()).days, unit)

    def _between(self, words: Sequence[str], now: datetime.datetime) -> str | None:
        """ "how many days are between march third and april first"."""
        unit = _counted(words)
        if unit is None:
            return None
        for word in ("between", "from"):
            first = self._day(words[words.index(word) + 1 :], now) if word in words else None
            if first is None:
                continue
            rest = words[words.index(word) + 1 + first[1] :]
            # The second is the next such day after the first, where no year is named.
            base = datetime.datetime.combine(max(first[0], now.date()), datetime.time())
            if rest[:1] in (["and"], ["to"], ["until"]) and (second := self._day(rest[1:], base)):
                return _say_days(abs((second[0] - first[0]).days), unit)
        return None


def _counted(words: Sequence[str]) -> str | None:
    """ "how many weeks" -> "week"."""
    for at in range(len(words) - 2):
        if list(words[at : at + 2]) == ["how", "many"]:
            unit = _SPAN.get(words[at + 2])
            return unit if unit in ("day", "week") else None
    return None


def _midnight(day: datetime.date) -> datetime.datetime:
    return datetime.datetime.combine(day, datetime.time())


def _say_days(days: int, unit: str) -> str | None:
    whole, rest = divmod(days, 7) if unit == "week" else (days, 0)
    parts = [(whole, unit)] if unit == "day" else [(whole, "week"), (rest, "day")]
    said = [f"{spoken.say_number(spoken.Fraction(n))} {name}{'' if n == 1 else 's'}" for n, name in parts if n]
    return " and ".join(said) or f"zero {unit}s"
