"""The conversation as it happens, in a terminal: one column a micro-turn, one row for each who and what.

Where the output is no terminal, words and events become plain lines.
"""

import collections
import sys
from types import TracebackType
from typing import Self

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from tml_jax.wire import events

BARS = " ▁▂▃▄▅▆▇█"
LABEL = 8
_MARKS = {"started": "?", "finished": "!", "failed": "×"}


def _bar(level: float) -> str:
    """A block whose height says how loud: -60 dB is nothing, -10 dB is full."""
    decibel = 20 * np.log10(max(level, 1e-6))
    return BARS[int(np.clip((decibel + 60) / 50 * 8, 0, 8))]


class _Words:
    """Words at the columns where they were said, pushed to the right where they would overlap."""

    def __init__(self) -> None:
        self._words: collections.deque[tuple[int, str]] = collections.deque(maxlen=200)

    def add(self, turn: int, text: str) -> None:
        if self._words and not text[:1].isspace():  # the last word goes on
            first, begun = self._words.pop()
            turn, text = first, begun + text
        self._words.append((turn, text.strip()))

    def row(self, first: int, width: int) -> str:
        cells, free = [" "] * width, 0
        for turn, text in self._words:
            if turn < first:
                continue
            at = max(turn - first, free)
            for i, character in enumerate(text[: max(0, width - at)]):
                cells[at + i] = character
            free = at + len(text) + 1
        return "".join(cells)


class LiveView:
    """Shows a session's events as they come in; a context manager."""

    def __init__(self, micro_turn_s: float = 0.2, console: Console | None = None) -> None:
        """Makes a view; `console` is where it is shown."""
        self._period = micro_turn_s
        self._console = console or Console(file=sys.stdout)
        self._turns: dict[int, events.Turn] = {}
        self._voice: dict[int, float] = {}
        self._heard, self._said, self._notes = _Words(), _Words(), _Words()
        self._step_ms: list[float] = []
        self._misses = 0
        self._live = (
            Live(console=self._console, auto_refresh=False, transient=False) if self._console.is_terminal else None
        )

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def observe(self, event: events.Event) -> None:
        """Takes in one event and shows it."""
        self._remember(event)
        if self._live is None:
            self._print(event)
        elif isinstance(event, events.Turn | events.Ended):
            self._live.update(self._picture(), refresh=True)

    def _remember(self, event: events.Event) -> None:
        match event:
            case events.Turn():
                self._turns[event.turn] = event
                self._turns.pop(event.turn - 1000, None)
                self._step_ms.append(event.step_ms)
                self._misses += event.missed
            case events.HeardWords():
                self._heard.add(event.turn, event.text)
            case events.Words():
                self._said.add(event.turn, event.text)
            case events.Sound():
                self._voice[event.turn] = event.level
            case events.Background():
                self._notes.add(event.turn, f" {_MARKS[event.state]}{event.text}")

    def _print(self, event: events.Event) -> None:
        def line(turn: int, who: str, what: str) -> None:
            self._console.print(Text(f"{(turn + 1) * self._period:7.1f} s  {who:<10} {what}"))

        match event:
            case events.HeardWords():
                line(event.turn, "you", event.text.strip())
            case events.Words():
                line(event.turn, "model", event.text.strip())
            case events.Background():
                line(event.turn, "background", f"{event.state}: {event.text}")
            case events.Turn() if event.missed:
                line(event.turn, "late", f"the step took {event.step_ms:.0f} ms")
            case events.Turn() if event.silence_ms:
                line(event.turn, "late", f"{event.silence_ms} ms of sound did not arrive in time")

    def _picture(self) -> Group:
        width = max(20, self._console.width - LABEL - 1)
        last = max(self._turns, default=0)
        columns = range(max(0, last - width + 1), max(0, last - width + 1) + width)
        first = columns[0]
        silent = events.Turn(0, events.Decision.LISTEN, 0.0, False, 0, 0.0, 0)
        turns = [self._turns.get(k, silent) for k in columns]
        steps = Text("step".ljust(LABEL), style="dim")
        for k, turn in zip(columns, turns, strict=True):
            share = turn.step_ms / (self._period * 1000)
            style = "red" if turn.missed else "yellow" if share > 0.5 else "green"
            steps.append(BARS[int(np.clip(share * 8, 1, 8))] if k in self._turns else " ", style)

        def row(label: str, text: str, style: str) -> Text:
            return Text(label.ljust(LABEL), style="dim").append(text, style)

        rows = [
            row("you", "".join(_bar(turn.input_level) for turn in turns), "cyan"),
            row("heard", self._heard.row(first, width), "cyan"),
            row("model", "".join(_bar(self._voice.get(k, 0.0)) for k in columns), "bold magenta"),
            row("says", self._said.row(first, width), "bold magenta"),
            row("events", self._notes.row(first, width), "yellow"),
            steps,
            Text(self._footer(last), style="dim"),
        ]
        if any(turn.frames for turn in turns):
            rows.insert(1, row("video", "".join("▪" if turn.frames else " " for turn in turns), "blue"))
        return Group(*rows)

    def _footer(self, last: int) -> str:
        times = np.asarray(self._step_ms or [0.0])
        p50, p99 = np.percentile(times, (50, 99))
        time_s = (last + 1) * self._period
        return f"{time_s:6.1f} s   step p50 {p50:.0f} ms  p99 {p99:.0f} ms  deadline misses {self._misses}"
