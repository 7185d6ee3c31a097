"""What a suite can show, against simulated suites of that size.

pytest tests/evals/test_power.py
"""

import numpy as np
import pytest
from scipy.stats import norm

from tunesmith.evals.power import detectable, items_needed, paired_sd, sentence
from tunesmith.evals.statistics import paired


def mean_of(sums_RS):
    return sums_RS[:, 0] / sums_RS[:, 1]


def suite(random, n, better, worse):
    """Right and wrong answers of base and tuned to n items, of which these shares change."""
    u = random.random(n)
    base = np.where(u < better, 0, np.where(u < better + worse, 1, random.random(n) < 0.6))
    tuned = np.where(u < better, 1, np.where(u < better + worse, 0, base))
    return tuple(np.stack([x, np.ones(n)], 1).astype(float) for x in (base, tuned))


def shown(random, n, better, worse, suites=400):
    """Share of suites whose interval leaves out zero."""
    found = [paired(mean_of, *suite(random, n, better, worse), mean=True, span=1.0) for _ in range(suites)]
    return np.mean([f.low > 0 or f.high < 0 for f in found])


@pytest.mark.parametrize("change, discordance", [(0.05, 0.1), (0.1, 0.2), (0.1, 0.4), (0.2, 0.3)])
def test_so_many_items_show_so_small_a_change_in_four_of_five_suites(change, discordance):
    n = items_needed(change, paired_sd(discordance, change))
    better, worse = (discordance + change) / 2, (discordance - change) / 2
    assert 0.75 <= shown(np.random.default_rng(0), n, better, worse) <= 0.86
    assert shown(np.random.default_rng(0), n // 4, better, worse) < 0.45, "and a quarter of them does not"


def test_the_formula_is_the_normal_tests():
    sd, n, change = 0.4, 150, detectable(0.4, 150)
    assert norm.sf(norm.isf(0.025) - change / (sd / np.sqrt(n))) == pytest.approx(0.8, abs=1e-6)
    assert items_needed(change, sd) == pytest.approx(n, abs=1)
    with pytest.raises(ValueError, match="nothing"):
        items_needed(0.0, sd)


def test_what_a_report_learns_of_its_suite_is_what_the_suite_shows():
    """`sd` of one suite says how many items show a change that it did not show."""
    random = np.random.default_rng(3)
    found = paired(mean_of, *suite(random, 400, 0.1, 0.05), mean=True, span=1.0)
    assert found.sd == pytest.approx(paired_sd(0.15, 0.05), rel=0.15)


def test_the_sentence_says_what_forty_items_cannot_show():
    said = sentence(40, "exact match", "share", detectable(0.45, 40))
    assert said == "40 items can show a change of 19.9 points (exact match), not one of 2 points: that takes about 4,000"
    assert sentence(9000, "exact match", "share", 0.013) == "9,000 items can show a change of 1.3 points (exact match)"
    assert sentence(1, "exact match", "share", 2.3) == "1 item can show no change of exact match at all"
    assert "0.12 nats in held-out loss" in sentence(40, "held-out loss", "nats", 0.12)
