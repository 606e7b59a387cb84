"""What a run found, as a report: its figures as rows, published ones beside them, and cases to look at.

Cases are told apart by what was expected in them and came: the share that was met and, where it is equal, how late.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tml_jax.eval import full_duplex_bench, outcomes, panel, report
from tml_jax.eval.bootstrap import Figure
from tml_jax.eval.recorded import PAUSE_S, RATE, Recorded, stretches

_TALK_APART_S = 0.6
# Figures that are neither seconds nor shares, by how their names end.
_NUMBERS = ("_cases", "_minutes", "_a_minute", "_a_second", "_rating", "_divergence", "_mae")
# Figure -> what it stands beside (`report.PUBLISHED`), and its unit.
_BESIDE = {
    "panel_turn_taking_latency_median_s": ("turn_taking_latency", "s"),
    "repcount_off_by_one": ("repcount_off_by_one", "%"),
    "charades_miou": ("charades_miou", "×100"),
    "proactive_pauc": ("proactive_pauc", "×100"),
    "macro_accuracy": ("timespeak", "%"),
    "audiomc_apr": ("audiomc_apr", "%"),
}


class Seen(NamedTuple):
    """Something that was expected of a system, and how late it came where it is told by its latency, seconds."""

    mark: report.Mark
    latency_s: float | None = None


def expected(case: Recorded) -> list[Seen]:
    """What the simulator expects in a case, judged."""
    judged = panel.judged(case)
    told = outcomes.told(case.category, judged)
    found = []
    for one, (_, verdict) in zip(told, judged, strict=True):
        mark = report.Mark(one.time_s, one.end_s, f"{one.expected}; {one.happened}", one.met)
        found.append(Seen(mark, verdict and verdict.latency_s))
    return found


def silence(case: Recorded) -> list[Seen]:
    """Nothing is meant for the system: it should be silent from each stretch of what is heard to the next."""
    done, heard = case.behaviour(), stretches(case.input, _TALK_APART_S)
    ends = [start for start, _ in heard[1:]] + [case.duration_s]
    return [
        Seen(report.Mark(start, end, "silent", not done.heard_in(start, end)))
        for (start, _), end in zip(heard, ends, strict=True)
    ]


def full_duplex(case: Recorded) -> list[Seen]:
    """Whether the turn was taken where Full-Duplex-Bench wants that, or left; nothing of v1.5, which wants neither."""
    if case.prefix or "take_over" not in (scored := full_duplex_bench.score(case)):
        return []
    wanted = full_duplex_bench.task_of(case) in ("smooth_turn_taking", "user_interruption")
    text = "takes the turn" if wanted else "leaves the turn to the user"
    return [Seen(report.Mark(0.0, case.duration_s, text, scored["take_over"] == wanted), scored.get("latency_s"))]


class Watch:
    """Cases as they go by, of which the best, the median and the worst are kept to be shown.

    Args:
      see: what was expected in a case.
    """

    def __init__(self, see: Callable[[Recorded], list[Seen]]) -> None:
        self._see = see
        self._kept: list[tuple[tuple[float, float], report.Case]] = []

    def watch(self, cases: Iterable[Recorded]) -> Iterator[Recorded]:
        """The same cases; one in which nothing could be judged is not kept."""
        for case in cases:
            seen = self._see(case)
            met = [one.mark.met for one in seen if one.mark.met is not None]
            if met:
                late = [one.latency_s for one in seen if one.latency_s is not None]
                latency = float(np.mean(late)) if late else 0.0
                about = f"{sum(met)} of {len(met)} met" + (f", {latency:.2f} s late on average." if late else ".")
                self._kept.append(((sum(met) / len(met), -latency), _case(case, seen, about)))
            yield case

    def chosen(self) -> list[report.Case]:
        """Those to show, named by what they are."""
        picked = report.pick(self._kept, lambda one: one[0])
        return [dataclasses.replace(case, label=label) for label, (_, case) in picked]


def _case(case: Recorded, seen: Iterable[Seen], about: str) -> report.Case:
    done, sound = case.behaviour(), None
    if case.output is not None:
        size = max(len(case.input), len(case.output))
        sides = [np.pad(side, (0, size - len(side))) for side in (case.input, case.output)]
        sound = np.stack(sides, axis=1).astype(np.float16)  # all cases are held, and this is enough to listen to
    return report.Case(
        label="",
        name=case.name,
        duration_s=case.duration_s,
        user=report.Track(stretches(case.input, PAUSE_S)),
        model=report.Track(done.sound, done.words),
        marks=[one.mark for one in seen],
        about=about,
        sound=sound,
        rate=RATE,
    )


def rows(figures: Mapping[str, float | Figure], bars: Mapping[str, tuple[bool, float]]) -> list[report.Row]:
    """The lines of a panel.

    Args:
      figures: by name; those that end with ``_s`` are in seconds.
      bars: (at least?, bar) of some of them.
    """
    found = []
    for name, figure in figures.items():
        unit = "ms" if name.endswith("_ms") else "s" if name.endswith("_s") else "" if name.endswith(_NUMBERS) else "%"
        at_least, bar = bars.get(name, (True, None))
        ends = (bar, None) if at_least else (None, bar)
        found.append(report.Row(name.removeprefix("panel_").replace("_", " "), figure, unit, *ends))
    return found


class Found(NamedTuple):
    """What a suite found: its name, its figures by name, and cases to show."""

    suite: str
    figures: Mapping[str, float | Figure]
    cases: Sequence[report.Case]


def report_of(
    name: str,
    found: Sequence[Found],
    bars: Mapping[str, tuple[bool, float]],
    facts: Mapping[str, str],
    table: Sequence[report.Row] = (),
) -> report.Report:
    """The report of a run. None of its figures is called comparable with a published one.

    Args:
      name: of what was measured.
      found: suite by suite.
      bars: as `rows` has them.
      facts: what was measured, by name.
      table: comes first, where there is one.
    """
    beside = {}
    for one in found:
        for figure, (key, unit) in _BESIDE.items():
            if isinstance(there := one.figures.get(figure), Figure):
                beside[key] = report.Ours(there, unit)
    shown = [report.Suite(one.suite, rows(one.figures, bars), one.cases) for one in found]
    first = [report.Suite("What it is to show", table)] if table else []
    return report.Report(f"The bench: {name}", facts, first + shown, beside)
