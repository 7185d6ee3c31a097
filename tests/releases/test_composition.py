"""The gate of composed adapters: a planted loss against a parent refuses, an even one passes, nothing measured is no pass.

pytest tests/releases/test_composition.py
"""

import pytest

from tunesmith.evals.compare import compare_suite
from tunesmith.evals.items import Item, Outcome, Suite
from tunesmith.recipe.schema import Recipe
from tunesmith.releases.gates import Evidence, composition, judge

PARENTS = [{"id": "a-1", "name": "a", "system": "parent_a", "sets": ["a"]},
           {"id": "b-1", "name": "b", "system": "parent_b", "sets": ["b"]}]


def outcomes(n: int, right: set[int]) -> list[Outcome]:
    return [Outcome("yes" if i in right else "no", True) for i in range(n)]


def part(n: int, composed: set[int], parents: dict[str, set[int]], kind: str = "test") -> dict:
    """A set whose right answer is "yes"; each system is right on these items."""
    items = [Item(f"q/{i}", [{"role": "user", "content": "?"}], ("yes",)) for i in range(n)]
    said = {"zero_shot": outcomes(n, set()), **{s: outcomes(n, right) for s, right in parents.items()},
            "tuned": outcomes(n, composed)}
    return compare_suite(Suite("s", kind, items, ("exact_match",), "f", 8), said)


def evidence(sets: dict, parents=PARENTS, rule: dict | None = None) -> Evidence:
    recipe = Recipe.model_validate({"name": "r", "base": "b", "data": {"train": "t.jsonl", "test": "v.jsonl"},
                                    "gates": {"composition": rule or {}}})
    report = {"primary": "a", "sets": sets, "composition": {"parents": parents, "compared": []}}
    return Evidence(recipe, report, {"findings": [], "tests": ["a"], "sources": []}, composed={"parents": PARENTS})


ALL, HALF = set(range(400)), set(range(200))


def lost(n: int, size: int = 400) -> set[int]:
    return set(range(n, size))


@pytest.mark.parametrize("here, rule, verdict", [
    (ALL, {}, "pass"), (lost(60), {}, "fail"), (lost(60), {"max_drop": 0.3}, "pass"), (lost(4), {}, "pass"),
    (lost(20), {}, "fail"),  # 5 points lost are not shown to be less than 5
])
def test_a_planted_loss_against_a_parent_on_its_own_task_is_refused(here, rule, verdict):
    sets = {"a": part(400, ALL, {"parent_a": ALL, "parent_b": HALF}), "b": part(400, here, {"parent_a": HALF, "parent_b": ALL})}
    gate = composition(evidence(sets, rule=rule))
    assert gate.verdict == verdict, gate.evidence["message"]
    assert ("fix" in gate.evidence) == (verdict != "pass")
    if verdict == "fail":
        assert (gate.evidence["set"], gate.evidence["parent"]) == ("b", "b-1")
        assert "against b" in gate.evidence["message"] and "against a" not in gate.evidence["message"]


def test_a_loss_against_a_parent_on_the_task_of_another_is_none():
    """Parent a is better at b's task than the composed one, and nobody asked that of it."""
    sets = {"a": part(400, ALL, {"parent_a": ALL, "parent_b": HALF}), "b": part(400, HALF, {"parent_a": ALL, "parent_b": HALF})}
    assert composition(evidence(sets)).verdict == "pass"


def test_a_gain_over_the_base_does_not_hide_a_loss_against_the_parent():
    sets = {"a": part(400, HALF, {"parent_a": ALL, "parent_b": HALF}), "b": part(400, ALL, {"parent_a": HALF, "parent_b": ALL})}
    assert sets["a"]["metrics"]["exact_match"]["delta"] == 0.5
    assert composition(evidence(sets)).verdict == "fail"


def test_few_items_are_no_pass_and_the_fix_says_how_many_could():
    sets = {"a": part(400, ALL, {"parent_a": ALL, "parent_b": HALF}),
            "b": part(20, lost(1, 20), {"parent_a": set(), "parent_b": set(range(1, 20)) | {0}})}
    gate = composition(evidence(sets, rule={"max_drop": 0.1}))
    assert gate.verdict == "not_measured" and "20 items of b cannot exclude a loss of 10.0 points" in gate.evidence["fix"]


@pytest.mark.parametrize("spoil", [
    lambda e: Evidence(e.recipe, None, e.dataset, composed=e.composed),
    lambda e: Evidence(e.recipe, {k: v for k, v in e.report.items() if k != "composition"}, e.dataset, composed=e.composed),
    lambda e: Evidence(e.recipe, e.report | {"composition": {"parents": PARENTS[:1]}}, e.dataset, composed=e.composed),
    lambda e: Evidence(e.recipe, e.report | {"sets": {"a": e.report["sets"]["a"]}}, e.dataset, composed=e.composed),
])
def test_what_was_not_measured_is_not_a_pass(spoil):
    whole = evidence({"a": part(400, ALL, {"parent_a": ALL, "parent_b": HALF}),
                      "b": part(400, ALL, {"parent_a": HALF, "parent_b": ALL})})
    assert composition(whole).verdict == "pass"
    gate = composition(spoil(whole))
    assert gate.verdict == "not_measured" and gate.evidence["message"] and gate.evidence["fix"]


def test_it_is_judged_for_composed_runs_only():
    whole = evidence({"a": part(400, ALL, {"parent_a": ALL, "parent_b": HALF}),
                      "b": part(400, ALL, {"parent_a": HALF, "parent_b": ALL})})
    assert [g.name for g in judge(whole)][-1] == "composition"
    trained = Evidence(whole.recipe, whole.report, whole.dataset)
    assert "composition" not in [g.name for g in judge(trained)]
