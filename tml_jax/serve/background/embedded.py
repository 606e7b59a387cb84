"""The background model that needs no network: a clock and calendar, a calculator, a search in local documents.

It is no language model. It knows the questions of `calculator`, `dates` and `documents`, puts their answers together,
and says "i do not know" to everything else.
"""

import asyncio
import re
from collections.abc import Callable, Sequence

from tml_jax.serve.background import calculator, spoken, units
from tml_jax.serve.background.backend import UNKNOWN, Answer, Desk, Tool
from tml_jax.serve.background.dates import Almanac
from tml_jax.serve.background.documents import Documents

_AND = re.compile(r"\band (?=(?:what|how|when|which)\b)")


class Embedded:
    """See the module.

    Attributes:
      skills: tried in order; the first that answers a question in words is believed.
    """

    def __init__(self, documents: Documents | None = None, almanac: Almanac | None = None) -> None:
        """Makes one, with a search in `documents` if there are any."""
        self.skills: Sequence[Callable[[str], str | None]] = (almanac or Almanac(), calculator.calculate)
        if documents is not None:
            self.skills = (*self.skills, lambda question: find(documents, question))

    async def start(self) -> None:
        """Makes the table of units."""
        await asyncio.to_thread(units.registry)

    async def close(self) -> None:
        """There is nothing to end."""

    async def answer(self, desk: Desk) -> Answer:
        """Answers what was asked last."""
        return Answer(await asyncio.to_thread(self.reply, desk.context.question()))

    def reply(self, question: str) -> str:
        """The answer to a question; to several that are joined by "and", where each has one."""
        parts = _AND.split(question)
        answers = [self._one(part) for part in parts] if len(parts) > 1 else []
        if answers and None not in answers:
            return " and ".join(filter(None, answers))
        return self._one(question) or UNKNOWN

    def _one(self, question: str) -> str | None:
        for skill in self.skills:
            try:
                if (text := skill(question)) is not None:
                    return text
            except ArithmeticError:  # it is for this skill, and has no answer
                return UNKNOWN if len(_AND.split(question)) == 1 else None
        return None


def find(documents: Documents, question: str) -> str | None:
    """The sentence of the documents that fits; where it is asked for "in miles", its first length in miles."""
    words = spoken.split(question)
    for at in range(len(words) - 1, 0, -1):
        if words[at] in ("in", "to") and (unit := units.read_unit(words[at + 1 :])):
            sentence = documents.sentence(" ".join(words[:at]))
            return sentence and _converted(sentence, unit[0])
    return documents.sentence(question)


def _converted(sentence: str, unit: str) -> str | None:
    for quantity in calculator.quantities(sentence):
        try:
            return calculator.say(calculator.convert(quantity, unit))
        except ArithmeticError:
            continue
    return None


def calculator_tool() -> Tool:
    """Arithmetic, units, the clock and the calendar, for a backend."""
    almanac = Almanac()

    async def run(arguments: dict[str, object]) -> str:
        question = str(arguments["question"])[:1000]
        return await asyncio.to_thread(Embedded(almanac=almanac).reply, question)

    parameters = {"type": "object", "properties": {"question": {"type": "string"}}, "required": ["question"]}
    what = 'Works out arithmetic, units and dates, exactly: "(12 * 7) kilometers in miles", "what day is in 3 weeks".'
    return Tool("calculate", what, parameters, run)
