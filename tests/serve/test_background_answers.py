"""What the embedded background model knows: arithmetic, units, times, days, and what stands in a folder's texts."""

import datetime
import pathlib
import sys

import pytest

from tml_jax.serve.background import spoken, units
from tml_jax.serve.background.calculator import calculate
from tml_jax.serve.background.dates import Almanac
from tml_jax.serve.background.documents import Documents
from tml_jax.serve.background.embedded import Embedded
from tml_jax.streams import number_words

NOW = datetime.datetime(2026, 11, 29, 19, 15)  # a Sunday


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    made = tmp_path_factory.mktemp("texts")
    (made / "bridge.md").write_text(
        "# The old bridge\n\nThe old bridge is 2.5 kilometers long. It was built in 1911 by the city.\n\n"
        "The ferry leaves at nine every morning.\n"
    )
    (made / "more").mkdir()
    (made / "more" / "cats.txt").write_text("A cat sleeps for fifteen hours a day.")
    (made / "picture.png").write_bytes(bytes(100))
    outside = tmp_path_factory.mktemp("outside") / "secret.txt"
    outside.write_text("The password of the safe is tulip.")
    (made / "link.txt").symlink_to(outside)
    return made


@pytest.fixture(scope="module")
def embedded(folder: pathlib.Path) -> Embedded:
    return Embedded(Documents(folder), Almanac(lambda: NOW))


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("what is twelve times seven", "eighty four"),
        ("What is five minus eight?", "minus three"),
        ("um is twenty plus uh nineteen plus", None),
        ("is twenty plus nineteen", "thirty nine"),
        ("what is two times three what is nine plus one", "ten"),
        ("what is ten minus two minus three", "five"),
        ("nine hundred times nine hundred", "eight hundred ten thousand"),
        ("what is 6 times 7", "forty two"),
        ("repeat five two eight please", None),
        ("say beep every three seconds", None),
        ("", None),
        ("what is nine times times seven", "sixty three"),
        ("two plus three times four", "fourteen"),
        ("(2 + 3) * 4", "twenty"),
        ("ten divided by four", "two point five"),
        ("ten divided by three", "about three point three three"),
        ("one divided by seven thousand", "about zero point zero zero zero one four"),
        ("minus seven divided by two", "minus three point five"),
        ("minus two thirds", None),
        ("the square root of one hundred forty four", "twelve"),
        ("the square root of two", "about one point four one"),
        ("two to the power of ten", "one thousand twenty four"),
        ("three squared plus four squared", "twenty five"),
        ("twenty percent of fifty", "ten"),
        ("half of thirty", "fifteen"),
        ("what is twelve times seven then add six then divide by nine", "ten"),
        ("what is two plus two and that times three", "twelve"),
        ("two thousand five hundred plus one", "two thousand five hundred one"),
        ("1,000,000 * 3", "three million"),
        ("three point five times two", "seven"),
        ("five kilometers in miles", "about three point one one miles"),
        ("how many miles are five kilometers", "about three point one one miles"),
        ("how many feet are in a mile", "five thousand two hundred eighty feet"),
        ("twelve times seven kilometers in miles", "about fifty two point two miles"),
        ("five feet plus six inches in centimeters", "one hundred sixty seven point six four centimeters"),
        ("seventy seven degrees fahrenheit in celsius", "twenty five degrees celsius"),
        ("one hundred kilometers per hour in miles per hour", "about sixty two point one four miles per hour"),
        ("how many hours are in three days", "seventy two hours"),
        ("(" * 3000 + "1 + 1", "two"),
    ],
)
def test_the_calculator(question: str, answer: str | None) -> None:
    assert calculate(question) == answer


@pytest.mark.parametrize(
    "question",
    [
        "one divided by zero",
        "nine to the power of sixty four to the power of sixty four",
        "(1/3) ^ 64 ^ 64 ^ 64",
        "five kilometers plus ten pounds",
        "five kilometers in pounds",
        "twelve times seven in miles",
        "the square root of minus four",
        "9 ^ 60",
    ],
)
def test_what_has_no_answer_is_unknown(embedded: Embedded, question: str) -> None:
    assert embedded.reply(question) == "i do not know"


def test_every_number_has_words_that_read_back() -> None:
    for number in range(-999, 1000):
        words = number_words.to_words(number).split()
        assert number_words.parse_words(words) == (number, len(words))
    assert number_words.to_words(84) == "eighty four"
    assert number_words.to_words(-3) == "minus three"
    assert number_words.to_words(144) == "one hundred forty four"
    with pytest.raises(ValueError, match="go up to 999"):
        number_words.to_words(1000)


@pytest.mark.parametrize("words", [[], ["hundred"], ["please"], ["minus"]])
def test_what_is_no_number_is_none(words: list[str]) -> None:
    assert number_words.parse_words(words) is None


