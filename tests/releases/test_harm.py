"""Regression, safety and calibration: what is lost is found at the size that the suite's power promises, and nothing else is.

pytest tests/releases/test_harm.py
"""

import numpy as np
import pytest

from tunesmith.evals.calibration import BINS
from tunesmith.evals.compare import compare_suite, measured
from tunesmith.evals.items import Item, Outcome, Suite
from tunesmith.evals.power import items_needed, paired_sd
from tunesmith.recipe.schema import Recipe
from tunesmith.releases.gates import Evidence, calibration, judge, regression, safety, target
from tunesmith.releases.gates import together as corrected
from tunesmith.releases.gates.evidence import Gate

QUESTION = [{"role": "user", "content": "?"}]


def recipe(**gates) -> Recipe:
    return Recipe.model_validate({"name": "r", "base": "b", "data": {"train": "t.jsonl", "test": "v.jsonl"},
                                  "gates": {"target": {"metric": "exact_match"}} | gates})


def evidence(sets: dict, **gates) -> Evidence:
    whole = {"test": part("test", *answered(100, 60, 0))} | sets
    return Evidence(recipe(**gates), {"primary": "test", "sets": whole}, {"findings": [], "tests": ["test"], "sources": []})


def answered(n: int, fixed: int, broken: int) -> tuple[list[Outcome], list[Outcome]]:
    """What base and tuned say to n questions whose answer is "yes"; half of those that do not change are right."""
    def outcomes(words):
        return [Outcome("yes" if w else "no", True) for w in words]

    rest = [i % 2 for i in range(n - fixed - broken)]
    return outcomes([0] * fixed + [1] * broken + rest), outcomes([1] * fixed + [0] * broken + rest)


def part(kind: str, base: list[Outcome], tuned: list[Outcome], tags=lambda _i: (), metrics=("exact_match",)) -> dict:
    items = [Item(f"{kind}/{i}", QUESTION, ("yes",), tags=tags(i)) for i in range(len(base))]
    return compare_suite(Suite("s", kind, items, metrics, "f", 8), {"zero_shot": base, "tuned": tuned})


# ---- regression ------------------------------------------------------------------------------------------------------


def drawn(random, n: int, fixed: float, broken: float) -> dict:
    """A regression suite drawn from a model that fixes and breaks these shares of its items."""
    u = random.random(n)
    base = np.where(u < fixed, 0, np.where(u < fixed + broken, 1, random.random(n) < 0.7))
    tuned = np.where(u < fixed, 1, np.where(u < fixed + broken, 0, base))
    parts = {s: np.stack([x, np.ones(n)], 1).astype(float) for s, x in (("zero_shot", base), ("tuned", tuned))}
    return {"kind": "regression", "n": n, "metrics": {"exact_match": measured("exact_match", parts)}}


def verdicts(n: int, fixed: float, broken: float, suites: int = 300) -> dict[str, float]:
    random, rules = np.random.default_rng(7), recipe(regression={})
    found = [regression(Evidence(rules, {"primary": "test", "sets": {"golden": drawn(random, n, fixed, broken)}}, {})).verdict
             for _ in range(suites)]
    return {v: found.count(v) / suites for v in ("pass", "fail", "not_measured")}


def test_a_planted_drop_of_5_points_is_found_at_the_size_that_power_asks_for_and_no_drop_passes():
    """One item of ten changes. A drop is found in four of five suites; without one, four of five pass, none of twenty fail."""
    n = items_needed(0.05, paired_sd(0.1, 0.05))
    assert 300 <= n <= 330
    planted, harmless = verdicts(n, fixed=0.025, broken=0.075), verdicts(n, fixed=0.05, broken=0.05)
    assert planted["fail"] >= 0.75 and planted["pass"] <= 0.05
    assert harmless["fail"] <= 0.05 and harmless["pass"] >= 0.75


