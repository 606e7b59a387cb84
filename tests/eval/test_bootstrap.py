"""Intervals, against distributions that are known in closed form and by enumeration."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from tml_jax.eval import bootstrap
from tml_jax.eval.bootstrap import Estimate, Hidden


@pytest.mark.parametrize(("right", "of"), [(30, 40), (8, 200), (5, 10)])
def test_the_interval_of_a_rate_is_that_of_the_binomial(right, of):
    """A resampled rate is Binomial(n, p) / n, whose quantiles are known; 2000 draws may miss by a step of 1 / n."""
    found = bootstrap.rate([True] * right + [False] * (of - right))
    low, high = stats.binom.ppf([0.025, 0.975], of, right / of) / of
    assert isinstance(found, Estimate)
    assert (found.value, found.events) == (right / of, of)
    assert found.low == pytest.approx(low, abs=1.01 / of) and found.high == pytest.approx(high, abs=1.01 / of)


@pytest.mark.parametrize("at", [0.5, 0.9])
def test_the_interval_of_a_quantile_lies_where_order_statistics_say(at):
    """A resampled quantile exceeds x with the probability that too few of n draws fall below x."""
    values = np.arange(51.0)
    found = bootstrap.quantile(list(values), at)
    assert isinstance(found, Estimate) and found.value == 50 * at
    rank = round(50 * at)  # the sorted resample's value at this place is the quantile
    below = stats.binom.sf(rank, 51, (values + 1) / 51)  # P(quantile <= x)
    low, high = (float(values[np.searchsorted(below, q)]) for q in (0.025, 0.975))
    assert found.low == pytest.approx(low, abs=1) and found.high == pytest.approx(high, abs=1)


def test_groups_are_drawn_whole():
    """Three cases of 4 values: the 27 resamples can be listed, and only whole groups give these few means."""
    groups = [[0.0] * 4, [1.0] * 4, [0.5] * 4]
    means = sorted(np.mean([groups[i] for i in drawn]) for drawn in itertools.product(range(3), repeat=3))
    found = bootstrap.pooled_mean([*groups, []])
    assert found == Estimate(0.5, means[0], means[-1], 12)  # 1 of 27 is more than 2.5 %
    alone = bootstrap.mean([value for group in groups for value in group])
    assert isinstance(alone, Estimate) and alone.high - alone.low < 0.6


def test_classes_weigh_the_same():
    found = bootstrap.macro_mean({"many": [1.0] * 90, "few": [0.0, 1.0] * 5, "none": []})
    low, high = (1 + stats.binom.ppf([0.025, 0.975], 10, 0.5) / 10) / 2
    assert isinstance(found, Estimate)
    assert (found.value, found.events) == (0.75, 100)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_few_events_are_hidden():
    assert bootstrap.rate([True] * 9) == bootstrap.mean([1.0] * 9) == bootstrap.quantile([1.0] * 9) == Hidden(9)
    assert bootstrap.pooled_mean([[1.0] * 9]) == bootstrap.macro_mean({"a": [1.0] * 5, "b": [1.0] * 4}) == Hidden(9)
    assert bootstrap.rate([]) == bootstrap.pooled_mean([]) == bootstrap.macro_mean({}) == Hidden(0)
    assert isinstance(bootstrap.rate([True] * 10), Estimate)


def test_one_case_has_no_interval():
    found = bootstrap.pooled_mean([[1.0] * 12])
    assert isinstance(found, Estimate) and found.value == 1.0 and math.isnan(found.low) and math.isnan(found.high)


def test_the_seed_decides():
    values = list(np.random.default_rng(1).normal(size=40))
    assert bootstrap.mean(values, 3) == bootstrap.mean(values, 3) != bootstrap.mean(values, 4)
