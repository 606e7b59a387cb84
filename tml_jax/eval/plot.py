"""The picture of a session: who made sound and said what, what happened, and whether every step was in time."""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MultipleLocator

from tml_jax.wire.behaviour import whole_words

USER, MODEL, BACKGROUND = "#1f7a8c", "#c8553d", "#8e6c8a"
INK, FAINT, LATE, MET = "#22303c", "#9aa5ad", "#d62828", "#2a8f5b"
LONGEST_S = 24.0  # a longer session is drawn as a score is: in lines, one under the other
LINE_S = 20.0
TOLD = ("background", "error")  # events that have words
WIDTH, HEADING, MARK = 14.0, 0.42, 0.24  # inches

Event = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Sound:
    """Float32 mono samples from session time 0."""

    samples: np.ndarray
    sample_rate: int

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.sample_rate


@dataclasses.dataclass(frozen=True)
class Mark:
    """Something that was expected in [start_s, end_s], and whether it was met; None: that could not be told."""

    start_s: float
    end_s: float
    text: str
    met: bool | None


@dataclasses.dataclass(frozen=True)
class Score:
    """What is known of a conversation that was written beforehand.

    Attributes:
      parts: (start_s, end_s, heading) of each, in order, without gaps.
      meant: (seconds, word) that the user says.
      marks: what is expected of the model.
    """

    parts: Sequence[tuple[float, float, str]]
    meant: Sequence[tuple[float, str]]
    marks: Sequence[Mark]


@dataclasses.dataclass(frozen=True, eq=False)
class _Line:
    """One line of the score: the seconds from `start` on, `length` of them; `period` is a micro-turn."""

    start: float
    length: float
    period: float
    heading: str = ""

    @property
    def seconds_per_inch(self) -> float:
        return self.length / (WIDTH - 2.0)

    def holds(self, time_s: float) -> bool:
        return self.start <= time_s < self.start + self.length

    def events(self, journal: Sequence[Event], *kinds: str) -> list[Event]:
        return [event for event in journal if event["type"] in kinds and self.holds(event["t"])]


def plot_timeline(
    path: pathlib.Path,
    journal: Sequence[Event],
    user: Sound | None = None,
    reply: Sound | None = None,
    frames: Sequence[tuple[float, np.ndarray]] = (),
    title: str = "",
    score: Score | None = None,
) -> None:
    """Draws a recorded session as a PNG.

    Args:
      path: where the picture goes.
      journal: the session's events (see `tml_jax.wire.journal`).
      user, reply: the sound of both sides; without them the levels in the journal are drawn.
      frames: (seconds, uint8 [H, W, 3]) of the user's camera.
      title: the heading.
      score: what was meant and expected, if that is known.
    """
    lines = _lines(journal, user, reply, score)
    heights = [_heights(line, journal, frames, score) for line in lines]
    headings = sum(HEADING for line in lines if line.heading)
    total = sum(sum(rows.values()) + 0.45 for rows in heights) + headings + (0.45 if title else 0.1) + 0.25
    with plt.rc_context({"font.family": "DejaVu Sans", "font.size": 10.5, "axes.edgecolor": FAINT, "text.color": INK}):
        figure = plt.figure(figsize=(WIDTH, total))
        top = total - (0.45 if title else 0.1)
        for line, rows in zip(lines, heights, strict=True):
            if line.heading:
                top -= HEADING
                figure.text(0.07 / WIDTH, (top + 0.12) / total, line.heading, fontsize=12.5, fontweight="bold")
            for name, height in rows.items():
                top -= height
                ax = figure.add_axes(
                    (1.05 / WIDTH, (top + 0.04) / total, (WIDTH - 2.0) / WIDTH, (height - 0.08) / total)
                )
                _dress(ax, name, line, last=name == "step")
                if name in ("meant", "expected") and score:
                    _plan(ax, name, line, score)
                else:
                    _draw(ax, name, line, journal, user, reply, frames)
                if name == "user" and score:
                    _note(ax, 1.7, "words:\nas heard", FAINT)
            top -= 0.45
        if title:
            figure.text(0.15 / WIDTH, 1 - 0.3 / total, title, fontsize=14, fontweight="bold", va="center")
        figure.text(1.05 / WIDTH, 0.16 / total, "session time, seconds", color=FAINT, fontsize=9.5, va="center")
        figure.savefig(path, dpi=110, facecolor="white")
        plt.close(figure)


def _lines(journal: Sequence[Event], user: Sound | None, reply: Sound | None, score: Score | None) -> list[_Line]:
    period = next((event["micro_turn_s"] for event in journal if event["type"] == "session"), 0.2)
    if score:
        lines = []
        for start, end, heading in score.parts:
            count = math.ceil((end - start) / LONGEST_S)
            length = math.ceil((end - start) / count / period - 1e-6) * period
            for i in range(count):
                begin = start + i * length
                lines.append(_Line(begin, min(length, end - begin), period, heading if i == 0 else ""))
        return lines
    times = [event["t"] for event in journal if event["type"] in ("step", "speak", "listen", "word")]
    duration = max([*times, *(sound.duration_s for sound in (user, reply) if sound is not None), 1.0])
    if duration <= LONGEST_S:
        return [_Line(0.0, duration, period)]
    return [_Line(start, LINE_S, period) for start in np.arange(0.0, duration, LINE_S).tolist()]


