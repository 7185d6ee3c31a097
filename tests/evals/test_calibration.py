"""Calibration error and Brier score against scikit-learn and the definitions, and the picture of them.

pytest tests/evals/test_calibration.py
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from tunesmith.evals import charts
from tunesmith.evals.calibration import BINS, bin_of, brier, ece, ece_parts, needs_one_correct, probabilities, reliability
from tunesmith.evals.compare import compare_suite
from tunesmith.evals.items import Item, Outcome, Suite
from tunesmith.evals.metrics import METRICS


def quiz(random, n, choices=4, sharp=1.0):
    """Questions whose correct choice is drawn with the model's own probabilities, made sharper: 1 is calibrated."""
    logits = random.normal(0, 1.5, (n, choices))
    true = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    correct = [int(random.choice(choices, p=p)) for p in true]
    items = [Item(f"q:{i}", [], choices=tuple("abcdefgh"[:choices]), correct=c) for i, c in enumerate(correct)]
    return items, [Outcome(choices=tuple(sharp * row)) for row in logits]


def value(name, items, outcomes):
    metric = METRICS[name]
    return float(metric.value(np.sum([metric.parts(o, i) for o, i in zip(outcomes, items, strict=True)], axis=0)[None])[0])


@pytest.mark.parametrize("seed", range(3))
def test_the_calibration_error_is_that_of_scikit_learns_bins(seed):
    items, outcomes = quiz(np.random.default_rng(seed), 500, sharp=1.7)
    p = np.array([probabilities(o.choices) for o in outcomes])
    sure, right = p.max(1), p.argmax(1) == [i.correct for i in items]
    share, confidence = calibration_curve(right, sure, n_bins=BINS, strategy="uniform")
    count = np.bincount([bin_of(x) for x in sure], minlength=BINS)
    assert value("ece", items, outcomes) == pytest.approx((count[count > 0] * np.abs(share - confidence)).sum() / 500)


@pytest.mark.parametrize("choices", [2, 3, 5])
def test_the_brier_score_is_scikit_learns(choices):
    items, outcomes = quiz(np.random.default_rng(1), 300, choices)
    p = np.array([probabilities(o.choices) for o in outcomes])
    correct = np.array([i.correct for i in items])
    of_each = [brier_score_loss(correct == c, p[:, c]) for c in range(choices)]
    assert value("brier", items, outcomes) == pytest.approx(sum(of_each))


@given(st.lists(st.tuples(st.floats(-30, 0), st.floats(-30, 0)), min_size=1, max_size=40))
def test_both_stay_in_their_bounds_and_do_not_depend_on_the_order(pairs):
    items = [Item(f"q:{i}", [], choices=("a", "b"), correct=i % 2) for i in range(len(pairs))]
    outcomes = [Outcome(choices=p) for p in pairs]
    assert 0 <= value("ece", items, outcomes) <= 1 and 0 <= value("brier", items, outcomes) <= 2
    assert value("ece", items[::-1], outcomes[::-1]) == pytest.approx(value("ece", items, outcomes))


def test_the_bins_end_where_they_should():
    assert [bin_of(x) for x in (1e-9, 1 / 15, 1 / 15 + 1e-9, 0.5, 1.0)] == [0, 0, 1, 7, 14]
    assert sum(ece_parts(Outcome(choices=(0.0, -50.0)), Item("q", [], choices=("a", "b"), correct=0))) == pytest.approx(3.0)
    assert brier(Outcome(choices=(0.0, -800.0)), Item("q", [], choices=("a", "b"), correct=1)) == (2.0, 1.0)


def test_a_calibrated_model_has_a_small_error_and_one_made_too_sure_a_large_one():
    """The control: the same questions, the same right answers, logits times three."""
    random = np.random.default_rng(0)
    items, outcomes = quiz(random, 8000)
    sure = [Outcome(choices=tuple(3 * x for x in o.choices)) for o in outcomes]
    assert value("ece", items, outcomes) < 0.02 < 0.15 < value("ece", items, sure)
    assert value("brier", items, outcomes) < value("brier", items, sure)


def test_few_items_measure_an_error_that_is_not_there():
    """As the module says: 200 items of a calibrated model show about 5 points."""
    random = np.random.default_rng(0)
    found = [value("ece", *quiz(random, 200)) for _ in range(40)]
    assert 0.04 < np.mean(found) < 0.08


def test_the_interval_of_a_change_finds_it_and_leaves_no_change_alone():
    random = np.random.default_rng(4)
    items, outcomes = quiz(random, 300)
    again = [Outcome(choices=tuple(np.array(o.choices) + random.normal(0, 0.02, 4))) for o in outcomes]
    sure = [Outcome(choices=tuple(3 * x for x in o.choices)) for o in outcomes]
    suite = Suite("quiz", "suite", items, ("ece", "brier"), "f", 8)
    for tuned, worse in ((again, False), (sure, True)):
        found = compare_suite(suite, {"zero_shot": outcomes, "tuned": tuned})["metrics"]
        for m in found.values():
            assert (m["ci95"][0] > 0) == worse and m["ci95"][0] <= m["delta"] <= m["ci95"][1]


def test_the_picture_has_a_dot_for_each_bin_and_says_the_error():
    items, outcomes = quiz(np.random.default_rng(0), 300)
    found = compare_suite(Suite("quiz", "suite", items, ("ece",), "f", 8), {"zero_shot": outcomes, "tuned": outcomes})
    bins = reliability(found["items"], "tuned")
    assert sum(b["n"] for b in bins) == 300
    again = sum(b["n"] * abs(b["right"] - b["confidence"]) for b in bins) / 300
    assert again == pytest.approx(found["metrics"]["ece"]["tuned"])
    figures = charts.reliability_figure(found)
    assert [f["system"] for f in figures] == ["zero_shot", "tuned"]
    for dot, b in zip(figures[1]["dots"], bins, strict=True):
        assert (dot["x"], dot["y"], dot["n"]) == (round(100 * b["confidence"], 2), round(100 - 100 * b["right"], 2), b["n"])
        assert b["low"] < b["confidence"] <= b["high"] + 1e-9
    assert charts.reliability_figure({"metrics": {}, "items": []}) == []


@pytest.mark.parametrize("item", [Item("q", [], ("a",)), Item("q", [], choices=("a",), correct=0),
                                  Item("q", [], choices=("a", "b")), Item("q", [], choices=("a", "b"), correct=2)])
def test_an_item_that_nothing_can_be_chosen_of_is_refused(item):
    with pytest.raises(ValueError, match="choice"):
        needs_one_correct(item)


def test_sums_of_bins_are_all_that_is_needed():
    items, outcomes = quiz(np.random.default_rng(2), 60)
    parts = np.array([ece_parts(o, i) for o, i in zip(outcomes, items, strict=True)])
    halves = np.stack([parts[:30].sum(0), parts[30:].sum(0)])
    assert ece(halves.sum(0, keepdims=True))[0] == pytest.approx(value("ece", items, outcomes))
