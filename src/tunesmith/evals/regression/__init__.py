"""What a fine-tune must not lose: a golden set of general behaviour, and what earlier releases answered.

    general.jsonl    its first line says where each row is from; NOTICE.md has the licences;
                     scripts/make_regression_suite.py builds it again
    goldens.py       the answers that were kept with earlier releases of the same name
"""

from __future__ import annotations

import json
from pathlib import Path

from tunesmith.evals.items import Item, Suite
from tunesmith.evals.regression import goldens
from tunesmith.evals.strata import stratified
from tunesmith.recipe.evaluation import Regression

METRICS = ("choice", "ece", "brier")
"""Multiple choice: what it knows, and whether it knows when it does not."""
GENERAL = Path(__file__).with_name("general.jsonl")


def suites(wanted: Regression, name: str, run_id: str, seed: int) -> list[Suite]:
    """What `eval.regression` asks for of a run of this recipe's `name`."""
    found = []
    if wanted.suite:
        items = stratified(general(), wanted.items, f"{seed}/regression")
        found.append(Suite("general", "regression", items, METRICS, "ships with Tunesmith: docs/safety.md", 1))
    if wanted.goldens and (earlier := goldens.suite(name, run_id)):
        found.append(earlier)
    return found


def general() -> list[Item]:
    """All items of the suite, each with its source and licence."""
    head, *lines = GENERAL.read_text(encoding="utf-8").splitlines()
    sources = json.loads(head)["sources"]
    return [Item(id=row["id"], messages=[{"role": "user", "content": row["prompt"]}], choices=tuple(row["choices"]),
                 correct=row["correct"], tags=(row["tag"],),
                 source=f"{sources[row['source']]['name']}; {sources[row['source']]['licence']}")
            for row in map(json.loads, lines)]
