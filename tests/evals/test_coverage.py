"""Intervals of 95% hold the truth 93 to 97 times of 100, at 20, 50 and 200 items: what a report rests on.

pytest tests/evals/test_coverage.py             400 suites of each kind: too few to tell 94 from 95, enough to see 90
pytest tests/evals/test_coverage.py -m slow     3,000 suites of each kind
python tests/evals/test_coverage.py             the same, as a table

Each case draws suites from a population whose truth is known, and asks how often the interval has it.
"""

import numpy as np
import pytest

from tunesmith.evals import statistics
from tunesmith.evals.statistics import interval, paired, paired_bootstrap, wilson

LEAST, MOST = 0.93, 0.97
SOME, ERROR = 400, 0.02
MANY = 3000


def mean_of(sums_RS):
    return sums_RS[:, 0] / sums_RS[:, 1]


def perplexity(sums_RS):
    return np.exp(mean_of(sums_RS))


def one(values):
    """Parts of a metric that is the mean of its items."""
    return np.stack([np.asarray(values, dtype=float), np.ones(len(values))], 1)


def scores(random, n, a, b, zeros, ones):
    """As an F1: some are 0, some are 1, the others in between."""
    u = random.random(n)
    return np.where(u < zeros, 0.0, np.where(u > 1 - ones, 1.0, random.beta(a, b, n)))


def mean_score(a, b, zeros, ones):
    return ones + (1 - zeros - ones) * a / (a + b)


def share(random, n):
    """A share of right answers, from 10% to 90%: Wilson's interval."""
    p = random.uniform(0.1, 0.9)
    return interval(mean_of, one(random.random(n) < p), mean=True, bounds=(0.0, 1.0)), p


def score(random, n):
    """A mean of F1 scores."""
    shape = (2, 3, 0.2, 0.3)
    return interval(mean_of, one(scores(random, n, *shape)), mean=True, bounds=(0.0, 1.0)), mean_score(*shape)


def loss(random, n):
    """A loss: nats of the whole set over its tokens, a ratio of two sums of skewed numbers."""
    return interval(mean_of, _losses(random, n)[0], mean=False, bounds=(0.0, None)), 2.0


def share_change(random, n):
    """Zeros and ones of two systems on the same items."""
    better, worse = random.uniform(0.05, 0.35), random.uniform(0.02, 0.2)
    u = random.random(n)
    base = np.where(u < better, 0, np.where(u < better + worse, 1, random.random(n) < 0.5))
    tuned = np.where(u < better, 1, np.where(u < better + worse, 0, base))
    found = paired(mean_of, one(base), one(tuned), mean=True, span=1.0)
    return (found.low, found.high), better - worse


def score_change(random, n):
    """F1 scores of two systems, equal on half of the items."""
    base = scores(random, n, 2, 3, 0.3, 0.2)
    tuned = np.where(random.random(n) < 0.5, scores(random, n, 3, 2, 0.1, 0.4), base)
    found = paired(mean_of, one(base), one(tuned), mean=True, span=1.0)
    return (found.low, found.high), (mean_score(3, 2, 0.1, 0.4) - mean_score(2, 3, 0.3, 0.2)) / 2


def loss_change(random, n):
    base_NS, tuned_NS = _losses(random, n)
    found = paired(mean_of, base_NS, tuned_NS, mean=False)
    return (found.low, found.high), -0.6


def perplexity_change(random, n):
    base_NS, tuned_NS = _losses(random, n)
    found = paired(perplexity, base_NS, tuned_NS, mean=False)
    return (found.low, found.high), np.exp(1.4) - np.exp(2.0)


def _losses(random, n):
    """Items of 1 to some 60 tokens, at 2 nats a token, and 30% less when tuned."""
    tokens = 1 + random.poisson(random.gamma(2, 10, n))
    base = tokens * random.gamma(8, 0.25, n)
    return np.stack([base, tokens], 1).astype(float), np.stack([base * random.uniform(0.5, 0.9, n), tokens], 1)


CASES = [share, score, loss, share_change, score_change, loss_change, perplexity_change]


def coverage(case, n, suites, seed):
    random = np.random.default_rng(seed)
    held = 0
    for _ in range(suites):
        (low, high), truth = case(random, n)
        assert low < high
        held += low <= truth <= high
    return held / suites


@pytest.mark.parametrize("n", [20, 50])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_an_interval_of_95_percent_holds_the_truth(case, n, monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    assert LEAST - ERROR <= coverage(case, n, SOME, seed=n) <= MOST + ERROR


@pytest.mark.slow
@pytest.mark.parametrize("n", [20, 50, 200])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_and_does_so_in_many_suites(case, n, monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    assert LEAST <= coverage(case, n, MANY, seed=n) <= MOST


def percentile(random, n):
    """The loss again, by the percentile bootstrap."""
    parts_NS = _losses(random, n)[0]
    return paired_bootstrap(lambda w_RN: mean_of(w_RN @ parts_NS), n), 2.0


def test_the_percentile_bootstrap_does_not(monkeypatch):
    """The control: what is commonly used is too narrow for 20 items, and this simulation notices."""
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    assert coverage(percentile, 20, 3 * SOME, seed=20) < LEAST


def test_wilsons_interval_covers_by_an_exact_sum():
    """No simulation needed: over all shares from 10% to 90%, by the binomial distribution itself."""
    from scipy.stats import binom

    for n in (20, 50, 200):
        ends = np.array([wilson(hits, n) for hits in range(n + 1)])
        held = [binom.pmf(np.arange(n + 1), n, p)[(ends[:, 0] <= p) & (p <= ends[:, 1])].sum() for p in
                np.linspace(0.1, 0.9, 401)]
        assert LEAST <= np.mean(held) <= MOST and min(held) > 0.9


if __name__ == "__main__":
    statistics.RESAMPLES = 1000
    for each in (*CASES, percentile):
        print(each.__name__.ljust(20), *(f"{coverage(each, n, MANY, seed=n):.3f}" for n in (20, 50, 200)), flush=True)
