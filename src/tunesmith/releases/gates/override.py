"""A person takes the responsibility for a gate: named, with a reason, and written into the release."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tunesmith.errors import UsageError
from tunesmith.releases.gates.evidence import Gate


@dataclass(frozen=True, slots=True)
class Override:
    gate: str
    by: str
    """Who answers for it."""
    reason: str


def overridden(gates: Sequence[Gate], overrides: Sequence[Override]) -> list[dict]:
    """What a release keeps of its overrides: `{gate, verdict, message, by, reason}`. The gates' verdicts stay what they are.

    Raises:
        UsageError: a gate that does not exist or passed, the same one twice, or no name or reason.
    """
    by_name = {g.name: g for g in gates}
    kept: dict[str, dict] = {}
    for one in overrides:
        gate = by_name.get(one.gate)
        if gate is None:
            raise UsageError(f"no gate {one.gate!r} was judged", why=f"these were: {', '.join(by_name)}",
                             fix="give --override the name of a gate that refused")
        if gate.verdict == "pass":
            raise UsageError(f"gate {one.gate!r} passed", why="there is nothing to override", fix="leave --override out")
        if one.gate in kept:
            raise UsageError(f"gate {one.gate!r} is overridden twice", fix="give one name and one reason for it")
        if not one.by.strip() or not one.reason.strip():
            raise UsageError(f"overriding gate {one.gate!r} needs a name and a reason",
                             fix="--override GATE --by NAME --reason TEXT, once for each gate")
        kept[one.gate] = {**asdict(one), "verdict": gate.verdict, "message": gate.evidence["message"]}
    return list(kept.values())
