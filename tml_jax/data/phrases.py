"""What the speech bank's voices say: templated user commands, words alone, and the assistant's vocabulary.

Text is lower case without punctuation, numbers as words; `spoken` is the same with the punctuation a speech
engine needs for natural prosody. Every voice has its own seeded plan, ordered so that any prefix of two dozen
covers every command family: a bank that is cut short is still usable.
"""

import dataclasses
import random
from collections.abc import Callable, Iterator
from typing import Literal

from tml_jax.streams import number_words

Kind = Literal["command", "word", "filler", "assistant", "talk", "request"]

UNITS = tuple(number_words.to_words(n) for n in range(21))
TENS = tuple(number_words.to_words(n) for n in range(30, 100, 10))
FILLERS = ("um", "uh", "er", "hmm", "yeah", "okay", "right")

ASSISTANT_WORDS = (
    *UNITS,
    *TENS,
    *("hundred", "beep", "now", "hello", "good morning", "fine thanks", "okay", "yes", "stopped", "minus"),
    *("o clock", "i do not know", "it is"),
)
ASSISTANT_LINES = (
    "Hello, how can I help?",
    "Good morning.",
    "I am fine, thanks.",
    "Okay, I will count for you.",
    "Okay, I will tell you.",
    "Ten seconds have passed.",
    "It is three o'clock.",
    "Five times six is thirty.",
    "One, two, three, four, five.",
    "I do not know.",
    "Okay, stopped.",
    "You are welcome.",
)
REQUESTS = (
    "Say beep when something moves.",
    "Say every digit as I say it.",
    "Say every digit in Spanish.",
    "How long has it been?",
)
"""What a user says once in a while, and what then holds for a while."""
ASSISTANT_SPEEDS = (0.9, 1.0, 1.1, 1.25)
USER_SPEEDS = (0.85, 0.92, 1.0, 1.0, 1.08, 1.16, 1.25)
_SPOKEN = {"o clock": "O'clock.", "i do not know": "I do not know.", "fine thanks": "Fine, thanks."}


@dataclasses.dataclass(frozen=True)
class Utterance:
    """One thing to say: its transcript, what the engine is given, and how fast (1 is the voice's own pace)."""

    text: str
    spoken: str
    kind: Kind
    speed: float = 1.0


def transcript(spoken: str) -> str:
    """The spoken line in lower case without punctuation ("O'clock" is written "o clock")."""
    return " ".join("".join(c if c.isalpha() else " " for c in spoken.lower()).split())


class _Deck:
    """Draws without replacement and reshuffles when empty, so that a voice's numbers differ from clip to clip."""

    def __init__(self, rng: random.Random, items: list[str]) -> None:
        self._rng, self._items = rng, items
        self._left: list[str] = []

    def draw(self) -> str:
        if not self._left:
            self._left = self._rng.sample(self._items, len(self._items))
        return self._left.pop()


def _numbers(low: int, high: int) -> list[str]:
    return [UNITS[n] for n in range(low, high + 1)]