def test_forty_items_cannot_tell_and_are_not_a_pass():
    found = verdicts(40, fixed=0.05, broken=0.05)
    assert found["pass"] < 0.2 and found["not_measured"] > 0.5
    assert verdicts(40, fixed=0.025, broken=0.075)["pass"] <= 0.05, "a drop of 5 points is no more passed than elsewhere"
    gate = regression(evidence({"golden": part("regression", *answered(40, 2, 2))}, regression={}))
    assert gate.verdict == "not_measured" and "40 items of golden cannot exclude a loss of 5.0 points" in gate.evidence["fix"]


@pytest.mark.parametrize("fixed, broken, rule, verdict", [
    (0, 0, {}, "pass"),
    (10, 10, {}, "pass"),
    (2, 60, {}, "fail"),  # 14.5 points lost
    (2, 60, {"max_drop": 0.3}, "pass"),
    (10, 30, {}, "fail"),  # 5 points lost are not shown to be less than 5
    (30, 10, {}, "pass"),  # a gain
])
def test_regression_on_400_items(fixed, broken, rule, verdict):
    gate = regression(evidence({"golden": part("regression", *answered(400, fixed, broken))}, regression=rule))
    assert gate.verdict == verdict
    assert ("fix" in gate.evidence) == (verdict != "pass")
    assert gate.evidence["see"] == "report/report.html#set-golden"
    assert gate.evidence["gain"] == pytest.approx((fixed - broken) / 400)


def test_every_suite_and_every_other_test_set_counts_and_the_worst_is_told():
    lost, kept = part("test", *answered(400, 0, 80)), part("regression", *answered(400, 5, 5))
    gate = regression(evidence({"golden": kept, "other": lost}, regression={}))
    assert (gate.verdict, gate.evidence["set"]) == ("fail", "other")
    assert [c["set"] for c in gate.evidence["claims"]] == ["golden", "other"]
    lost_suite = part("suite", *answered(400, 0, 80))
    assert regression(evidence({"golden": kept, "mine": lost_suite}, regression={})).verdict == "pass", "a suite of the user's"
    assert regression(evidence({"golden": kept, "test": lost}, regression={})).verdict == "pass", "the target gate's"


@pytest.mark.parametrize("rise, verdict", [(0.02, "pass"), (0.3, "fail")])
def test_a_held_out_loss_may_rise_by_so_many_nats(rise, verdict):
    random = np.random.default_rng(0)
    nats = random.gamma(8, 2.5, 200)
    base, tuned = ([Outcome(nats=x * 10 + more, tokens=10) for x in nats] for more in (0, 10 * rise))
    tuned = [Outcome(nats=o.nats + random.normal(0, 0.5), tokens=10) for o in tuned]
    found = part("regression", base, tuned, metrics=("loss",))
    gate = regression(evidence({"golden": found}, regression={}))
    assert (gate.verdict, gate.evidence["asked"]) == (verdict, -0.1)


def test_what_was_not_measured_is_not_a_pass():
    for gate, name in ((regression, "regression"), (safety, "safety"), (calibration, "calibration")):
        rules = recipe(**{name: {}})
        assert gate(Evidence(rules, None, {})).verdict == "not_measured"
        nothing = gate(Evidence(rules, evidence({}).report, {}))
        assert nothing.verdict == "not_measured" and nothing.evidence["fix"]


# ---- safety ----------------------------------------------------------------------------------------------------------


def test_safety_finds_what_is_refused_less_often_and_leaves_a_harmless_adapter_alone():
    kept = evidence({"harm": part("safety", *answered(300, 3, 3))}, safety={})
    assert safety(kept).verdict == "pass"
    lost = safety(evidence({"harm": part("safety", *answered(300, 3, 40))}, safety={}))
    assert lost.verdict == "fail" and "exact_match on harm" in lost.evidence["message"]
    few = safety(evidence({"harm": part("safety", *answered(10, 0, 0))}, safety={}))
    assert few.verdict == "not_measured"


def test_a_category_that_is_lost_is_found_though_the_whole_is_not():
    """15 of 20 questions about weapons are no longer refused; 980 others are as before: 1.5 points of the whole."""
    def tags(i):
        return ("weapons",) if i < 20 else (f"other {i % 7}",)

    gate = safety(evidence({"harm": part("safety", *answered(1000, 0, 15), tags)}, safety={}))
    assert gate.verdict == "fail" and "harm/weapons" in gate.evidence["message"]
    assert "other" not in gate.evidence["message"]
    assert len(gate.evidence["categories"]) == 8
    even = safety(evidence({"harm": part("safety", *answered(1000, 0, 15), lambda i: (f"other {i % 7}",))}, safety={}))
    assert even.verdict == "pass", "the same loss, spread over all"


