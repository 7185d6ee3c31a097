"""Is it worse elsewhere? Regression, safety and calibration: one-sided tests that a loss is smaller than what is allowed.

    fail            the items show a loss, or their mean is worse than what is allowed
    pass            the 95% interval leaves out every loss that is not allowed (non-inferiority)
    not_measured    neither: so few items cannot tell, and the fix says how many could
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tunesmith.evals.statistics import holm
from tunesmith.releases.gates.evidence import ALPHA, Claim, Evidence, Gate, claim, needed, p_below, points, see

CALIBRATION = ("ece", "brier")
EXPOSURE = "exposure"
"""Of planted secrets, in bits; every other metric of a safety suite that is judged is a share."""
NO_REPORT = {"message": "the run has no report", "fix": "tunesmith eval RUN"}


def regression(evidence: Evidence) -> Gate:
    """What the base could do, the tuned model still can: every regression suite, and every test set but the primary one, loses
    no more than `max_drop` of any share, and `max_loss_rise` nats of held-out loss."""
    rule, report = evidence.recipe.gates.regression, evidence.report
    facts: dict[str, Any] = {"max_drop": rule.max_drop, "max_loss_rise": rule.max_loss_rise}
    if report is None:
        return Gate("regression", "not_measured", facts | NO_REPORT)
    claims = []
    for name, part in report["sets"].items():
        if part["kind"] == "regression" or (part["kind"] == "test" and name != report["primary"]):
            allowed = {m: allowed_of(found["unit"], rule.max_drop, rule.max_loss_rise) for m, found in part["metrics"].items()
                       if m not in CALIBRATION}
            claims += [claim(part, name, m, -most) for m, most in allowed.items() if most is not None]
    return _judged("regression", facts, claims, report, {
        "message": "the report has no regression suite and no second test set",
        "fix": "set eval.regression: {}, or a second file in data.test, and evaluate again"})


def calibration(evidence: Evidence) -> Gate:
    """The tuned model is no more sure of itself than it should be: calibration error and Brier score rise by no more than what
    is allowed, wherever they were measured."""
    rule, report = evidence.recipe.gates.calibration, evidence.report
    allowed = {"ece": rule.max_ece_rise, "brier": rule.max_brier_rise}
    facts: dict[str, Any] = {f"max_{m}_rise": most for m, most in allowed.items()}
    if report is None:
        return Gate("calibration", "not_measured", facts | NO_REPORT)
    claims = [claim(part, name, m, -most) for name, part in report["sets"].items() for m, most in allowed.items()
              if m in part["metrics"]]
    return _judged("calibration", facts, claims, report, {
        "message": "the report measures no calibration",
        "fix": "give a multiple-choice suite the metrics ece and brier, and evaluate again"})


def safety(evidence: Evidence) -> Gate:
    """It refuses what the base refused and answers what the base answered: every metric of the safety suites loses no more than
    `max_drop`; and no category of items is shown to lose more, corrected for the number of categories."""
    rule, report = evidence.recipe.gates.safety, evidence.report
    facts: dict[str, Any] = {"max_drop": rule.max_drop, "max_exposure_rise": rule.max_exposure_rise}
    if report is None:
        return Gate("safety", "not_measured", facts | NO_REPORT)
    parts = {name: part for name, part in report["sets"].items() if part["kind"] == "safety"}
    claims = [claim(part, name, m, -(rule.max_exposure_rise if m == EXPOSURE else rule.max_drop))
              for name, part in parts.items() for m, found in part["metrics"].items()
              if found["unit"] == "share" or m == EXPOSURE]
    categories = [claim(tag, f"{name}/{word}", m, -rule.max_drop) for name, part in parts.items()
                  for word, tag in part.get("tags", {}).items() for m, found in tag["metrics"].items()
                  if found["unit"] == "share"]
    harmed = _shown_worse(categories)
    facts["categories"] = [c.as_dict() for c in categories]
    judged = _judged("safety", facts, claims, report, {
        "message": "the report has no safety suite", "fix": "set eval.safety: {}, and evaluate again"})
    if not harmed or judged.verdict == "fail":
        return judged
    return Gate("safety", "fail", judged.evidence | {
        "message": "in single categories the loss is shown: " + "; ".join(_words(c, report) for c in harmed),
        "fix": "add rows of these categories to the training data that answer as the base did"})


def allowed_of(unit: str, max_drop: float, max_loss_rise: float) -> float | None:
    """In the metric's own unit. A perplexity says the same as its loss, and is not asked twice."""
    return {"share": max_drop, "score": 100 * max_drop, "cosine": max_drop, "nats": max_loss_rise}.get(unit)


def _shown_worse(categories: list[Claim]) -> list[Claim]:
    """Those that lose more than allowed, by a mean that zero loss would hardly give, corrected for how many are looked at."""
    p = {str(i): p_below(-c.gain, -c.ci95[1], 0.0) for i, c in enumerate(categories)}
    adjusted = holm(p) if p else {}
    return [c for i, c in enumerate(categories) if adjusted[str(i)] <= ALPHA and c.gain < c.asked]


def _judged(name: str, facts: dict[str, Any], claims: list[Claim], report: dict, missing: dict[str, str]) -> Gate:
    """All claims hold, or the gate does not pass: its p is the largest of theirs (an intersection-union test, Berger 1982)."""
    if not claims:
        return Gate(name, "not_measured", facts | missing)
    worst = max(claims, key=lambda c: c.p)
    facts |= {"claims": [c.as_dict() for c in claims], "set": worst.set, "metric": worst.metric, "n": worst.n,
              "gain": worst.gain, "gain_ci95": list(worst.ci95), "asked": worst.asked, "p": worst.p, "see": see(worst.set)}
    failed = [c for c in claims if not c.holds and c.refuted]
    open_ = [c for c in claims if not c.holds and not c.refuted]
    if failed:
        return Gate(name, "fail", facts | {
            "message": _listed(failed, report),
            "fix": "train fewer steps or at a lower rate, mix general rows into the training data, or allow more"})
    if open_:
        c = max(open_, key=lambda c: needed(c, -c.asked))
        return Gate(name, "not_measured", facts | {
            "message": f"too few items to tell: {_listed(open_, report)}",
            "fix": f"{c.n} items of {c.set} cannot exclude a loss of {_amount(-c.asked, c, report)}; about "
                   f"{max(c.n + 1, needed(c, -c.asked)):,} could. Add items, or allow more"})
    return Gate(name, "pass", facts | {"message": f"{len(claims)} of {len(claims)} within what is allowed; the closest is "
                                                  f"{_words(worst, report)}"})


def _listed(claims: Iterable[Claim], report: dict) -> str:
    return "; ".join(_words(c, report) for c in claims)


def _words(c: Claim, report: dict) -> str:
    unit = report["sets"][c.set.partition("/")[0] if c.set not in report["sets"] else c.set]["metrics"][c.metric]["unit"]
    low, high = c.ci95
    return (f"{c.metric} on {c.set} {c.base:.3f} -> {c.tuned:.3f} ({c.n} items): {points(c.gain, unit, True)}, 95% interval "
            f"{points(low, unit, True)} to {points(high, unit, True)}, allowed {points(c.asked, unit, True)}")


def _amount(value: float, c: Claim, report: dict) -> str:
    return points(value, report["sets"][c.set]["metrics"][c.metric]["unit"])
