"""What is said of baselines follows the paired interval, not the means.

    python -m pytest tests/evals/test_words.py
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.evals.compare import difference, measured
from tunesmith.evals.metrics import METRICS
from tunesmith.evals.words import amount, call, compared, level


def parts(**right: list[float]) -> dict[str, np.ndarray]:
    return {system: np.array([[float(r), 1.0] for r in values]) for system, values in right.items()}


def report(metric: str = "exact_match", **right) -> dict:
    n = len(right["tuned"])
    return {"sets": {"test": {"n": n, "metrics": {metric: measured(metric, parts(**right))},
                              "prompt_tokens": {"tuned": 40.0, "few_shot": 400.0, "retrieval": 700.0}}},
            "settings": {"few_shot": 3, "retrieval": {"top": 2}}}


def only(found: list[dict]) -> dict:
    (one,) = found
    return one


N = 60


@pytest.mark.parametrize("tuned, few_shot, said, words", [
    (50, 20, "better", ["the fine-tune beats the base with 3 examples in its prompt", "it earns its cost",
                        "40 tokens instead of 400", "exact match 83.3% against 33.3%, +50 points"]),
    (20, 50, "worse", ["the base with 3 examples in its prompt beats the fine-tune", "Use prompting"]),
    (32, 30, "not_shown", ["is as good as the fine-tune, as far as 60 items can tell", "not shown to be worse",
                           "Prefer prompting", "unless the length of the prompt matters"]),
    (30, 32, "not_shown", ["is as good as the fine-tune", "Prefer prompting"]),
    (30, 30, "not_shown", ["is as good as the fine-tune"]),
])
def test_prompting_is_compared_by_pairs(tuned, few_shot, said, words):
    found = only(compared(report(zero_shot=[0] * N, tuned=[i < tuned for i in range(N)],
                                 few_shot=[i >= N - few_shot for i in range(N)]), "exact_match"))
    assert found["call"] == said and found["message"].startswith("On test, ")
    assert all(w in found["message"] for w in words), found["message"]


def test_two_items_are_not_enough_to_call_a_difference():
    """The means differ by as much as in the first case above; with two items nothing is shown."""
    assert only(compared(report(zero_shot=[0, 0], tuned=[1, 0], few_shot=[0, 0]), "exact_match"))["call"] == "not_shown"


def test_documents_are_told_of_the_base_and_of_the_fine_tune():
    half = [i % 2 for i in range(N)]
    found = {(f["a"], f["b"]): f for f in compared(report(
        zero_shot=[0] * N, tuned=[0] * N, retrieval=half, tuned_retrieval=[1] * N), "exact_match")}
    assert {pair: f["call"] for pair, f in found.items()} == {("tuned", "retrieval"): "worse",
        ("tuned_retrieval", "retrieval"): "better", ("tuned_retrieval", "tuned"): "better"}
    assert "the base with 2 passages of the documents beats the fine-tune" in found["tuned", "retrieval"]["message"]
    assert "Use retrieval" in found["tuned", "retrieval"]["message"]
    assert "it earns its cost beside retrieval" in found["tuned_retrieval", "retrieval"]["message"]
    assert "documents help the fine-tune" in found["tuned_retrieval", "tuned"]["message"]


def test_without_a_baseline_nothing_is_said():
    assert compared(report(zero_shot=[0] * N, tuned=[1] * N), "exact_match") == []


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=40))
def test_swapping_two_systems_swaps_what_is_said(rows):
    a, b = ([float(r[i]) for r in rows] for i in (0, 1))
    one, other = (difference(METRICS["exact_match"], parts(a=x, b=y), "a", "b") for x, y in ((a, b), (b, a)))
    assert one["delta"] == pytest.approx(-other["delta"])
    calls = [call(d["delta"], d["ci95"], True) for d in (one, other)]
    assert calls in (["better", "worse"], ["worse", "better"], ["not_shown", "not_shown"])
    assert calls[0] == "not_shown" or (calls[0] == "better") == (one["delta"] > 0)
    assert call(one["delta"], one["ci95"], False) == {"better": "worse", "worse": "better"}.get(calls[0], calls[0])


@pytest.mark.parametrize("value, unit, signed, said", [
    (0.125, "share", True, "+12.5 points"), (3.24, "score", True, "+3.24 points"), (-3.0, "score", False, "-3 points"),
    (0.5, "nats", False, "0.5 nats"), (1.25, "ratio", True, "+1.25")])
def test_amounts_carry_their_unit(value, unit, signed, said):
    assert amount(value, unit, signed) == said


def test_levels_carry_their_unit():
    assert [level(0.5, "share"), level(31.24, "score"), level(2.5, "nats"), level(3.1, "ratio")] == [
        "50.0%", "31.2", "2.5 nats", "3.1"]


def test_nothing_is_recommended_that_is_no_better_than_the_base():
    found = only(compared(report(zero_shot=[i < 30 for i in range(N)], tuned=[i < 29 for i in range(N)],
                                 few_shot=[i < 30 for i in range(N)]), "exact_match"))
    assert found["call"] == "not_shown" and "neither the fine-tune nor the base with 3 examples" in found["message"]
    assert "Prefer" not in found["message"]


def test_a_gain_that_is_not_shown_does_not_make_useless_help_worth_having():
    """Two lucky rows of the fine-tune, and examples that changed nothing: no reason for either. Control: some that help."""
    lucky = {"zero_shot": [False] * N, "tuned": [i < 2 for i in range(N)]}
    found = only(compared(report(**lucky, few_shot=[False] * N), "exact_match"))
    assert "neither" in found["message"] and "Prefer" not in found["message"]
    found = only(compared(report(**lucky, few_shot=[i < 3 for i in range(N)]), "exact_match"))
    assert found["call"] == "not_shown" and "Prefer" in found["message"]
