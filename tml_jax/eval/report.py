"""The report of a bench: one HTML page that needs nothing else, neither network nor script.

It has the figures with their intervals, those that others published beside ours, and cases to look at and listen to.
All text is escaped, and the page's own policy (CSP) forbids it to load or to run anything.
"""

import base64
import dataclasses
import html
import io
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import soundfile
import soxr

from tml_jax.eval.bootstrap import CONFIDENCE, FEWEST, Estimate, Figure, Hidden, flat

USER, MODEL, MET, MISSED, UNTOLD = "#1f7a8c", "#c8553d", "#2a8f5b", "#d62828", "#9aa5ad"
LONGEST_S = 60.0
"""Of a longer case the timeline shows the beginning."""
_LEFT, _SECOND = 64, 90  # px: the names of the lanes, and a second
_LANE, _WORD, _TOP = 18, 13, 22  # px
_WORD_ROWS = 3  # words stand in turn on this many lines, so that they do not run into each other
_COMPRESSION = 0.96  # libsndfile's, 0 to 1: about 14 kbit/s a side, at which speech is still clear
_OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a panel.

    Attributes:
      name: of the figure, for people.
      figure: of it; shares are 0 to 1. A bare number has no interval.
      unit: "%" for a share, "s", or "" for a number.
      at_least, at_most: the bar, in the figure's own scale; None: there is none.
      note: what has to be known with it, e.g. who judged.
    """

    name: str
    figure: Figure | float
    unit: str = "%"
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the bar is; None where there is none, or no figure that could be shown."""
        if isinstance(self.figure, Hidden) or self.at_least is self.at_most is None:
            return None
        value = self.figure.value if isinstance(self.figure, Estimate) else self.figure
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)


@dataclasses.dataclass(frozen=True)
class Published:
    """A figure of somebody else.

    Attributes:
      benchmark: and which of its figures.
      value: as it was published.
      needs: what a figure of ours would need in order to be comparable.
      open: whether anybody can have the data.
    """

    benchmark: str
    value: str
    needs: str
    open: bool = True


_OWN = "Thinking Machines' own data and judge, which are not published"
PUBLISHED = {
    "turn_taking_latency": Published(
        "FD-bench v1, turn-taking latency", "0.40 s", "its recordings of people, and its word alignment"
    ),
    "fd_bench_v1_5": Published("FD-bench v1.5, mean score", "77.8", "its recordings, and its judge of behaviour"),
    "fd_bench_v3_quality": Published("FD-bench v3, response quality", "82.8 %", "its clips and tools, and its judge"),
    "fd_bench_v3_pass": Published("FD-bench v3, Pass@1", "68.0 %", "its clips and tools"),
    "audiomc_apr": Published(
        "Audio MultiChallenge, average pass rate", "43.4 %", "its conversations with their fixed context, and its judge"
    ),
    "timespeak": Published("TimeSpeak, macro accuracy", "64.7 %", _OWN, open=False),
    "cuespeak": Published("CueSpeak", "81.7 %", _OWN, open=False),
    "repcount_off_by_one": Published("RepCount-A, off-by-one accuracy", "35.4 %", "its test videos, played live"),
    "proactive_pauc": Published("ProactiveVideoQA, PAUC × 100 (silence: 25)", "33.5", "its videos, and its judge"),
    "charades_miou": Published("Charades, temporal mIoU × 100", "32.4", "its test videos, played live"),
}
PUBLISHED_BY = "TML-Interaction-Small (Thinking Machines, “Interaction Models”, May 2026)"


@dataclasses.dataclass(frozen=True)
class Ours:
    """A figure of ours to stand beside a published one.

    Attributes:
      figure: the figure.
      unit: as of `Row`; "×100" shows a share as points of a hundred.
      comparable: the published data was used, by the published protocol. Whoever makes the report answers for it.
    """

    figure: Figure
    unit: str = "%"
    comparable: bool = False


@dataclasses.dataclass(frozen=True)
class Track:
    """What one side did: stretches of sound (start, end) and (when, word), seconds."""

    sound: Sequence[tuple[float, float]] = ()
    words: Sequence[tuple[float, str]] = ()


