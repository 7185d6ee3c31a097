"""What is measured besides the user's own: the regression and the safety suites, drift, memorisation."""

from __future__ import annotations

from tunesmith.data.dataset import Dataset
from tunesmith.errors import DataError
from tunesmith.evals import regression, safety
from tunesmith.evals.drift import drift_of
from tunesmith.evals.items import Suite
from tunesmith.evals.safety import canaries, memory
from tunesmith.recipe.load import Loaded
from tunesmith.training.run import Run


def suites(run: Run, loaded: Loaded, dataset: Dataset, tokenizer, taken: set[str]) -> list[Suite]:
    """What `eval.regression` and `eval.safety` ask for. Raises DataError: a name that is `taken`, or a bad file of canaries."""
    wanted, seed, found = loaded.recipe.eval, loaded.recipe.train.seed, []
    if wanted.regression:
        found += regression.suites(wanted.regression, loaded.recipe.name, run.state["run_id"], seed)
    if wanted.safety:
        found += safety.suites(wanted.safety, seed)
        if rows := memory.suite(dataset, tokenizer, wanted.safety.items, seed):
            found.append(rows)
        if wanted.safety.canaries:
            found.append(canaries.suite(loaded.resolve(wanted.safety.canaries)))
    if double := taken & {s.name for s in found}:
        raise DataError(f"two sets are named {min(double)!r}", why="one of them ships with Tunesmith",
                        fix="give yours another name in data.test or its suite file")
    return found


def facts(model, tokenizer, sets: dict) -> dict:
    """`drift`, and `memory` where training rows were asked for; of a model with its adapter on."""
    found = {"drift": drift_of(model, tokenizer)}
    return found | ({"memory": memory.summed_up(sets[memory.NAME])} if memory.NAME in sets else {})
