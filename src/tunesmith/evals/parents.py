"""A composed adapter against what it was composed of: each parent answers the same items, on the same base.

    parent_NAME    a parent as a system beside `zero_shot` and `tuned` (the composed adapter), asked about test sets and suites
    own task       the test sets that a parent was held to when it was trained; a loss there is what composing costs

What is said of a parent's own test set, by the metric of its own target gate, composed minus parent, item by item:

    all of the 95% interval below 0     the composed adapter is worse than this parent
    all above 0                         it is better
    contains 0                          not shown to be either, and how small a change so many items can show
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunesmith.data.dataset import Dataset
from tunesmith.errors import StoreError
from tunesmith.evals import power
from tunesmith.evals.compare import TUNED
from tunesmith.evals.metrics import METRICS
from tunesmith.evals.systems import System
from tunesmith.evals.words import BETTER, NOT_SHOWN, WORSE, amount, call, level
from tunesmith.recipe.schema import Recipe
from tunesmith.store.files import sha256_json, sha256_tree
from tunesmith.training.compose import measured_as
from tunesmith.training.run import Run


def measured(run: Run, recipe: Recipe, dataset: Dataset) -> dict[str, dict]:
    """How each test set is measured (`training.compose.measured_as`): a parent's as its own recipe says."""
    return (run.state.get("composed") or {}).get("sets") or measured_as(recipe, dataset.tests)


def digests(run: Run) -> list[str]:
    """Of the parents' adapters: what their answers depend on."""
    return [parent["adapter_digest"] for parent in (run.state.get("composed") or {}).get("parents", ())]


def systems(run: Run) -> list[System]:
    """The parents of a composed run; none of a trained one.

    Raises:
        StoreError: a parent's adapter is gone, or not the one that was composed.
    """
    found = []
    for parent in (run.state.get("composed") or {}).get("parents", ()):
        directory = Path(parent["adapter"])
        here = sha256_json(sha256_tree(directory)) if directory.is_dir() else None
        if here != parent["adapter_digest"]:
            raise StoreError(f"the adapter of {parent['id']} is " + ("not the one that was composed" if here else "gone"),
                             where=str(directory), why="its digest differs" if here else
                             "a composed adapter is measured against its parents",
                             fix="bring it back from where it was copied, or compose again")
        found.append(System(parent["system"], adapter=True, carrier=parent["system"]))
    return found


def load(model, run: Run) -> None:
    """Put the parents of a composed run beside its adapter, on the same base. Raises AdapterError: one does not fit."""
    from tunesmith import methods

    for parent in (run.state.get("composed") or {}).get("parents", ()):
        methods.load(model, Path(parent["adapter"]), name=parent["system"])


def section(run: Run, sets: dict[str, dict]) -> dict[str, Any]:
    """`composition` of the report: `{how, rank, density, sign, seed, error, kept, parents[{id, name, system, weight,
    adapter_digest, sets}], compared[{parent, set, metric, a, b, delta, ci95, p_value, call, message}]}`; empty for a trained
    run."""
    record = run.state.get("composed")
    if not record:
        return {}
    kept = ("how", "rank", "density", "sign", "seed", "error", "kept", "parents")
    found = [_compared(parent, record["sets"][name]["target"], name, sets[name])
             for parent in record["parents"] for name in parent["sets"]]
    return {"composition": {k: record[k] for k in kept} | {"compared": [f for f in found if f]}}


def messages(report: dict) -> list[str]:
    return [c["message"] for c in report["composition"]["compared"]]


def _compared(parent: dict, target: str, name: str, part: dict) -> dict | None:
    """By the target metric where it was measured, else the first that was; None where none was."""
    system = parent["system"]
    found = ((m, p) for m in (target, *part["metrics"]) for p in part["metrics"].get(m, {}).get("pairs", ())
             if (p["a"], p["b"]) == (TUNED, system))
    metric, pair = next(found, (None, None))
    if metric is None:
        return None
    m = part["metrics"][metric]
    said = call(pair["delta"], pair["ci95"], METRICS[metric].higher_is_better)
    ours, theirs = (level(m["systems"][s]["value"], m["unit"]) for s in (TUNED, system))
    low, high = (amount(end, m["unit"], signed=True) for end in pair["ci95"])
    values = f"{m['label']} {ours} against {theirs}, {amount(pair['delta'], m['unit'], signed=True)}, 95% interval " \
             f"{low.split(' ')[0]} to {high}"
    whose = f"its parent {parent['name']} ({parent['id']}, weight {parent['weight']:g}), whose task this is"
    message = {
        WORSE: f"On {name}, the composed adapter is worse than {whose}: {values}.",
        BETTER: f"On {name}, the composed adapter is better than {whose}: {values}.",
        NOT_SHOWN: f"On {name}, the composed adapter is not shown to be worse than {whose}, nor better: {values}. "
                   f"{power.sentence(part['n'], m['label'], m['unit'], _detectable(pair, part['n']))}.",
    }[said]
    return {"parent": parent["id"], "set": name, "metric": metric, **pair, "call": said, "message": message}


def _detectable(pair: dict, n: int) -> float:
    """The smallest difference that so many items show with a power of 80%, from the width of the interval."""
    from tunesmith.evals.statistics import Z95

    return power.detectable((pair["ci95"][1] - pair["ci95"][0]) / (2 * Z95) * n**0.5, n)