class _Families:
    """The command families of one voice; each call of `draw(name)` gives the next sentence of the family."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._length = _Deck(rng, ["1", "2", "3", "4"])
        self._digit = _Deck(rng, _numbers(0, 9))
        one_slot = {
            "count to": ("Count to {}.", _numbers(3, 20)),
            "count down": ("Count down from {}.", _numbers(3, 10)),
            "tell me": ("Tell me when {} seconds have passed.", _numbers(2, 15)),
            "beep": ("Say beep every {} seconds.", _numbers(2, 8)),
        }
        self._one_slot = {name: (template, _Deck(rng, slots)) for name, (template, slots) in one_slot.items()}
        two_slots = {
            "times": ("What is {} times {}?", (2, 12), (2, 12)),
            "plus": ("What is {} plus {}?", (1, 20), (1, 20)),
            "minus": ("What is {} minus {}?", (5, 20), (1, 5)),
        }
        self._two_slots = {
            name: (template, _Deck(rng, _numbers(*left)), _Deck(rng, _numbers(*right)))
            for name, (template, left, right) in two_slots.items()
        }

    def draw(self, name: str) -> str:
        """The next spoken line of the family; a name that is no family is itself a fixed line."""
        if name == "repeat":
            digits = [self._digit.draw() for _ in range(int(self._length.draw()))]
            joint = self._rng.choice((" ", ", "))
            return f"Repeat {joint.join(digits)}{self._rng.choice((' please.', ', please.'))}"
        if name in self._one_slot:
            template, deck = self._one_slot[name]
            return template.format(deck.draw())
        if name in self._two_slots:
            template, left, right = self._two_slots[name]
            return template.format(left.draw(), right.draw())
        return name


TIME, REPETITIONS = "What time is it?", "Count the repetitions."
STOPS = ("Stop.", "Please stop.", "Be quiet.", "That is enough.")
GREETINGS = ("Hello.", "Good morning.", "How are you?")
# The first tier covers every family, the second every word and more takes; beyond, families by their weight.
_TIER_ONE = (
    *("repeat",) * 3,
    *("count to", "count down", "tell me", "tell me", "beep", "beep", "times", "plus", "minus"),
    *(TIME, REPETITIONS, *GREETINGS, *STOPS),
)
_TIER_TWO = (
    *("repeat",) * 4,
    *("count to", "count to", "count down", "tell me", "tell me", "beep", "beep", "times", "plus", "minus"),
    *(TIME, REPETITIONS, "Hello.", "Stop!", "Please stop!"),
)
_MORE = (
    *("repeat",) * 5,
    *("count to",) * 3,
    *("tell me",) * 4,
    *("beep",) * 3,
    *("count down", "count down", "times", "times", "plus", "plus", "minus"),
    *(TIME, REPETITIONS, *GREETINGS, *STOPS, "Stop!", "digit", "digit", "filler"),
)


def _words(words: tuple[str, ...] | list[str], kind: Kind) -> list[tuple[str, Kind]]:
    return [(f"{word.capitalize()}.", kind) for word in words]


def user_phrases(seed: int, num_clips: int) -> list[Utterance]:
    """The plan of one user voice: `num_clips` utterances, a function of the seed alone.

    A longer plan starts with the shorter one, so that a bank can grow.
    """
    rng = random.Random(seed)
    families = _Families(rng)
    digit, filler = _Deck(rng, _numbers(0, 9)), _Deck(rng, list(FILLERS))
    speeds = _Deck(random.Random(seed + 1), [str(speed) for speed in USER_SPEEDS])

    def lines(names: tuple[str, ...]) -> list[tuple[str, Kind]]:
        return [(families.draw(name), "command") for name in rng.sample(names, len(names))]

    def more() -> Iterator[tuple[str, Kind]]:
        loose: dict[str, Callable[[], tuple[str, Kind]]] = {
            "digit": lambda: _words([digit.draw()], "word")[0],
            "filler": lambda: _words([filler.draw()], "filler")[0],
        }
        while True:
            for name in rng.sample(_MORE, len(_MORE)):
                yield loose[name]() if name in loose else (families.draw(name), "command")

    first = lines(_TIER_ONE) + _words(FILLERS, "filler")[:3]
    second = lines(_TIER_TWO) + _words(UNITS[:10], "word") + _words(FILLERS, "filler")[3:]
    plan = first + rng.sample(second, len(second))
    endless = more()
    plan += [next(endless) for _ in range(num_clips - len(plan))]
    return [Utterance(transcript(line), line, kind, float(speeds.draw())) for line, kind in plan[:num_clips]]


def request_phrases(seed: int) -> list[Utterance]:
    """`REQUESTS`, each once, at a pace that the seed tells."""
    speeds = _Deck(random.Random(seed + 2), [str(speed) for speed in USER_SPEEDS])
    return [Utterance(transcript(line), line, "request", float(speeds.draw())) for line in REQUESTS]


def spanish_phrases() -> list[Utterance]:
    """The assistant's numbers in Spanish, each at each of `ASSISTANT_SPEEDS`."""
    return [
        Utterance(word, f"{word.capitalize()}.", "assistant", speed)
        for speed in ASSISTANT_SPEEDS
        for word in number_words.SPANISH
    ]


def assistant_phrases() -> list[Utterance]:
    """The assistant's vocabulary, every word at each of `ASSISTANT_SPEEDS`, and a few whole lines."""
    words = [
        Utterance(word, _SPOKEN.get(word, f"{word.capitalize()}."), "assistant", speed)
        for speed in (1.0, *(s for s in ASSISTANT_SPEEDS if s != 1.0))
        for word in ASSISTANT_WORDS
    ]
    return words + [Utterance(transcript(line), line, "assistant") for line in ASSISTANT_LINES]