def _heights(
    line: _Line, journal: Sequence[Event], frames: Sequence[tuple[float, np.ndarray]], score: Score | None
) -> dict[str, float]:
    """The rows of a line, from above, and their heights in inches."""
    camera = {"frames": 0.85} if any(line.holds(time_s) for time_s, _ in frames) else {}
    events = {"events": 0.72 if line.events(journal, *TOLD) else 0.3}
    if score is None:
        return {"user": 1.3, **camera, "model": 1.3, **events, "step": 0.75}
    expected = 0.12 + MARK * (1 + max((row for row, _, _ in _placed(line, score)), default=0))
    return {"meant": 0.5, "user": 1.1, **camera, "model": 1.1, **events, "expected": expected, "step": 0.75}


def _placed(line: _Line, score: Score | None) -> list[tuple[int, float, Mark]]:
    """(row, where its text begins, mark) for the marks of a line: none covers another."""
    free: list[float] = []
    placed = []
    for mark in score.marks if score else ():
        if line.holds(mark.start_s):
            wide = (len(mark.text) + 4) * 0.075 * line.seconds_per_inch
            right = line.start + line.length + 0.85 * line.seconds_per_inch  # the margin is free in this row
            start = max(line.start, min(mark.start_s, right - wide))
            row = next((r for r, end in enumerate(free) if start >= end), len(free))
            free[row : row + 1] = [max(start + wide, min(mark.end_s, line.start + line.length))]
            placed.append((row, start, mark))
    return placed


def _plan(ax: Axes, name: str, line: _Line, score: Score) -> None:
    """What was meant, word by word; what is expected, with a tick where it was met and a cross where it was missed."""
    if name == "meant":
        ax.set_ylim(0.95, 2.5)
        _words(ax, line, [{"type": "meant", "t": t, "text": word} for t, word in score.meant if line.holds(t)], INK, 2)
        return
    placed = _placed(line, score)
    ax.set_ylim(1 + max((row for row, _, _ in placed), default=0), 0)
    for row, start, mark in placed:
        colour, tick = {True: (MET, "✓"), False: (LATE, "✗"), None: (FAINT, "–")}[mark.met]
        wide = max(mark.end_s - mark.start_s, 0.05)
        ax.broken_barh([(mark.start_s, wide)], (row + 0.06, 0.88), color=colour, linewidth=0, alpha=0.16)
        ax.plot([mark.start_s] * 2, [row + 0.06, row + 0.94], color=colour, linewidth=1.6)
        text = start + 0.07 * line.seconds_per_inch
        ax.text(text, row + 0.53, f"{tick} {mark.text}", color=colour, va="center", fontsize=9.5)
    ax.set_xlim(line.start, line.start + line.length)


def _draw(
    ax: Axes,
    name: str,
    line: _Line,
    journal: Sequence[Event],
    user: Sound | None,
    reply: Sound | None,
    frames: Sequence[tuple[float, np.ndarray]],
) -> None:
    match name:
        case "user":
            _sound_track(ax, user, journal, "sound", USER)
            _words(ax, line, line.events(whole_words(journal), "heard", "text"), USER)
        case "model":
            _sound_track(ax, reply, journal, "voice", MODEL)
            _words(ax, line, line.events(whole_words(journal), "word"), MODEL)
        case "frames":
            _film(ax, line, frames)
        case "events":
            _events(ax, line, journal)
        case "step":
            _steps(ax, line, journal)


def _dress(ax: Axes, name: str, line: _Line, *, last: bool) -> None:
    label = {"frames": "camera", "step": "step, ms"}.get(name, name)
    colour = {"user": USER, "model": MODEL}.get(name, INK)
    ax.text(-0.98 / (WIDTH - 2.0), 0.5, label, transform=ax.transAxes, va="center", color=colour, fontweight="bold")
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_color("#dfe4e7")
    ax.tick_params(axis="both", length=0, labelcolor=FAINT, labelbottom=last, labelsize=9.5)
    ax.set_xlim(line.start, line.start + line.length)
    ax.xaxis.set_major_locator(MultipleLocator(1 if line.length <= 25 else 2))
    ax.grid(axis="x", color="#eef1f3", linewidth=0.8)
    ax.set_axisbelow(True)
    if name != "step":
        ax.set_yticks([])


