"""Whether the user said yes: decided by words that the user was heard to say or typed, never by a model.

What counts must be said after the request was: once it was put to the model, the model has spoken and is silent again.
Heard words count only where there was sound loud enough to be speech, and a pause after it, so that "yes ... no, wait"
is a no. "yeah" and "okay" are what people say while they listen, and count for nothing.
"""

import asyncio
import re

LOUD_TURNS = 10  # for so many micro-turns after loud sound, words may be heard that were in it
_YES = re.compile(r"\b(yes|confirm|confirmed|go ahead|do it)\b")
_NO = re.compile(r"\b(no|not|don t|dont|never|nope|stop|cancel|wait|nothing|forget)\b")
_FORGET = re.compile(r"\b(never mind|forget it|forget that|cancel that)\b")


def plain(text: str) -> str:
    """Lower-case words with single spaces, without signs."""
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def reads_as_yes(text: str) -> bool | None:
    """True for a yes, False for anything with a no in it, None for neither."""
    words = plain(text)
    if _NO.search(words):
        return False
    return True if _YES.search(words) else None


def calls_off(text: str) -> bool:
    """Whether the user wants what is being worked on no more."""
    return bool(_FORGET.search(plain(text)))


class Request:
    """One question to the user, whose answer is a yes or anything else.

    Attributes:
      decided: becomes True or False.
    """

    def __init__(self) -> None:
        """Makes one that was not put to the model yet."""
        self.decided: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._put = self._begun = self._announced = False
        self._heard = ""
        self._silent, self._since_loud = 0, LOUD_TURNS

    def put(self) -> None:
        """The model was given it to say."""
        self._put = True

    def turn(self, speaks: bool, loud: bool, quiet_turns: int) -> None:
        """A micro-turn went by; for so many now neither side has spoken."""
        if not self._announced:
            self._begun |= self._put and speaks
            self._silent = 0 if speaks else self._silent + 1
            self._announced = self._begun and self._silent >= 2
            return
        self._since_loud = 0 if loud else self._since_loud + 1
        if quiet_turns >= 2 and self._heard:
            self._decide(reads_as_yes(self._heard) if self._since_loud < LOUD_TURNS else None)
            self._heard = ""

    def heard(self, piece: str) -> None:
        """The user was heard to say this."""
        if self._announced:
            self._heard += piece

    def typed(self, text: str) -> None:
        """The user typed this."""
        if self._announced:
            self._decide(reads_as_yes(text))

    def _decide(self, yes: bool | None) -> None:
        if yes is not None and not self.decided.done():
            self.decided.set_result(yes)
