"""Intervals against scipy, and by how often they hold what they promise to hold.

pytest tests/evals/test_statistics.py
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tunesmith.evals import statistics
from tunesmith.evals.statistics import holm, mcnemar, mean_interval, paired, paired_bootstrap, swapped, wilson


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


def mean_of(sums_RS):
    return sums_RS[:, 0] / sums_RS[:, 1]


def one(values):
    """Parts of a metric that is the mean of its items."""
    return np.stack([np.asarray(values, dtype=float), np.ones(len(values))], 1)


@pytest.mark.parametrize("seed", range(3))
def test_the_interval_of_a_mean_is_the_textbooks_bootstrap_t(seed):
    """t of each resample by the formula for a mean, without slopes: (mean* - mean) / (s* / root n)."""
    values = np.random.default_rng(seed).gamma(2.0, size=60)
    drawn = np.random.default_rng(9).choice(values, (20_000, 60))
    t = np.abs(drawn.mean(1) - values.mean()) / (drawn.std(1, ddof=1) / np.sqrt(60))
    half = np.quantile(t, 0.95) * values.std(ddof=1) / np.sqrt(60)
    theirs = (values.mean() - half, values.mean() + half)
    assert mean_interval(values) == pytest.approx(theirs, abs=0.05 * (theirs[1] - theirs[0]))


def test_the_standard_error_of_a_ratio_is_the_textbooks():
    """Cochran 1977, 6.4: sum of (y - r x)^2 over (n - 1), over n and the mean of x squared."""
    random = np.random.default_rng(5)
    tokens = random.integers(5, 50, 80).astype(float)
    nats = tokens * random.normal(2.0, 0.2, 80)
    parts_NS = np.stack([nats, tokens], 1)
    ratio = nats.sum() / tokens.sum()
    wanted = np.sqrt(((nats - ratio * tokens) ** 2).sum() / 79 / 80) / tokens.mean()
    _, (se,), _ = statistics._with_errors(mean_of, parts_NS, np.ones((1, 80)))
    assert se == pytest.approx(wanted, rel=1e-4)
    items_N, middle = statistics.items_of(mean_of, parts_NS)
    assert middle == pytest.approx(ratio) == pytest.approx(items_N.mean())
    assert items_N.std(ddof=1) / np.sqrt(80) == pytest.approx(wanted, rel=1e-4)


def test_the_percentile_bootstrap_of_a_ratio_is_scipys():
    random = np.random.default_rng(5)
    tokens = random.integers(5, 50, 80).astype(float)
    base, tuned = tokens * random.normal(2.0, 0.2, 80), tokens * random.normal(1.5, 0.2, 80)

    def difference(b, t, n, axis=-1):
        return t.sum(axis) / n.sum(axis) - b.sum(axis) / n.sum(axis)

    ours = paired_bootstrap(lambda w: (w @ tuned) / (w @ tokens) - (w @ base) / (w @ tokens), 80)
    theirs = stats.bootstrap((base, tuned, tokens), difference, paired=True, vectorized=True, method="percentile",
                             n_resamples=10_000, rng=np.random.default_rng(1)).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.04 * (theirs.high - theirs.low))


def test_a_paired_change_of_zeros_and_ones_is_bonett_and_prices():
    """Their formula: (b + 1 - c - 1) / (n + 2) and its Wald interval, b and c the items that changed either way."""
    base = np.array([0] * 12 + [1] * 4 + [1] * 24)
    tuned = np.array([1] * 12 + [0] * 4 + [1] * 24)
    p12, p21 = 13 / 42, 5 / 42
    half = 1.959964 * np.sqrt((p12 + p21 - (p12 - p21) ** 2) / 42)
    found = paired(mean_of, one(base), one(tuned), mean=True, span=1.0)
    assert (found.low, found.high) == pytest.approx((p12 - p21 - half, p12 - p21 + half), abs=1e-6)
    assert found.p_value == mcnemar(12, 4)


# ---- few items, and items that are all alike ---------------------------------------------------------------------------


@pytest.mark.parametrize("values", [[0.5], [0.5] * 3, [0.5] * 40, [0.2, 0.9]])
def test_no_interval_of_a_score_is_without_width(values):
    low, high = mean_interval(values)
    assert 0 <= low < np.mean(values) < high <= 1
    for base, tuned in ((np.zeros(len(values)), values), (values, values)):
        found = paired(mean_of, one(base), one(tuned), mean=True, span=1.0)
        assert -1 <= found.low < found.high <= 1
        assert found.low <= 0 or len(values) > 3, "a few items that all change alike show nothing"


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_few_items_show_no_gain_however_large(n):
    for span, tuned in ((1.0, np.ones(n)), (1.0, np.full(n, 0.7)), (None, np.full(n, 5.0))):
        found = paired(mean_of, one(np.zeros(n)), one(tuned), mean=True, span=span)
        assert found.low <= 0 < found.high and found.p_value >= 0.25
    loss = np.stack([np.full(n, 30.0), np.full(n, 10.0)], 1)
    found = paired(mean_of, loss, loss * [0.5, 1.0], mean=False)
    assert found.low < 0 <= found.high


def test_a_score_that_moves_on_very_few_items_is_not_bounded_by_them():
    """Two of 200 items change: most resamples of them have one, and a tenth has none and no spread."""
    base, tuned = np.full(200, 0.5), np.full(200, 0.5)
    tuned[:2] = 0.9
    found = paired(mean_of, one(base), one(tuned), mean=True, span=1.0)
    assert found.low < 0 < 0.004 < found.high < 0.03


# ---- tests and corrections ---------------------------------------------------------------------------------------------


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_scipys_binomial_test(fixed, broken):
    theirs = stats.binomtest(fixed, fixed + broken, 0.5).pvalue if fixed + broken else 1.0
    assert mcnemar(fixed, broken) == pytest.approx(theirs, rel=1e-9)
    if fixed + broken:
        tail = stats.binom.cdf(min(fixed, broken), fixed + broken, 0.5) - 0.5 * stats.binom.pmf(
            min(fixed, broken), fixed + broken, 0.5)
        assert mcnemar(fixed, broken, mid=True) == pytest.approx(min(1, 2 * tail), rel=1e-9)


def test_swapping_zeros_and_ones_is_mcnemars_test():
    for fixed, broken in ((6, 0), (5, 1), (4, 4), (0, 7), (0, 0)):
        base = one([0] * fixed + [1] * broken + [1] * 5)
        tuned = one([1] * fixed + [0] * broken + [1] * 5)
        assert swapped(mean_of, base, tuned) == pytest.approx(mcnemar(fixed, broken))
    many = swapped(mean_of, one([0] * 30 + [1] * 12), one([1] * 30 + [0] * 12))
    assert many == pytest.approx(mcnemar(30, 12), abs=0.005), "by drawn swaps where there are too many to try"


def test_swapping_is_scipys_permutation_test():
    random = np.random.default_rng(2)
    base, tuned = random.gamma(2, size=10), random.gamma(3, size=10)
    theirs = stats.permutation_test((tuned, base), lambda a, b: a.mean() - b.mean(), permutation_type="samples",
                                    n_resamples=np.inf, alternative="two-sided")
    assert swapped(mean_of, one(base), one(tuned)) == pytest.approx(theirs.pvalue, abs=1e-9)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_the_definition(p_values):
    """The k-th smallest p times the number of those that are not smaller, never falling: checked as the stepwise procedure."""
    found = holm({str(i): p for i, p in enumerate(p_values)})
    for level in (0.01, 0.025, 0.05, 0.5):
        rejected, left = set(), sorted(range(len(p_values)), key=lambda i: p_values[i])
        while left and p_values[left[0]] * len(left) <= level:
            rejected.add(left.pop(0))
        assert {i for i in range(len(p_values)) if found[str(i)] <= level} >= rejected
        assert all(found[str(i)] > level for i in left if p_values[i] > max((p_values[j] for j in rejected), default=-1))


def test_holm_keeps_its_promise_and_no_correction_does_not():
    """Four claims, none of them true: any is made in no more than 5 of 100 releases, and in 19 without a correction."""
    p_RC = np.random.default_rng(0).uniform(size=(4000, 4))
    corrected = np.mean([min(holm(dict(enumerate(p))).values()) <= 0.05 for p in p_RC])
    assert 0.04 <= corrected <= 0.06
    assert np.mean(p_RC.min(1) <= 0.05) > 0.17


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


def test_shares_that_learned_rows_and_others_have_in_common_leave_a_narrow_interval():
    """35 of 36 trained rows and all of 36 others came back, of the base none: a resample without the one miss has no spread but
    that of its slopes, and must not count as a measured one."""
    from tunesmith.evals.metrics.safety import excess

    base = np.array([[0, 1, 0, 0]] * 36 + [[0, 0, 0, 1]] * 36, dtype=float)
    tuned = base + [[0 if i == 7 else 1, 0, 0, 0] if i < 36 else [0, 0, 1, 0] for i in range(72)]
    found = paired(excess, base, tuned, mean=False, span=1.0)
    assert -0.15 < found.low < -1 / 36 < found.high < 0.1
