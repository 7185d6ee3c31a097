"""Is it better at what it was trained for?"""

from __future__ import annotations

from typing import Any

from tunesmith.releases.gates.evidence import Evidence, Gate, claim, needed, points, see


def target(evidence: Evidence) -> Gate:
    """The tuned model beats its base by `min_gain`, and the interval, not just the mean, says so; and by more than sampling
    moves the base, where that was measured (`eval.noise`).

    A gain (min_gain >= 0) must also pass the exact test of no difference: then six rows are the fewest that can show one.
    """
    rule = evidence.recipe.gates.target
    facts: dict[str, Any] = {"metric": rule.metric, "min_gain": rule.min_gain}
    if evidence.report is None:
        return Gate("target", "not_measured", facts | {"message": "the run has no report", "fix": "tunesmith eval RUN"})
    name = evidence.report["primary"]
    part = evidence.report["sets"][name]
    measured = part["metrics"].get(rule.metric)
    if measured is None:
        why = part.get("not_measured", {}).get(rule.metric, {})
        return Gate("target", "not_measured", facts | {
            "message": f"the report does not measure {rule.metric}" + (f": {why['reason']}" if why else ""),
            "fix": why.get("fix") or "add it to eval.metrics and evaluate again"})
    found = claim(part, name, rule.metric, rule.min_gain)
    low, high = found.ci95
    p_value = measured.get("p_value")
    exact = p_value / 2 if p_value is not None and found.gain > 0 else None
    p = max(found.p, exact) if exact is not None and rule.min_gain >= 0 else found.p
    noise = measured.get("noise")
    facts |= {"set": name, "n": found.n, "base": found.base, "tuned": found.tuned, "gain": found.gain,
              "gain_ci95": [low, high], "p": p, "noise_floor": noise and noise["floor"], "see": see(name)}
    words = f"{rule.metric} {found.base:.3f} -> {found.tuned:.3f} on {found.n} rows: gain " \
            f"{found.gain:.3f}, 95% interval {low:.3f} to {high:.3f}, asked for {rule.min_gain:.3f}"
    if noise and rule.min_gain >= 0 and found.gain <= noise["floor"]:
        return Gate("target", "fail", facts | {
            "message": f"{words}; the gain is within the noise: sampling twice moves the base itself by up to "
                       f"{points(noise['floor'], measured['unit'])}",
            "fix": "evaluate more rows, which makes the noise smaller, or train for a larger gain"})
    shown = low >= rule.min_gain and (low > 0 or rule.min_gain < 0 < high)
    if shown and p <= 0.025 * (1 + 1e-9):
        return Gate("target", "pass", facts | {"message": words})
    if shown:
        return Gate("target", "fail", facts | {
            "message": f"{words}; so few rows change that chance does it in {p:.1%} of cases (exact test)",
            "fix": "evaluate more rows: six that all change for the better are the fewest that show a gain"})
    wide = found.gain >= rule.min_gain and found.gain > 0
    fix = "train longer, give better data, or ask for less"
    if wide:
        more = needed(found, found.gain - rule.min_gain)
        fix = "evaluate more rows: the mean is there, the interval is too wide" + (
            f"; about {more:,} rows would show it, if it is true" if more > found.n else "")
    return Gate("target", "fail", facts | {"message": words, "fix": fix})
