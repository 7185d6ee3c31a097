"""Is a composed adapter worse than its parents at what they were trained for? One-sided tests, as in `harm`.

    fail            the items show a loss against a parent, or their mean is worse than what is allowed
    pass            the 95% interval leaves out every loss that is not allowed, for every parent and metric
    not_measured    neither, or a parent was not asked: the fix says what is missing
"""

from __future__ import annotations

from typing import Any

from tunesmith.releases.gates.evidence import Claim, Evidence, Gate, claim, needed, points, see
from tunesmith.releases.gates.harm import CALIBRATION, NO_REPORT, allowed_of


def composition(evidence: Evidence) -> Gate:
    """On each parent's own test sets the composed adapter loses no more against that parent than `max_drop` of any share, and
    `max_loss_rise` nats of held-out loss."""
    rule, report = evidence.recipe.gates.composition, evidence.report
    facts: dict[str, Any] = {"max_drop": rule.max_drop, "max_loss_rise": rule.max_loss_rise}
    if report is None:
        return Gate("composition", "not_measured", facts | NO_REPORT)
    measured = {p["id"]: p for p in report.get("composition", {}).get("parents", ())}
    claims: list[tuple[dict, Claim]] = []
    for parent in evidence.composed["parents"]:
        mine = _claims(report, measured.get(parent["id"]), rule)
        if not mine:
            return Gate("composition", "not_measured", facts | {
                "message": f"the report does not compare with parent {parent['name']} ({parent['id']}) on its own task",
                "fix": "tunesmith eval RUN, with a metric that is a share, a score or the loss"})
        claims += [(parent, c) for c in mine]
    parent, worst = max(claims, key=lambda pair: pair[1].p)
    facts |= {"claims": [{"parent": p["id"], **c.as_dict()} for p, c in claims], "parent": parent["id"], "set": worst.set,
              "metric": worst.metric, "n": worst.n, "gain": worst.gain, "gain_ci95": list(worst.ci95), "asked": worst.asked,
              "p": worst.p, "see": see(worst.set)}
    if failed := [pair for pair in claims if not pair[1].holds and pair[1].refuted]:
        name = failed[0][0]["name"]
        return Gate("composition", "fail", facts | {
            "message": "; ".join(_words(*pair, report) for pair in failed),
            "fix": f"give {name} more weight, compose with --how cat (exact) or a higher --rank or --density, train one "
                   "adapter on all of the data, or serve the parents beside each other; or allow more: --max-drop, "
                   "--max-loss-rise"})
    if open_ := [pair for pair in claims if not pair[1].holds]:
        c = max((c for _, c in open_), key=lambda c: needed(c, -c.asked))
        return Gate("composition", "not_measured", facts | {
            "message": "too few items to tell: " + "; ".join(_words(*pair, report) for pair in open_),
            "fix": f"{c.n} items of {c.set} cannot exclude a loss of {points(-c.asked, _unit(c, report))}; about "
                   f"{max(c.n + 1, needed(c, -c.asked)):,} could. Compose with a higher --samples, where that test set has "
                   "more rows, or allow more: --max-drop, --max-loss-rise"})
    return Gate("composition", "pass", facts | {
        "message": f"{len(claims)} of {len(claims)} within what is allowed; the closest is {_words(parent, worst, report)}"})


def _claims(report: dict, parent: dict | None, rule) -> list[Claim]:
    """One for each metric of each of the parent's own test sets that it was asked about."""
    found = []
    for name in parent["sets"] if parent else ():
        part = report["sets"].get(name, {"metrics": {}})
        for metric, m in part["metrics"].items():
            most = None if metric in CALIBRATION else allowed_of(m["unit"], rule.max_drop, rule.max_loss_rise)
            pair = next((p for p in m.get("pairs", ()) if (p["a"], p["b"]) == ("tuned", parent["system"])), None)
            if most is not None and pair:
                against = m | {"base": m["systems"][parent["system"]]["value"], "delta": pair["delta"], "ci95": pair["ci95"]}
                found.append(claim({"n": part["n"], "metrics": {metric: against}}, name, metric, -most))
    return found


def _words(parent: dict, c: Claim, report: dict) -> str:
    unit, (low, high) = _unit(c, report), c.ci95
    return (f"{c.metric} on {c.set} against {parent['name']} {c.base:.3f} -> {c.tuned:.3f} ({c.n} items): "
            f"{points(c.gain, unit, True)}, 95% interval {points(low, unit, True)} to {points(high, unit, True)}, allowed "
            f"{points(c.asked, unit, True)}")


def _unit(c: Claim, report: dict) -> str:
    return report["sets"][c.set]["metrics"][c.metric]["unit"]
