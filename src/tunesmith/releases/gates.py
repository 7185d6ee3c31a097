"""Rules over evidence that say pass, fail or not_measured. Not measured is not a pass.

Add a gate: write a function `name(evidence) -> Gate`, put it in GATES, give it a section in `recipe.evaluation.Gates`,
and a control in tests/releases that it refuses.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from tunesmith.data.leaks import leaked_rows
from tunesmith.evals.metrics import METRICS
from tunesmith.recipe.schema import Recipe

Verdict = Literal["pass", "fail", "not_measured"]


@dataclass(frozen=True, slots=True)
class Gate:
    name: str
    verdict: Verdict
    evidence: dict[str, Any]
    """Numbers and thresholds, `message` in words, and `fix`: what would have to change, when it did not pass."""

    def as_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Evidence:
    recipe: Recipe
    report: dict | None
    """None when the run was never evaluated."""
    dataset: dict
    """The dataset's manifest."""


def judge(evidence: Evidence) -> list[Gate]:
    """Every gate's verdict, in the order they are shown."""
    return [gate(evidence) for gate in GATES]


def target(evidence: Evidence) -> Gate:
    """The tuned model beats its base by `min_gain`, and the interval, not just the mean, says so."""
    rule = evidence.recipe.gates.target
    facts: dict[str, Any] = {"metric": rule.metric, "min_gain": rule.min_gain}
    if evidence.report is None:
        return Gate("target", "not_measured", facts | {"message": "the run has no report", "fix": "tunesmith eval RUN"})
    part = evidence.report["sets"][evidence.report["primary"]]
    measured = part["metrics"].get(rule.metric)
    if measured is None:
        return Gate("target", "not_measured", facts | {"message": f"the report does not measure {rule.metric}",
                                                       "fix": "add it to eval.metrics and evaluate again"})
    sign = 1 if METRICS[rule.metric].higher_is_better else -1
    low, high = sorted(sign * end for end in measured["ci95"])
    facts |= {"set": evidence.report["primary"], "n": part["n"], "base": measured["base"], "tuned": measured["tuned"],
              "gain": sign * measured["delta"], "gain_ci95": [low, high]}
    words = f"{rule.metric} {measured['base']:.3f} -> {measured['tuned']:.3f} on {part['n']} rows: gain " \
            f"{facts['gain']:.3f}, 95% interval {low:.3f} to {high:.3f}, asked for {rule.min_gain:.3f}"
    if low >= rule.min_gain and (low > 0 or rule.min_gain < 0 < high):
        return Gate("target", "pass", facts | {"message": words})
    fix = "evaluate more rows: the mean is there, the interval is too wide" if facts["gain"] >= rule.min_gain else \
        "train longer, give better data, or ask for less"
    return Gate("target", "fail", facts | {"message": words, "fix": fix})


def leak(evidence: Evidence) -> Gate:
    """No row of a test set, a suite, or the files in `data.evals`, stands in train, exactly or nearly."""
    allowed = evidence.recipe.gates.leak.max_rows
    kept_out = [part.partition(":")[2] for part in evidence.dataset["sources"] if part.startswith("eval:")]
    tests = [*evidence.dataset["tests"], *kept_out]
    near = evidence.recipe.data.dedup.near
    later = (evidence.report or {}).get("leaks", {"rows": {}, "findings": []})  # of suite files newer than the dataset
    found = {name: leaked_rows(evidence.dataset["findings"], name) for name in tests} | later["rows"]
    examples = [e for f in (*evidence.dataset["findings"], *later["findings"]) if f["code"].startswith("leak_")
                for e in f["examples"]]
    facts = {"max_rows": allowed, "rows": found, "similarity": near, "examples": examples}
    worst = max(found.values())
    if worst > allowed:
        return Gate("leak", "fail", facts | {
            "message": f"{worst} test rows stand in train, exactly or nearly; {allowed} are allowed",
            "fix": "remove them from train or test, and train again: " + "; ".join(examples[:3])})
    if near is None:
        return Gate("leak", "not_measured", facts | {"message": "near-duplicates were not looked for",
                                                     "fix": "set data.dedup.near, for example 0.8"})
    return Gate("leak", "pass", facts | {"message": f"no test row of {', '.join(found)} stands in train "
                                         f"(exact, or similarity >= {near})" if worst == 0 else
                                         f"{worst} leaked rows are within the {allowed} allowed"})


GATES = (target, leak)
