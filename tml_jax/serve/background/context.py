"""What the background model is told: the whole conversation so far, bounded, with times."""

import collections
import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np

MAX_ENTRIES, MAX_CHARACTERS = 4096, 64_000
JOINED_S = 1.5  # pieces of one side that follow each other this closely are one line

_LABELS = {
    "instructions": "instructions",
    "user": "user, heard",
    "user_text": "user, typed",
    "model": "model, said",
    "camera": "camera",
    "background": "background result",
}


@dataclasses.dataclass(frozen=True)
class Said:
    """One thing that happened; what was heard and said is in pieces with their own spaces.

    Attributes:
      time_s: session time.
      who: "user" (heard), "user_text" (typed), "model", "camera", "background" (a result, of any background model) or
        "instructions".
      text: its words; of what was seen, the number of pictures.
    """

    time_s: float
    who: str
    text: str


@dataclasses.dataclass(frozen=True, eq=False)
class ContextPackage:
    """The conversation up to `time_s`.

    Attributes:
      time_s: session time. said: the newest `MAX_ENTRIES`, oldest first.
      picture: uint8 [height, width, 3], the last picture as the model sees it, or None.
    """

    time_s: float
    said: tuple[Said, ...]
    picture: np.ndarray | None = None

    def question(self, within_s: float = 15.0) -> str:
        """What the user said and typed last: since the model last spoke, and not longer ago than `within_s`."""
        pieces: list[str] = []
        for entry in reversed(self.said):
            if entry.time_s < self.time_s - within_s or (entry.who == "model" and pieces):
                break
            if entry.who in ("user", "user_text"):
                pieces.append(entry.text if entry.who == "user" else f" {entry.text} ")
        return " ".join("".join(reversed(pieces)).split())

    def render(self, longest: int = 16_000) -> str:
        """The timeline as lines of text, about `longest` characters at most: the newest, and what was instructed.

        A line is "[seconds] who: what". Nothing that somebody said or typed can make a line of its own.
        """
        lines = [
            (kind, f"[{first:.1f}{'' if last == first else f'-{last:.1f}'}] {_LABELS[kind]}: {text}")
            for kind, first, last, text in self._lines()
        ]
        pinned = [line for kind, line in lines if kind == "instructions"]
        others = [line for kind, line in lines if kind != "instructions"]
        room, kept = longest - sum(map(len, pinned)), 0
        while kept < len(others) and (room := room - len(others[-1 - kept]) - 1) >= 0:
            kept += 1
        note = [f"({len(others) - kept} earlier lines are left out)"] if kept < len(others) else []
        return "\n".join([*pinned, *note, *others[len(others) - kept :], f"[{self.time_s:.1f}] now"])

    def _lines(self) -> Iterator[tuple[str, float, float, str]]:
        """Entries put together: kind, first and last time, text."""
        open_lines: dict[str, list[Said]] = {}
        done: list[list[Said]] = []
        for entry in self.said:
            line = open_lines.get(entry.who)
            joins = entry.who in ("user", "model", "camera")
            if line is None or not joins or entry.time_s - line[-1].time_s > JOINED_S:
                line = open_lines[entry.who] = []
                done.append(line)
            line.append(entry)
        for line in done:
            kind, texts = line[0].who, [entry.text for entry in line]
            text = f"{sum(map(int, texts))} pictures" if kind == "camera" else " ".join("".join(texts).split())
            yield kind, line[0].time_s, line[-1].time_s, text


class Timeline:
    """Keeps a conversation, so much of it as a `ContextPackage` holds.

    Attributes:
      picture: uint8 [height, width, 3], the last one as the model sees it, or None.
    """

    def __init__(self) -> None:
        """Makes that of a session which begins."""
        self._instructions: collections.deque[Said] = collections.deque(maxlen=16)
        self._said: collections.deque[Said] = collections.deque()
        self._characters = 0
        self.picture: np.ndarray | None = None

    def __iter__(self) -> Iterator[Said]:
        return itertools.chain(self._instructions, self._said)

    def add(self, entry: Said) -> None:
        """Adds what happened last."""
        if entry.who == "instructions":
            self._instructions.append(entry)
            return
        self._said.append(entry)
        self._characters += len(entry.text)
        while len(self._said) > MAX_ENTRIES or self._characters > MAX_CHARACTERS:
            self._characters -= len(self._said.popleft().text)

    def unsay(self, start_s: float, end_s: float) -> None:
        """What the model would have said from `start_s` until before `end_s` was heard by nobody."""
        self._said = collections.deque(
            one for one in self._said if one.who != "model" or not start_s <= one.time_s < end_s
        )
        self._characters = sum(len(one.text) for one in self._said)

    def package(self, time_s: float) -> ContextPackage:
        """The conversation up to then."""
        return ContextPackage(time_s, tuple(one for one in self if one.time_s <= time_s), self.picture)
