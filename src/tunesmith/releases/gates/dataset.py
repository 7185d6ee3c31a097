"""What the audit of the data found: a score must not be built on it."""

from __future__ import annotations

from tunesmith.data.leaks import leaked_rows
from tunesmith.releases.gates.evidence import Evidence, Gate


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



def audit(evidence: Evidence) -> Gate:
    """The data has no findings of severity error but leaks, which are `leak`'s, and none that the recipe refuses."""
    refused = set(evidence.recipe.gates.audit.refuse)
    found = [f for f in evidence.dataset["findings"] if not f["code"].startswith("leak_")]
    bad = [f for f in found if f["severity"] == "error" or f["code"].partition(":")[0] in refused]
    facts = {"refuse": sorted(refused), "findings": {f["code"]: f["count"] for f in found},
             "examples": [e for f in bad for e in f["examples"]], "see": "dataset.json"}
    if bad:
        worst = "; ".join(f"{f['code']}: {f['message']}" for f in bad)
        return Gate("audit", "fail", facts | {"message": worst, "fix": "; ".join(f["fix"] for f in bad if f.get("fix"))
                                              or "mend these rows, and train again: " + "; ".join(facts["examples"][:3])})
    return Gate("audit", "pass", facts | {"message": f"the audit found no errors ({len(found)} other findings)"})
