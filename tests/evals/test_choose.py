"""The smallest that is not worse than the best: by rows, not by means alone.

pytest tests/evals/test_choose.py
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tunesmith.evals.choose import Measured, choose
from tunesmith.evals.sweep import conclusion

ROWS = 200


def model(size: int, values, tokens=None) -> Measured:
    values = np.asarray(values, dtype=float)
    return Measured(size, np.stack([values, np.ones(len(values)) if tokens is None else np.asarray(tokens, dtype=float)], 1))


def right(share: float, n: int = ROWS) -> np.ndarray:
    return (np.arange(n) < share * n).astype(float)


def test_the_smaller_that_is_as_good_is_recommended_and_nothing_is_told_apart():
    choice = choose("exact_match", [model(10, right(0.80)), model(100, right(0.805)), model(1000, right(0.80))])
    assert (choice.best, choice.recommended, choice.separated) == (1, 0, False)


def test_control_a_smaller_one_that_is_worse_is_not():
    choice = choose("exact_match", [model(10, right(0.60)), model(100, right(0.80)), model(1000, right(0.80))])
    assert (choice.best, choice.recommended, choice.separated) == (1, 1, True)
    assert choice.against[0].worse and not choice.against[0].passes and choice.against[0].ci95[1] < 0
    assert choice.against[0].gain == pytest.approx(-0.2)


def test_a_margin_lets_what_is_worse_by_less_pass_and_only_that():
    models = [model(10, right(0.60)), model(100, right(0.75)), model(1000, right(0.80))]
    assert [choose("exact_match", models, margin).recommended for margin in (0.0, 0.06, 0.21)] == [2, 1, 0]


def test_for_a_loss_less_is_better_and_long_rows_weigh_more():
    tokens = np.r_[np.ones(ROWS // 2), np.full(ROWS // 2, 99.0)]
    on_short, on_long = np.r_[np.zeros(100), tokens[100:]], np.r_[3 * tokens[:100], 0.5 * tokens[100:]]
    choice = choose("loss", [model(10, on_short, tokens), model(10, on_long, tokens)])
    assert choice.best == choice.recommended == 1
    assert choice.against[0].gain == pytest.approx(-(99 / 100 - (3 + 49.5) / 100))
    assert choose("perplexity", [model(10, on_short, tokens), model(10, on_long, tokens)]).best == 1


def test_rows_are_compared_in_pairs():
    """Rows differ much more than the models do. Row by row the difference is sure; two separate intervals would overlap."""
    hard = np.random.default_rng(0).normal(5, 4, ROWS)
    choice = choose("loss", [model(10, hard + 0.05), model(100, hard)])
    assert choice.recommended == 1 and choice.separated
    assert 2 * stats.sem(hard) > 10 * 0.05


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6))
def test_the_interval_is_that_of_scipy(seed):
    random = np.random.default_rng(seed)
    a, b = random.random(60), random.random(60) + 0.1
    against = choose("token_f1", [model(1, a), model(2, b)]).against
    found = next(x for x in against if x.gain < 0) if any(x.gain < 0 for x in against) else None
    if found is None:
        return
    worse, better = (a, b) if a.mean() < b.mean() else (b, a)
    theirs = stats.bootstrap((worse - better,), np.mean, method="percentile", n_resamples=10_000, rng=1).confidence_interval
    assert found.ci95 == pytest.approx(tuple(theirs), abs=0.012)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(st.integers(1, 9), st.floats(0, 1)), min_size=1, max_size=5), st.floats(0, 0.2))
def test_what_is_recommended_passes_and_nothing_that_passes_is_smaller(models, margin):
    models = [model(size, right(share, 40)) for size, share in models]
    choice = choose("exact_match", models, margin)
    assert choice.against[choice.best].passes and choice.against[choice.best].gain == 0
    passing = [m.size for m, a in zip(models, choice.against, strict=True) if a.passes]
    assert models[choice.recommended].size == min(passing)
    assert all(a.gain <= 0 for a in choice.against)


def said(models: list[Measured], margin: float = 0.0, gains=None, regression=None) -> str:
    document = {"metric": {"name": "exact_match", "label": "exact match", "unit": "share"}, "test_rows": ROWS, "margin": margin}
    gains = gains or [0.5] * len(models)
    rows = [{"label": f"rank={m.size}", "trainable_parameters": m.size, "target": {"gain_ci95": [gain - 0.1, gain + 0.1]},
             "regression": regression} for m, gain in zip(models, gains, strict=True)]
    return conclusion(document, choose("exact_match", models, margin), rows)


@pytest.mark.parametrize(("arguments", "begin", "end"), [
    (([model(10, right(0.8)), model(20, right(0.8))],), "Nothing separates these 2 on 200 rows", "because it is the smallest"),
    (([model(10, right(0.8)), model(10, right(0.8))],), "Nothing separates these 2", "they are of one size"),
    (([model(10, right(0.6)), model(20, right(0.8))],), "rank=20 is recommended: it has the best exact match", "is as good."),
    (([model(10, right(0.79)), model(20, right(0.7)), model(40, right(0.8))],), "rank=10 is recommended", "with 25% of its"),
    (([model(10, right(0.75)), model(20, right(0.8))], 0.06), "rank=10", "(below the margin of 6.0 points)"),
    (([model(10, right(0.75)), model(20, right(0.8))], 0.06), "rank=10", "may still be worse than the best by up to"),
    (([model(10, right(0.6)), model(20, right(0.8))], 0.0, [0.5, 0.05]), "rank=20", "not shown to be better than the base."),
    (([model(10, right(0.79)), model(20, right(0.8))], 0.0, [0.05, 0.5]), "Nothing separates", "and rank=20 is: take that"),
    (([model(10, right(0.8))],), "Only rank=10 could be trained.", ""),
    (([model(10, right(0.6)), model(20, right(0.8))], 0.0, None, {"set": "far", "drop": 0.1, "ci95": [0.02, 0.2]}), "rank=20",
     "worse than the base on far by 10.0 points"),
])
def test_the_conclusion_says_what_the_numbers_do_and_what_they_do_not(arguments, begin, end):
    text = said(*arguments)
    assert text.startswith(begin) and end in text


def test_control_a_sound_choice_is_said_without_reservations():
    text = said([model(10, right(0.6)), model(20, right(0.8))], 0.0, None, {"set": "far", "drop": 0.1, "ci95": [-0.1, 0.3]})
    assert text == "rank=20 is recommended: it has the best exact match, and nothing smaller is as good."


def test_models_of_different_rows_are_refused():
    with pytest.raises(ValueError, match="same rows"):
        choose("exact_match", [model(1, right(0.5, 10)), model(1, right(0.5, 11))])