def test_every_number_and_day_can_be_said_and_read() -> None:
    for number in [*range(0, 3000, 7), 10**6, 1_234_567, 999_999_999_999, 10**12 + 5]:
        said = spoken.say_number(spoken.Fraction(number))
        assert said is not None
        assert spoken.read_number(said.split()) == (number, len(said.split()))
    assert spoken.say_number(spoken.Fraction(10**15)) is None
    for day in range(1, 32):
        said = spoken.say_ordinal(day)
        assert spoken.read_day(said.split()) == (day, len(said.split()))
    assert [spoken.say_ordinal(day) for day in (1, 12, 20, 21, 30)] == [
        "first",
        "twelfth",
        "twentieth",
        "twenty first",
        "thirtieth",
    ]


@pytest.mark.parametrize(
    ("hour", "minute", "answer"),
    [
        (19, 15, "it is seven fifteen"),
        (10, 0, "it is ten o clock"),
        (0, 5, "it is twelve zero five"),
        (12, 59, "it is twelve fifty nine"),
    ],
)
def test_the_clock(hour: int, minute: int, answer: str) -> None:
    clock = Almanac(lambda: datetime.datetime(2026, 1, 1, hour, minute))
    assert clock("what time is it") == answer
    assert clock("what is two times two") is None
    assert spoken.split("It's 3.5 O'Clock!") == ["it", "s", "3.5", "o", "clock"]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("what day is it", "it is sunday november twenty ninth"),
        ("what is the date tomorrow", "it is monday november thirtieth"),
        ("what day is in three weeks", "it is sunday december twentieth"),
        ("what day was three weeks ago", "it is sunday november eighth"),
        ("what date is in twelve times seven days", "it is sunday february twenty first twenty twenty seven"),
        ("what day of the week is march third 2027", "it is wednesday march third twenty twenty seven"),
        ("what day is the first of may", "it is saturday may first twenty twenty seven"),
        ("what day is two days before christmas", "it is wednesday december twenty third"),
        ("what date is a month from today", "it is tuesday december twenty ninth"),
        ("what time is it in two hours", "it is nine fifteen"),
        ("what time was it twenty minutes ago", "it is six fifty five"),
        ("how many days until christmas", "twenty six days"),
        ("how many weeks until christmas", "three weeks and five days"),
        ("how many days until friday", "five days"),
        ("how many days are between march third and april first", "twenty nine days"),
        ("what day is in ten thousand years", "i do not know"),
        ("what is twelve times seven and what time is it", "eighty four and it is seven fifteen"),
        ("what is a day in hours", "twenty four hours"),
        ("february thirtieth", "i do not know"),
        ("sing", "i do not know"),
    ],
)
def test_the_calendar(embedded: Embedded, question: str, answer: str) -> None:
    assert embedded.reply(question) == answer


def test_a_month_has_as_many_days_as_it_has() -> None:
    assert (
        Almanac(lambda: datetime.datetime(2024, 1, 31))("what day is in a month")
        == "it is thursday february twenty ninth"
    )
    leap = Almanac(lambda: datetime.datetime(2025, 3, 1))
    assert leap("what day is february 29 th") == "it is tuesday february twenty ninth twenty twenty eight"


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("how long is the old bridge", "The old bridge is 2.5 kilometers long."),
        ("how long is the old bridge in miles", "about one point five five miles"),
        ("who built the bridge", "It was built in 1911 by the city."),
        ("when does the ferry leave", "The ferry leaves at nine every morning."),
        ("how many hours does a cat sleep", "A cat sleeps for fifteen hours a day."),
        ("what is the password of the safe", "i do not know"),
        ("how long is the old tunnel", "i do not know"),
        ('"; DROP TABLE passages; -- NEAR( AND OR NOT', "i do not know"),
        ("who is the king of france", "i do not know"),
    ],
)
def test_the_documents(embedded: Embedded, question: str, answer: str) -> None:
    assert embedded.reply(question) == answer


def test_documents_are_read_as_they_can_be(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert Documents(folder).files == 2
    assert Documents(tmp_path).search("anything") == []
    (tmp_path / "latin.txt").write_bytes("Das Caf\xe9 ist offen.".encode("latin-1"))
    (tmp_path / "long.txt").write_text("word " * 5000 + "needle")
    found = Documents(tmp_path).search("needle")
    assert len(found) == 1
    assert len(found[0].text) <= 1200
    with pytest.raises(ValueError, match="There is no folder of documents"):
        Documents(tmp_path / "none")


def test_without_pint_there_are_no_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pint", None)
    units.registry.cache_clear()
    try:
        assert calculate("five kilometers in miles") is None
        assert calculate("what is twelve times seven") == "eighty four"
        assert Almanac(lambda: NOW)("what day is in three weeks") == "it is sunday december twentieth"
    finally:
        units.registry.cache_clear()