def _sound_track(ax: Axes, sound: Sound | None, journal: Sequence[Event], kind: str, colour: str) -> None:
    """The envelope of a sound, mirrored, in the lower half of the track; the upper half is for words."""
    if sound is not None and len(sound.samples):
        size = max(1, round(0.02 * sound.sample_rate))
        count = len(sound.samples) // size
        level = np.abs(sound.samples[: count * size].reshape(count, size)).max(axis=1)
        time_s = (np.arange(count) + 0.5) * size / sound.sample_rate
    else:
        levels = [(event["t"], event["level"]) for event in journal if event["type"] == kind]
        time_s, level = np.asarray(levels or [(0.0, 0.0)]).T
    height = level / max(float(level.max(initial=0)), 0.02)
    ax.fill_between(time_s, -height, height, color=colour, linewidth=0, alpha=0.85)
    ax.axhline(0, color=colour, linewidth=0.6, alpha=0.6)
    ax.set_ylim(-1.1, 3.4)


def _words(ax: Axes, line: _Line, events: Sequence[Event], colour: str, rows: int = 3) -> None:
    """Words above a sound where they were said; a word that would touch the last one goes a row higher."""
    free = [line.start] * rows
    for event in events:
        said = "".join(letter if letter.isprintable() else "�" for letter in event["text"])
        text = f"“{said}”" if event["type"] == "text" else said
        # A heard word has ended by now; a said one begins.
        time_s = max(line.start, event["t"] - (line.period if event["type"] == "heard" else 0))
        row = next((r for r, end in enumerate(free) if time_s >= end), int(np.argmin(free)))
        start = max(time_s, free[row])
        free[row] = start + (len(text) + 1) * 0.092 * line.seconds_per_inch
        height = 1.3 + 0.78 * row
        ax.plot([time_s, time_s], [0.9, height], color=colour, linewidth=0.6, alpha=0.35)
        ax.text(start, height, text, color=colour, va="center", ha="left", fontsize=10)


def _film(ax: Axes, line: _Line, frames: Sequence[tuple[float, np.ndarray]]) -> None:
    """A strip of thumbnails, each at its time."""
    height, width = frames[0][1].shape[:2]
    wide = 0.74 * width / height * line.seconds_per_inch
    last = -np.inf
    for time_s, frame in frames:
        if line.holds(time_s) and time_s >= last + wide * 1.05:
            ax.imshow(
                frame, extent=(time_s, time_s + wide, 0.02, 0.98), aspect="auto", interpolation="nearest", zorder=2
            )
            last = time_s
    ax.set_xlim(line.start, line.start + line.length)
    ax.set_ylim(0, 1)


def _events(ax: Axes, line: _Line, journal: Sequence[Event]) -> None:
    """When the model spoke and listened, what it delegated and what came back."""
    told = line.events(journal, *TOLD)
    ax.set_ylim(0, 3 if told else 0.8)
    speaking = [(event["t"], line.period) for event in line.events(journal, "speak")]
    ax.broken_barh(speaking, (0.12, 0.5), color=MODEL, linewidth=0, alpha=0.85)
    _note(ax, 0.4, "speaks", FAINT)
    for event in line.events(journal, "silence"):
        ax.plot(event["t"], 0.4, marker="x", color=LATE, markersize=5)
    free = [line.start] * 2
    for event in told:
        failed = event["type"] == "error" or event["state"] == "failed"
        state = "failed" if failed else event["state"]
        label = {"started": "asks: ", "finished": "answer: ", "failed": "failed: "}[state] + event["text"]
        row = next((r for r, end in enumerate(free) if event["t"] >= end), int(np.argmin(free)))
        start = max(event["t"], free[row])
        free[row] = start + (len(label) + 3) * 0.088 * line.seconds_per_inch
        colour, height = LATE if failed else BACKGROUND, 1.2 + 1.0 * row
        ax.plot(event["t"], height, marker="o" if state == "started" else "s", color=colour, markersize=5)
        ax.text(start + 0.1 * line.seconds_per_inch, height, label, color=colour, va="center", fontsize=9.5)


def _note(ax: Axes, height: float, text: str, colour: str) -> None:
    """A word in the right margin."""
    ax.text(1.006, height, text, transform=ax.get_yaxis_transform(), color=colour, fontsize=9, va="center")


def _steps(ax: Axes, line: _Line, journal: Sequence[Event]) -> None:
    """How long each step took, against the deadline."""
    deadline = line.period * 1000
    ax.axhline(deadline, color=LATE, linewidth=1, linestyle=(0, (4, 3)))
    _note(ax, deadline, "deadline", LATE)
    steps = [(event["t"], event["ms"], event["missed"]) for event in line.events(journal, "step")]
    if steps:
        time_s, ms, missed = (np.asarray(column) for column in zip(*steps, strict=True))
        ax.bar(
            time_s,
            np.minimum(ms, deadline * 1.4),
            width=line.period * 0.8,
            color=np.where(missed, LATE, "#6b9080"),
            linewidth=0,
        )
        _note(ax, deadline * 0.55, f"median {np.median(ms):.0f}", FAINT)
        _note(ax, deadline * 0.15, f"largest {ms.max():.0f}", FAINT)
    ax.set_ylim(0, deadline * 1.4)
    ax.set_yticks([0, deadline])
