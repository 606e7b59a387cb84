"""Units by their plain names; `pint` knows what they are worth.

Without pint (the extra `background`) no unit is known, and what needs one is answered with "i do not know".
"""

import functools
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

_NAMES = (
    *("meter", "kilometer", "centimeter", "millimeter", "mile", "yard", "foot", "inch", "nautical_mile"),
    *("gram", "kilogram", "tonne", "pound", "ounce", "stone"),
    *("liter", "milliliter", "gallon", "pint", "cup", "tablespoon", "teaspoon"),
    *("second", "minute", "hour", "day", "week", "acre", "hectare", "knot", "degree", "radian", "kelvin"),
    *("joule", "calorie", "watt", "kilowatt", "horsepower", "volt", "ampere", "newton", "pascal", "bar", "psi"),
    *("bit", "byte", "kilobyte", "megabyte", "gigabyte", "terabyte"),
)
_ALSO = {
    **{"metre": "meter", "kilometre": "kilometer", "centimetre": "centimeter", "millimetre": "millimeter"},
    **{"litre": "liter", "millilitre": "milliliter", "ton": "tonne", "feet": "foot", "inches": "inch", "lb": "pound"},
    **{"lbs": "pound", "oz": "ounce", "km": "kilometer", "cm": "centimeter", "mm": "millimeter", "kg": "kilogram"},
    **{"ml": "milliliter", "mb": "megabyte", "gb": "gigabyte", "tb": "terabyte", "kilo": "kilogram", "amp": "ampere"},
    **{"mph": "mile / hour", "kph": "kilometer / hour", "celsius": "degree_Celsius", "fahrenheit": "degree_Fahrenheit"},
    **{"degrees celsius": "degree_Celsius", "degrees fahrenheit": "degree_Fahrenheit"},
    **{"nautical mile": "nautical_mile", "nautical miles": "nautical_mile"},
}
_UNITS = {name: name for name in _NAMES} | {f"{name}s": name for name in _NAMES} | _ALSO
_UNITS |= {f"{name}s": unit for name, unit in _ALSO.items() if len(name) > 3 and not name.endswith("s")}
_SPOKEN = {"degree_Celsius": "degrees celsius", "degree_Fahrenheit": "degrees fahrenheit", "foot": "feet"}
_SPOKEN |= {
    "inch": "inches",
    "nautical_mile": "nautical miles",
    "kelvin": "kelvin",
    "psi": "psi",
    "horsepower": "horsepower",
}


@functools.cache
def registry() -> Any:
    """pint's units, exact; None where pint is not installed."""
    try:
        import pint
    except ImportError:
        return None
    return pint.UnitRegistry(non_int_type=Fraction, autoconvert_offset_to_baseunit=True)


def read_unit(words: Sequence[str]) -> tuple[str, int] | None:
    """A unit at the head of `words`, as pint writes it: "kilometers per hour" -> ("kilometer / hour", 3)."""
    power = {"square": 2, "cubic": 3}.get(words[0]) if words else None
    at = 1 if power else 0
    for used in (2, 1):
        unit = _UNITS.get(" ".join(words[at : at + used])) if len(words) >= at + used else None
        if unit is None:
            continue
        at += used
        unit = f"{unit} ** {power}" if power else unit
        if words[at : at + 1] == ["per"] and (below := read_unit(words[at + 1 :])):
            return f"{unit} / {below[0]}", at + 1 + below[1]
        return unit, at
    return None


def say_unit(unit: str, one: bool) -> str:
    """ "kilometer / hour" -> "kilometers per hour"."""
    above, *below = unit.split(" / ")
    name, _, power = above.partition(" ** ")
    words = name.replace("_", " ") if one and not name.startswith("degree_") else _SPOKEN.get(name, f"{name}s")
    words = f"{'square' if power == '2' else 'cubic'} {words}" if power else words
    return " per ".join([words, *(part.replace("_", " ") for part in below)])
