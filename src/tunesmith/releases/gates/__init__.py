"""Rules over evidence that say pass, fail or not_measured. Not measured is not a pass. For users: docs/gates.md.

    always                    audit  leak  target  template  no_op
    where the recipe asks     regression  safety  calibration  serving  merge  rollback
    of a composed run         composition

Gates read reports, never models. Those that rest on a test of a hypothesis say with which p, and are then judged together
(Holm 1979): a release is quoted by each of its verdicts, and no more than 1 in 40 releases may carry one that is wrong.

Add a gate: write a function `name(evidence) -> Gate` in a file of this folder, put it in GATES (or in ASKED, with a section of
that name in `recipe.evaluation.Gates`), and give it in tests/releases a control that it refuses and one that it passes.
"""

from __future__ import annotations

from dataclasses import replace

from tunesmith.evals.statistics import holm
from tunesmith.releases.gates.composition import composition
from tunesmith.releases.gates.dataset import audit, leak
from tunesmith.releases.gates.evidence import ALPHA, Evidence, Gate, Verdict, gathered
from tunesmith.releases.gates.fallback import rollback
from tunesmith.releases.gates.harm import calibration, regression, safety
from tunesmith.releases.gates.machine import no_op, serving, template
from tunesmith.releases.gates.merge import merge
from tunesmith.releases.gates.override import Override, overridden
from tunesmith.releases.gates.target import target

__all__ = ["ASKED", "GATES", "Evidence", "Gate", "Override", "Verdict", "audit", "calibration", "composition", "gathered",
           "judge", "leak", "merge", "no_op", "overridden", "regression", "rollback", "safety", "serving", "target", "template"]

GATES = (target, leak, audit, template, no_op)
"""Judged for every release."""
ASKED = {"regression": regression, "safety": safety, "calibration": calibration, "serving": serving,
         "merge": merge, "rollback": rollback}
"""Judged where the recipe's `gates` has a section of this name; `{}` is one."""


def judge(evidence: Evidence) -> list[Gate]:
    """Every gate's verdict, in the order they are shown."""
    asked = [gate for name, gate in ASKED.items() if getattr(evidence.recipe.gates, name) is not None]
    return together([gate(evidence) for gate in (*GATES, *asked, *([composition] if evidence.composed else []))])


def together(gates: list[Gate]) -> list[Gate]:
    """The same gates, those that rest on a p corrected for each other. One that passes alone and not in company fails."""
    adjusted = holm({g.name: g.evidence["p"] for g in gates if g.evidence.get("p") is not None})
    return [_corrected(g, adjusted) if g.name in adjusted else g for g in gates]


def _corrected(gate: Gate, adjusted: dict[str, float]) -> Gate:
    facts = gate.evidence | {"p_holm": adjusted[gate.name], "alpha": ALPHA, "family": sorted(adjusted)}
    if gate.verdict != "pass" or adjusted[gate.name] <= ALPHA:
        return replace(gate, evidence=facts)
    others = ", ".join(n for n in sorted(adjusted) if n != gate.name)
    return Gate(gate.name, "fail", facts | {
        "message": f"{facts['message']}; it would pass alone, and not together with {others}: p is {facts['p']:.2g}, corrected "
                   f"{facts['p_holm']:.2g}, and at most {ALPHA} is asked for",
        "fix": "evaluate more rows: every claim that is made of a release costs some certainty"})


