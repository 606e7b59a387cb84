"""What was expected of a model and what it did, in words: a metric's verdicts for people to read."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from tml_jax.eval import metrics
from tml_jax.wire.behaviour import Behaviour, date_results

Event = dict[str, Any]
_SILENT_WHEN = {
    "hesitation": "while the user hesitates",
    "quiet": "when nothing is asked",
    "talk": "when people talk to each other",
    "not asked": "while something moves",
    "stopped": "after “stop”",
    "timer called off": "after “stop”: no “now”",
    "told to be silent": "where an answer would come",
}
_GOES_ON_WHEN = {"backchannel": "after “yeah”", "side talk": "while people talk to each other"}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One expectation of a scene, judged.

    Attributes:
      scene: its name.
      time_s, end_s: from when on, and until when, it can be met; seconds from the start of the first scene.
      expected, happened: in words.
      met: whether it was met in full (`metrics.met`); None where there was nothing to judge.
    """

    scene: str
    time_s: float
    end_s: float
    expected: str
    happened: str
    met: bool | None


def outcomes(
    scene: str, expectations: Iterable[dict[str, Any]], events: Iterable[Event], until_s: float, offset_s: float = 0.0
) -> list[Outcome]:
    """Judges a scene, by time.

    Args:
      scene: its name.
      expectations: the simulator's.
      events: the session's journal.
      until_s: the session's length.
      offset_s: when the scene begins; expectations and events count from there.
    """
    events = list(events)
    judged = metrics.judge_each(date_results(expectations, events), Behaviour.from_events(events), until_s)
    return told(scene, judged, offset_s)


def told(scene: str, judged: Iterable[tuple[Event, metrics.Verdict | None]], offset_s: float = 0.0) -> list[Outcome]:
    """Tells of expectations that were judged; arguments as for `outcomes`."""
    found = []
    for expected, verdict in judged:
        start = metrics.begins(expected)
        end = max([start, expected.get("to", start), expected.get("until", start), expected.get("interrupted", start)])
        met = None if verdict is None else metrics.met(expected, verdict)
        happened = "nothing to judge" if verdict is None else _happened(expected, verdict)
        if verdict is None and expected["kind"] == "stop":
            happened = "it was not speaking"
        times = round(offset_s + start, 3), round(offset_s + end, 3)
        found.append(Outcome(scene, *times, _expected(expected), happened, met))
    return found


def _quote(words: Iterable[str]) -> str:
    words = list(words)
    return "“" + " ".join(words[:5] + ["…"] * (len(words) > 5)) + "”"


def _expected(expected: dict[str, Any]) -> str:
    match expected["kind"]:
        case "answer" if "interrupted" in expected:
            return f"says {_quote(expected['words'])}"
        case "answer":
            return f"answers {_quote(expected['words'])}"
        case "result":
            return f"says the result {_quote(expected['words'])}"
        case "timer":
            return f"says {_quote(expected['words'])} on time"
        case "cue":
            return f"says {_quote(expected['words'])} at once"
        case "count":
            return f"counts {expected['total']} repetitions aloud"
        case "delegate":
            return f"asks in the background: {_quote(expected['query'].split())}"
        case "goes on":
            return f"goes on {_GOES_ON_WHEN[expected.get('reason', 'backchannel')]}"
        case "stop":
            return "falls silent at once"
        case _:
            return f"silent {_SILENT_WHEN[expected['reason']]}"


def _happened(expected: dict[str, Any], verdict: metrics.Verdict) -> str:
    said = _quote(verdict.said) if verdict.said else ""
    late = "" if verdict.latency_s is None else f"{verdict.latency_s:.2f} s"
    match expected["kind"]:
        case "silent":
            return "silent" if verdict.good else f"was heard {said}".strip()
        case "timer" | "cue":
            return f"{late} off" if late else f"never, but {said}" if said else "never"
        case "stop":
            return f"silent after {late}" if verdict.good else f"still heard after {late} {said}".strip()
        case "goes on":
            return f"went on {said}".strip() if verdict.good else "fell silent"
        case "count":
            return f"counted {said}" if said else "counted nothing"
        case "delegate":
            return f"asked {said} after {late}" if late else "did not ask"
        case _:
            return (
                f"{said or 'sound'} after {late}" if late else f"no answer in time, then {said}" if said else "silent"
            )
