"""Charades: when did it happen? Temporal localisation of a sentence, said aloud as it begins and ends.

The annotation file is that of Charades-STA (Gao et al., TALL, ICCV 2017, arXiv 1705.02101): one line a moment,
``VIDEO start end##sentence``, in seconds.

Figures of that task: temporal IoU, the length of the intersection over that of the union; mIoU, its mean; R@1 at IoU m,
the share of moments with an IoU of at least m, for m = 0.3, 0.5, 0.7. A live model names its moment by speaking: it is
told to say “start” when what the sentence describes begins, and “stop” when it ends. Thinking Machines publish an mIoU;
how theirs is asked to answer, and what counts where it says only one of the two, could not be looked up. Here the first
“start” and the first “stop” after it count, and without either the IoU is 0.
"""

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Sequence

from tml_jax.eval import bootstrap
from tml_jax.eval.suites.common import Told, plain
from tml_jax.wire.behaviour import Behaviour

THRESHOLDS = (0.3, 0.5, 0.7)


@dataclasses.dataclass(frozen=True)
class Case:
    """A moment of a video, seconds; `name` is the video's and which of its moments it is, from 1: "3MSZA/2"."""

    video: str
    start_s: float
    end_s: float
    sentence: str
    name: str = ""


@dataclasses.dataclass(frozen=True)
class Score:
    """Of one case: the moment that was named, or None; and its IoU with the true one."""

    said: tuple[float, float] | None
    iou: float


def load(path: str | pathlib.Path) -> list[Case]:
    """Reads an annotation file, e.g. ``charades_sta_test.txt``.

    Raises:
      ValueError: a line has another form.
    """
    cases: list[Case] = []
    moments: Counter[str] = Counter()
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            head, found, sentence = line.strip().partition("##")
            try:
                video, start, end = head.split()
                moment = float(start), float(end)
            except ValueError:
                found = ""
            if not found:
                raise ValueError(f"{path}, line {number} is not of the form “VIDEO start end##sentence”.")
            moments[video] += 1
            cases.append(Case(video, *moment, sentence, f"{video}/{moments[video]}"))
    return cases


def iou(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Of two stretches of time (start, end): intersection over union, 0 to 1."""
    both = min(one[1], other[1]) - max(one[0], other[0])
    union = (one[1] - one[0]) + (other[1] - other[0]) - both
    return both / union if both > 0 else 0.0


def moment(done: Behaviour) -> tuple[float, float] | None:
    """From the first “start” to the first “stop” after it; None where there is none."""
    times = [(time, word) for time, said in done.words for word in plain(said)]
    start = next((time for time, word in times if word == "start"), None)
    if start is None:
        return None
    stop = next((time for time, word in times if time > start and word == "stop"), None)
    return None if stop is None else (start, stop)


def score(case: Case, done: Behaviour) -> Score:
    """The IoU of the moment that was said aloud."""
    said = moment(done)
    return Score(said, 0.0 if said is None else iou(said, (case.start_s, case.end_s)))


def told(case: Case, score: Score) -> list[Told]:
    """The moment, by its IoU; met from 0.5 on."""
    said = "none" if score.said is None else f"{score.said[0]:.1f} to {score.said[1]:.1f} s"
    text = f"names when “{case.sentence.strip('.')}”; named {said}, IoU {score.iou:.2f}"
    return [Told(case.start_s, case.end_s, text, score.iou >= 0.5, score.iou)]


def summarise(scores: Sequence[Score]) -> dict[str, bootstrap.Figure]:
    """``charades_miou`` and ``charades_recall_0.3`` and so on, 0 to 1."""
    figures = {"charades_miou": bootstrap.mean([s.iou for s in scores])}
    for threshold in THRESHOLDS:
        figures[f"charades_recall_{threshold}"] = bootstrap.rate([s.iou >= threshold for s in scores])
    return figures