@dataclasses.dataclass(frozen=True)
class Mark:
    """Something that was expected in [start_s, end_s], and whether it was met; None: that could not be told."""

    start_s: float
    end_s: float
    text: str
    met: bool | None


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A case to look at.

    Attributes:
      label: e.g. "best".
      name: of the case.
      duration_s: its length.
      user, model: what they did.
      marks: what was expected.
      about: what it is and how it was scored.
      sound: float32 [samples] or [samples, channels]; None: there is none to hear.
      rate: of the sound, Hz.
    """

    label: str
    name: str
    duration_s: float
    user: Track
    model: Track
    marks: Sequence[Mark] = ()
    about: str = ""
    sound: np.ndarray | None = None
    rate: int = 16_000


@dataclasses.dataclass(frozen=True)
class Suite:
    """What one suite found."""

    name: str
    rows: Sequence[Row]
    cases: Sequence[Case] = ()
    about: str = ""


@dataclasses.dataclass(frozen=True)
class Report:
    """A report.

    Attributes:
      title: of the page.
      facts: what was measured, when, on what, by name.
      suites: what was found.
      ours: figures to stand beside those of `PUBLISHED`, by the same keys.
    """

    title: str
    facts: Mapping[str, str]
    suites: Sequence[Suite]
    ours: Mapping[str, Ours] = dataclasses.field(default_factory=dict)


def pick(items: Iterable[T], score: Callable[[T], Any]) -> list[tuple[str, T]]:
    """The best, the median and the worst of items by a score, with these names; fewer where there are fewer."""
    ordered = sorted(items, key=score, reverse=True)
    if len(ordered) < 3:
        return list(zip(("best", "worst"), ordered, strict=False))
    return [("best", ordered[0]), ("median", ordered[len(ordered) // 2]), ("worst", ordered[-1])]


def write(report: Report, path: str | pathlib.Path) -> None:
    """Writes the page."""
    pathlib.Path(path).write_bytes(render(report).encode("utf-8", "replace"))


def render(report: Report) -> str:
    """The page.

    Raises:
      ValueError: a figure of ours has no published one beside it, or claims to be comparable with closed data.
    """
    facts = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in report.facts.items())
    suites = "".join(_suite(suite) for suite in report.suites)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; media-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(report.title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{_text(report.title)}</h1>
<dl>{facts}</dl>
<p>Intervals are percentile bootstrap intervals of {CONFIDENCE:.0%}; figures of fewer than {FEWEST} events are hidden.
</p>
{suites}{_comparison(report.ours)}
</body>
</html>
"""


_STYLE = f"""
body {{ font: 15px/1.45 system-ui, sans-serif; color: #22303c; background: #fff; max-width: 72rem; margin: 2rem auto;
  padding: 0 1rem }}
dl {{ display: grid; grid-template-columns: max-content auto; gap: .1rem 1rem }} dd {{ margin: 0 }}
table {{ border-collapse: collapse; margin: 1rem 0 }} caption {{ text-align: left; color: #5b6770 }}
th, td {{ text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #dde3e7; vertical-align: top }}
td.number {{ font-variant-numeric: tabular-nums; white-space: nowrap }}
.interval, .note {{ color: #5b6770 }} .met {{ color: {MET} }} .missed {{ color: {MISSED} }}
figure {{ margin: 1.5rem 0 }} .timeline {{ overflow-x: auto }} audio {{ display: block; margin: .4rem 0; width: 24rem;
  max-width: 100% }}
svg text {{ font: 11px system-ui, sans-serif; fill: #22303c }}
"""


def _text(value: object) -> str:
    return html.escape(str(value))


def _number(value: float, unit: str) -> str:
    if unit in ("%", "×100"):
        return f"{100 * value:.1f}"
    return str(value) if isinstance(value, int) else f"{value:.2f}"


def _sign(unit: str) -> str:
    return f" {_text(unit)}" if unit and unit != "×100" else ""


def _figure(figure: Figure | float, unit: str) -> str:
    if isinstance(figure, int | float):
        return f"{_number(figure, unit)}{_sign(unit)}"
    if isinstance(figure, Hidden):
        return f'<span class="note">{_hidden(figure)}</span>'
    interval = f"[{_number(figure.low, unit)}, {_number(figure.high, unit)}]"
    if math.isnan(figure.low) or math.isnan(figure.high):
        interval = "no interval"
    return f'{_number(figure.value, unit)}{_sign(unit)} <span class="interval">{interval} of {figure.events}</span>'


