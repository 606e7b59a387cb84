"""What a run found, as a report: its figures as rows, published ones beside them, and cases to look at.

Cases are told apart by what was expected in them and came: the share that was met (or, of what can be met in part, its
worth) and, where it is equal, how late.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tml_jax.eval import full_duplex_bench, outcomes, panel, report
from tml_jax.eval.bootstrap import Figure
from tml_jax.eval.recorded import PAUSE_S, RATE, Recorded, stretches
from tml_jax.eval.suites.common import Told

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
    "timespeak_macro_accuracy": ("timespeak", "%"),
    "cuespeak_macro_accuracy": ("cuespeak", "%"),
    "audiomc_apr": ("audiomc_apr", "%"),
    "fdb_v3_pass_rate": ("fd_bench_v3_pass", "%"),
    "fdb_v3_response_accuracy": ("fd_bench_v3_quality", "%"),
}


class Seen(NamedTuple):
    """Something that was expected of a system.

    Attributes:
      mark: what, and whether it was met.
      latency_s: how late it came, where it is told by its latency.
      worth: of what came, 0 to 1, where it can be met in part.
    """

    mark: report.Mark
    latency_s: float | None = None
    worth: float | None = None


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


class FullDuplex:
    """What Full-Duplex-Bench wants: that the turn is taken, or left.

    Of v1.5 the published rules call no behaviour right. For the report alone, ours does: an interruption by the user is
    to be answered, and everything else to be spoken through.
    """

    def __init__(self) -> None:
        self._clean: dict[str, Recorded] = {}  # without their sound: the words are enough

    def __call__(self, case: Recorded) -> list[Seen]:
        """Of one sample, after that of the same user undisturbed."""
        if case.prefix:
            self._clean[case.name] = dataclasses.replace(case, input=case.input[:0], output=None)
            return []
        scored = full_duplex_bench.score(case, self._clean.pop(case.name, None))
        if "take_over" in scored:
            wanted = full_duplex_bench.task_of(case) in ("smooth_turn_taking", "user_interruption")
            text, met = "takes the turn" if wanted else "leaves the turn to the user", scored["take_over"] == wanted
            return [Seen(report.Mark(0.0, case.duration_s, text, met), scored.get("latency_s"))]
        interrupts = case.category == "user_interruption"
        tags = scored.get("behaviour_judged") or [scored.get("behaviour_offline")]
        start = case.annotations["metadata"]["timestamps"][0]
        right = full_duplex_bench.RESPOND if interrupts else full_duplex_bench.RESUME
        text = ("answers" if interrupts else "speaks through") + f" what is said over it; {', '.join(map(str, tags))}"
        return [Seen(report.Mark(start, case.duration_s, text, None if tags == [None] else right in tags))]


def annotated(case: Recorded, told: Iterable[Told]) -> list[Seen]:
    """What a published benchmark expects in a case, as its suite tells it."""
    return [
        Seen(report.Mark(one.start_s, min(one.end_s, case.duration_s), one.text, one.met), worth=one.worth)
        for one in told
    ]


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
            worth = [one.mark.met if one.worth is None else one.worth for one in seen if one.mark.met is not None]
            if met:
                late = [one.latency_s for one in seen if one.latency_s is not None]
                latency = float(np.mean(late)) if late else 0.0
                about = f"{sum(met)} of {len(met)} met" + (f", {latency:.2f} s late on average." if late else ".")
                self._kept.append(((float(np.mean(worth)), -latency), _case(case, seen, about)))
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
