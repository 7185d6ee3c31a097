"""Can it be undone? Whether the release that a channel would go back to was rehearsed, lately and here (ADR 17)."""

from __future__ import annotations

from typing import Any

from tunesmith.releases.gates.evidence import Evidence, Gate


def rollback(evidence: Evidence) -> Gate:
    """The release that the channel points at, which a rollback would bring back once this one is promoted, passed a drill:
    every golden came back word for word, at most `max_age_days` ago, in the environment of now."""
    rule, found = evidence.recipe.gates.rollback, evidence.fallback
    if found is None:
        return Gate("rollback", "not_measured", {"message": "nobody looked at the channel", "fix": "release a run"})
    release, drill = found["release_id"], found["drill"]
    facts: dict[str, Any] = found | {"max_age_days": rule.max_age_days}
    do = f"tunesmith verify replay {release}"
    if release is None:
        return Gate("rollback", "not_measured", facts | {
            "message": f"channel {rule.channel!r} points at no release: there would be nothing to go back to",
            "fix": "the first release of a channel has none: --override rollback says so by name"})
    if drill is None:
        return Gate("rollback", "not_measured", facts | {
            "message": f"{release}, which a rollback would go back to, was never drilled", "fix": do})
    if not drill["identical"]:
        return Gate("rollback", "fail", facts | {
            "message": f"the last drill of {release} failed: {drill['message']}",
            "fix": f"bring back its files or its base until `{do}` says identical, or promote a release that can be restored"})
    if found["differs"]:
        named = ", ".join(f"{k} {a} -> {b}" for k, (a, b) in found["differs"].items())
        return Gate("rollback", "not_measured", facts | {
            "message": f"{release} was drilled in another environment ({named})", "fix": do})
    if found["age_days"] > rule.max_age_days:
        return Gate("rollback", "not_measured", facts | {
            "message": f"the last drill of {release} is {found['age_days']:.0f} days old, and {rule.max_age_days} are allowed",
            "fix": do})
    return Gate("rollback", "pass", facts | {
        "message": f"{release}, which a rollback would go back to, passed a drill {found['age_days']:.1f} days ago: "
                   f"{drill['message']}"})