def _hidden(figure: Hidden) -> str:
    return f"hidden: {figure.events} event{'s' * (figure.events != 1)}" if figure.events else "not measured"


def _bars(row: Row) -> str:
    bars = [("at least", row.at_least), ("at most", row.at_most)]
    return ", ".join(f"{word} {_number(bar, row.unit)}{_sign(row.unit)}" for word, bar in bars if bar is not None)


def _bar(row: Row) -> str:
    met = f': <span class="{_class(row.met)}">{_verdict(row.met)}</span>' if row.met is not None else ""
    return _bars(row) + met


def plain(rows: Iterable[Row]) -> Iterator[str]:
    """The lines of a panel as text: name, value, interval, of how many events, bar, whether it is met, note."""
    for row in rows:
        figure, unit = row.figure, row.unit
        value, interval, events = (_hidden(figure), "", "") if isinstance(figure, Hidden) else ("", "", "")
        if isinstance(figure, Estimate):
            interval, events = f"[{_number(figure.low, unit)}, {_number(figure.high, unit)}]", str(figure.events)
        if not value:
            value = _number(figure.value if isinstance(figure, Estimate) else figure, unit) + (unit and f" {unit}")
        met = "" if row.met is None else "met" if row.met else "MISSED"
        told = f"{row.name:58s} {value:>12s} {interval:>15s} {events:>5s}  {_bars(row):18s} {met:6s} {row.note}"
        yield told.rstrip()


