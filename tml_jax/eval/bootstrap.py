"""How sure a figure is: percentile bootstrap intervals (Efron & Tibshirani, 1993, chapter 13) of rates, means, medians.

Of too few events nothing is told: a figure is an `Estimate`, or `Hidden`, which has no value that could be shown.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

FEWEST = 10
"""Of fewer events than this a figure is hidden."""
CONFIDENCE = 0.95
RESAMPLES = 2000
_BATCH = 200  # resamples in memory at a time


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure with its interval.

    Attributes:
      value: of all events.
      low, high: the interval of `CONFIDENCE`; NaN where a case, or a class, is alone and cannot be resampled.
      events: how many there were.
    """

    value: float
    low: float
    high: float
    events: int


@dataclasses.dataclass(frozen=True)
class Hidden:
    """A figure of fewer than `FEWEST` events, which is not shown."""

    events: int


Figure = Estimate | Hidden


def rate(outcomes: Sequence[bool], seed: int = 0) -> Figure:
    """The share of events that came out True, 0 to 1."""
    return mean([float(outcome) for outcome in outcomes], seed)


def mean(values: Sequence[float], seed: int = 0) -> Figure:
    """The mean of finite values, one an event."""
    return _estimate((np.asarray(values, float),), len(values), lambda x, axis: np.mean(x, axis=axis), seed)


def quantile(values: Sequence[float], at: float = 0.5, seed: int = 0) -> Figure:
    """A quantile of finite values, one an event; by default the median."""
    return _estimate((np.asarray(values, float),), len(values), lambda x, axis: np.quantile(x, at, axis=axis), seed)


def pooled_mean(groups: Sequence[Sequence[float]], seed: int = 0) -> Figure:
    """The mean over all values of all groups; groups are drawn whole, as what lies in one is not independent.

    Args:
      groups: the values of each case. They count as events; a case without values counts for nothing.
      seed: of the resampling.
    """
    filled = [group for group in groups if len(group)]
    return _ratio([sum(group) for group in filled], [len(group) for group in filled], sum(map(len, filled)), seed)


def ratio(parts: Sequence[float], wholes: Sequence[float], seed: int = 0) -> Figure:
    """The sum of `parts` over that of `wholes`, both one an event: errors over words, starts over minutes."""
    return _ratio(parts, wholes, len(parts), seed)


def macro_mean(classes: Mapping[str, Sequence[float]], seed: int = 0) -> Figure:
    """The mean of the means of classes; events are drawn within their class."""
    values = tuple(np.asarray(of, float) for of in classes.values() if len(of))

    def statistic(*of: np.ndarray, axis: int) -> Any:
        return np.mean([np.mean(x, axis=axis) for x in of], axis=0)

    return _estimate(values, sum(map(len, values)), statistic, seed)


def flat(figures: Mapping[str, float | Figure]) -> dict[str, float]:
    """Figures as numbers, an estimate with its interval and how many events it is of; what is hidden is left out."""
    told: dict[str, float] = {}
    for name, figure in figures.items():
        if isinstance(figure, Estimate):
            told |= {name: figure.value, f"{name}_low": figure.low, f"{name}_high": figure.high}
            told[f"{name}_events"] = figure.events
        elif not isinstance(figure, Hidden):
            told[name] = figure
    return told


def _ratio(parts: Sequence[float], wholes: Sequence[float], events: int, seed: int) -> Figure:
    def statistic(part: np.ndarray, whole: np.ndarray, axis: int) -> np.ndarray:
        return np.sum(part, axis=axis) / np.sum(whole, axis=axis)

    return _estimate((np.array(parts, float), np.array(wholes, float)), events, statistic, seed, paired=True)


def _estimate(
    data: tuple[np.ndarray, ...], events: int, statistic: Callable[..., Any], seed: int, paired: bool = False
) -> Figure:
    if events < FEWEST:
        return Hidden(events)
    value = float(statistic(*data, axis=-1))
    if any(len(of) < 2 for of in data):
        return Estimate(value, float("nan"), float("nan"), events)
    found = stats.bootstrap(
        data,
        statistic,
        paired=paired,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=_BATCH,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = map(float, found.confidence_interval)
    return Estimate(value, low, high, events)
