"""Intervals against scipy, and by how often they hold what they promise to hold.

pytest tests/evals/test_statistics.py
"""

import numpy as np
import pytest
from scipy import stats

from tunesmith.evals import statistics
from tunesmith.evals.statistics import mean_interval, paired_bootstrap, wilson


@pytest.mark.parametrize("n", [1, 2, 5, 10, 37, 200])
def test_wilson_is_scipys(n):
    for hits in range(n + 1):
        theirs = stats.binomtest(hits, n).proportion_ci(confidence_level=0.95, method="wilson")
        assert wilson(hits, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_no_items_are_no_interval():
    for measure in (lambda: wilson(0, 0), lambda: mean_interval([]), lambda: paired_bootstrap(lambda w: w.sum(1), 0)):
        with pytest.raises(ValueError, match="no items"):
            measure()


def test_the_mean_of_zeros_and_ones_never_has_an_interval_of_no_width():
    assert mean_interval([1.0] * 8) == wilson(8, 8) == pytest.approx((0.6756, 1.0), abs=1e-3)
    low, high = mean_interval([0.0] * 8)
    assert low == 0.0 < high


@pytest.mark.parametrize("seed", range(3))
def test_the_bootstrap_of_a_mean_is_scipys_percentile_interval(seed):
    values = np.random.default_rng(seed).gamma(2.0, size=60)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(1))
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert mean_interval(values) == pytest.approx(tuple(theirs.confidence_interval), abs=0.04 * width)


def test_the_paired_bootstrap_of_a_ratio_is_scipys():
    """As for the loss: nats over tokens of the whole set, base and tuned resampled together."""
    random = np.random.default_rng(5)
    tokens = random.integers(5, 50, 80).astype(float)
    base, tuned = tokens * random.normal(2.0, 0.2, 80), tokens * random.normal(1.5, 0.2, 80)

    def difference(b, t, n, axis=-1):
        return t.sum(axis) / n.sum(axis) - b.sum(axis) / n.sum(axis)

    ours = paired_bootstrap(lambda w: (w @ tuned) / (w @ tokens) - (w @ base) / (w @ tokens), 80)
    theirs = stats.bootstrap((base, tuned, tokens), difference, paired=True, vectorized=True, method="percentile",
                             n_resamples=10_000, rng=np.random.default_rng(1)).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.04 * (theirs.high - theirs.low))


def test_an_interval_of_95_percent_holds_the_truth_95_times_of_100(monkeypatch):
    """60 pairs, 1,000 experiments. The percentile interval of so few is a little narrow: 94 to 95 is what theory expects."""
    monkeypatch.setattr(statistics, "RESAMPLES", 800)
    random = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        base = random.normal(0.5, 0.3, 60)
        tuned = base + random.normal(0.1, 0.2, 60)
        change = tuned - base
        low, high = paired_bootstrap(lambda w, change=change: w @ change / 60, 60)
        held += low <= 0.1 <= high
    assert 0.93 <= held / 1000 <= 0.97


def test_pairing_is_what_makes_a_difference_narrow():
    random = np.random.default_rng(0)
    base = random.normal(0.0, 1.0, 60)
    tuned = base + random.normal(0.1, 0.1, 60)
    low, high = paired_bootstrap(lambda w: w @ (tuned - base) / 60, 60)
    apart = mean_interval(base)
    assert high - low < 0.3 * (apart[1] - apart[0])


def test_the_same_items_give_the_same_interval_and_equal_systems_no_difference():
    values = np.random.default_rng(3).normal(size=40)
    assert mean_interval(values) == mean_interval(values)
    assert paired_bootstrap(lambda w: w @ (values - values) / 40, 40) == (0.0, 0.0)