def numbers(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """A panel as JSON has it: a hidden figure has no value, only how many events there were."""
    return [
        {"name": row.name, **flat({"value": row.figure}), **_hidden_events(row), "unit": row.unit}
        | {"at_least": row.at_least, "at_most": row.at_most, "met": row.met, "note": row.note}
        for row in rows
    ]


def _hidden_events(row: Row) -> dict[str, int]:
    return {"value_events": row.figure.events} if isinstance(row.figure, Hidden) else {}


def _suite(suite: Suite) -> str:
    rows = "".join(
        f'<tr><th scope="row">{_text(row.name)}</th><td class="number">{_figure(row.figure, row.unit)}</td>'
        f'<td class="number">{_bar(row)}</td><td class="note">{_text(row.note)}</td></tr>'
        for row in suite.rows
    )
    table = (
        f"<table><thead><tr><th>figure</th><th>value, interval, events</th><th>bar</th><th></th></tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )
    return (
        f"<section><h2>{_text(suite.name)}</h2><p>{_text(suite.about)}</p>{table}"
        f"{''.join(_case(case) for case in suite.cases)}</section>"
    )


def _comparison(ours: Mapping[str, Ours]) -> str:
    if unknown := sorted(set(ours) - set(PUBLISHED)):
        raise ValueError(f"No published figure is known as “{unknown[0]}”; known are {', '.join(PUBLISHED)}.")
    rows = []
    for key, other in PUBLISHED.items():
        mine = ours.get(key)
        if mine is not None and mine.comparable and not other.open:
            raise ValueError(f"A figure for “{key}” cannot be comparable: that would need {other.needs}.")
        if mine is None:
            told, value = "not measured", ""
        else:
            told = "comparable" if mine.comparable else f"not comparable: that would need {other.needs}"
            value = _figure(mine.figure, mine.unit)
        rows.append(
            f'<tr><th scope="row">{_text(other.benchmark)}</th><td class="number">{_text(other.value)}</td>'
            f'<td class="number">{value}</td><td class="note">{_text(told)}</td></tr>'
        )
    return (
        "<section><h2>Beside published figures</h2><table><caption>As published by "
        f"{_text(PUBLISHED_BY)}; they were not measured here.</caption><thead><tr><th>benchmark</th><th>published</th>"
        f"<th>this run</th><th></th></tr></thead><tbody>{''.join(rows)}</tbody></table></section>"
    )


def _case(case: Case) -> str:
    player = ""
    if case.sound is not None and len(case.sound):
        player = f'<audio controls preload="metadata" src="{audio_uri(case.sound, case.rate)}"></audio>'
    marks = "".join(
        f'<li class="{_class(mark.met)}">{mark.start_s:.1f} s: {_text(mark.text)}: {_verdict(mark.met)}</li>'
        for mark in case.marks
    )
    return (
        f"<figure><figcaption><strong>{_text(case.label)}</strong>: {_text(case.name)}. {_text(case.about)}"
        f'</figcaption>{player}<div class="timeline">{timeline(case)}</div><ul>{marks}</ul></figure>'
    )


def _class(met: bool | None) -> str:
    return "note" if met is None else "met" if met else "missed"


def _verdict(met: bool | None) -> str:
    return "could not be told" if met is None else "met" if met else "missed"


def audio_uri(sound: np.ndarray, rate: int) -> str:
    """A sound as a ``data:`` URI of Ogg Opus.

    Args:
      sound: float [samples] or [samples, channels], clipped to [-1, 1].
      rate: Hz; one that Opus doesn't have becomes 48 kHz.
    """
    samples = np.clip(np.nan_to_num(np.asarray(sound, np.float32)), -1, 1)
    if rate not in _OPUS_RATES:
        samples, rate = soxr.resample(samples, rate, 48_000), 48_000
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="OGG", subtype="OPUS", compression_level=_COMPRESSION)
    return "data:audio/ogg;base64," + base64.b64encode(file.getvalue()).decode()


def timeline(case: Case) -> str:
    """An inline SVG: who made sound and said what, and what was expected; up to `LONGEST_S`."""
    length = min(max(case.duration_s, 1.0), LONGEST_S)
    lanes = [("user", case.user, USER), ("model", case.model, MODEL)]
    lane_height = _LANE + _WORD_ROWS * _WORD + 10
    marks_top = _TOP + len(lanes) * lane_height
    height = marks_top + (_LANE if case.marks else 0)
    width = round(_x(length))
    parts = [_tick(second, height) for second in range(int(length) + 1)]
    for i, (name, track, colour) in enumerate(lanes):
        parts += _lane(name, track, colour, _TOP + i * lane_height, length)
    if case.marks:
        parts.append(_name("expected", marks_top))
    for mark in case.marks:
        if mark.start_s < length:
            colour = UNTOLD if mark.met is None else MET if mark.met else MISSED
            title = f"{_text(mark.text)}: {_verdict(mark.met)}"
            box = _box(mark.start_s, max(mark.end_s, mark.start_s + 0.1), marks_top + 2, 10, colour, length)
            parts.append(f"<g><title>{title}</title>{box}</g>")
    note = "" if case.duration_s <= LONGEST_S else f" The first {LONGEST_S:.0f} s of {case.duration_s:.0f} s."
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}"><title>Timeline of {_text(case.name)}.{note}</title>{"".join(parts)}</svg>'
    )


def _x(time_s: float) -> float:
    return _LEFT + max(0.0, time_s) * _SECOND


def _name(name: str, top: int) -> str:
    return f'<text x="0" y="{top + 11}">{name}</text>'


def _tick(second: int, height: int) -> str:
    x = round(_x(second))
    return f'<line x1="{x}" x2="{x}" y1="14" y2="{height}" stroke="#e6eaed"/><text x="{x + 2}" y="11">{second} s</text>'


def _box(start_s: float, end_s: float, top: float, height: float, colour: str, length: float) -> str:
    start, end = max(start_s, 0.0), min(end_s, length)
    return (
        f'<rect x="{_x(start):.1f}" y="{top}" width="{max(0.0, end - start) * _SECOND:.1f}" '
        f'height="{height}" rx="2" fill="{colour}"/>'
    )


def _lane(name: str, track: Track, colour: str, top: int, length: float) -> list[str]:
    parts = [_name(name, top)]
    parts += [_box(start, end, top, _LANE - 4, colour, length) for start, end in track.sound if start < length]
    for i, (time, word) in enumerate(track.words):
        if time < length:
            y = top + _LANE + 8 + _WORD * (i % _WORD_ROWS)
            parts.append(f'<text x="{_x(time):.1f}" y="{y}">{_text(word)}</text>')
    return parts