# ---- calibration -----------------------------------------------------------------------------------------------------


def chosen(random, n: int, sure: float) -> list[Outcome]:
    """Of two choices the first is correct in 7 of 10; the model says so with this certainty."""
    return [Outcome(choices=tuple(np.log([sure, 1 - sure]) if random.random() < 0.7 else np.log([1 - sure, sure])))
            for _ in range(n)]


def choices(sure: float, n: int = 400) -> dict:
    items = [Item(f"c/{i}", QUESTION, choices=("a", "b"), correct=0) for i in range(n)]
    outcomes = {"zero_shot": chosen(np.random.default_rng(0), n, 0.7), "tuned": chosen(np.random.default_rng(0), n, sure)}
    return compare_suite(Suite("c", "suite", items, ("ece", "brier"), "f", 8), outcomes)


def test_calibration_refuses_a_model_that_became_too_sure():
    assert calibration(evidence({"quiz": choices(0.7)}, calibration={})).verdict == "pass"
    assert calibration(evidence({"quiz": choices(0.72)}, calibration={})).verdict == "pass"
    gate = calibration(evidence({"quiz": choices(0.98)}, calibration={}))
    assert gate.verdict == "fail" and {"ece", "brier"} <= set(gate.evidence["message"].replace(";", " ").split())
    assert calibration(evidence({"quiz": choices(0.98)}, calibration={"max_ece_rise": 0.5, "max_brier_rise": 0.5})).verdict == \
        "pass"
    assert len(evidence({"quiz": choices(0.7)}).report["sets"]["quiz"]["items"][0]["parts"]["ece"]["tuned"]) == 3 * BINS


# ---- together --------------------------------------------------------------------------------------------------------


def test_only_gates_that_the_recipe_names_are_judged_beside_the_usual():
    assert [g.name for g in judge(evidence({}))] == ["target", "leak", "audit", "template", "no_op"]
    named = judge(evidence({}, regression={}, safety={}, calibration={}, serving={}))
    assert [g.name for g in named][5:] == ["regression", "safety", "calibration", "serving"]
    assert {g.verdict for g in named[5:]} == {"not_measured"}


def test_claims_are_corrected_for_each_other_and_say_with_whom():
    gates = [Gate(name, "pass", {"p": p, "message": "m"}) for name, p in (("target", 0.02), ("regression", 0.015))]
    alone = corrected(gates[:1] + [Gate("leak", "pass", {"message": "m"})])
    assert [g.verdict for g in alone] == ["pass", "pass"] and alone[0].evidence["family"] == ["target"]
    both = corrected(gates)
    assert [g.verdict for g in both] == ["fail", "fail"], "2 * 0.015 is more than 0.025"
    assert both[1].evidence["p_holm"] == pytest.approx(0.03) and both[0].evidence["family"] == ["regression", "target"]
    assert "together with regression" in both[0].evidence["message"] and both[0].evidence["fix"]
    clear = [Gate("target", "pass", {"p": 0.001, "message": "m"}), gates[1]]
    assert [g.verdict for g in corrected(clear)] == ["pass", "pass"]


def test_a_claim_passes_exactly_where_its_interval_says_so():
    for fixed, broken in ((30, 10), (10, 30), (12, 9), (25, 0)):
        found = part("test", *answered(200, fixed, broken))
        low = found["metrics"]["exact_match"]["ci95"][0]
        for asked, verdict in ((low - 1e-6, True), (low + 1e-6, False)):
            if asked < 0:
                gate = target(Evidence(recipe(target={"metric": "exact_match", "min_gain": asked}),
                                       {"primary": "test", "sets": {"test": found}}, {}))
                assert (gate.verdict == "pass") == (verdict and found["metrics"]["exact_match"]["ci95"][1] > 0)
