"""From a recipe to what the loop trains: the objective, and how a row of the dataset becomes one of its samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.data.dataset import TRAIN, Dataset, Tokens
from tunesmith.data.pack import Step
from tunesmith.data.pairs import Answers
from tunesmith.errors import TrainingError
from tunesmith.recipe.schema import Recipe

if TYPE_CHECKING:
    from tunesmith.objectives.step import Objective

Say = Callable[[str], None]


def rows_of(recipe: Recipe, dataset: Dataset, part: str) -> Tokens | Answers:
    """The rows of a part with the lengths that they have in a pack."""
    if recipe.objective.type == "dpo":
        return Answers.of_pairs(dataset, part)
    return dataset.tokens(part)


@dataclass(frozen=True, slots=True)
class Made:
    objective: Objective
    train: Callable[[int], Any]
    """A row of `train` as the objective's sample."""
    held_out: Callable[[int], Any]
    first_loss: float | None = None
    reference: str | None = None
    """Digest of what other models said of the rows."""


def make(recipe: Recipe, dataset: Dataset, model, engine: str, facts: dict, steps: Sequence[Step], held_out: Sequence[Step],
         say: Say) -> Made:
    """`facts` are what the arithmetic depends on: the base's digest, dtype, device, kernels."""
    from tunesmith.engine import fast, plain
    from tunesmith.objectives.sft import Sft, sample

    path, part = {"fast": fast, "plain": plain}[engine], dataset.tests[0]
    rows, watched = rows_of(recipe, dataset, TRAIN), rows_of(recipe, dataset, part)
    if recipe.objective.type == "sft":
        return Made(Sft(path.forward_loss), lambda i: sample(*rows[i]), lambda i: sample(*watched[i]))
    parts = {TRAIN: (rows, steps), part: (watched, held_out)}
    return _dpo(recipe, dataset, model, path, facts | {"engine": engine}, parts, say)


def _dpo(recipe: Recipe, dataset: Dataset, model, path, facts: dict, parts: dict, say: Say) -> Made:
    from tunesmith.objectives.dpo import Dpo, Pair
    from tunesmith.objectives.families import family
    from tunesmith.training import reference

    config, name = recipe.objective, reference.key(dataset=dataset.id, **facts)
    pack = recipe.train.tokens_per_pack or recipe.train.tokens_per_step
    samples, used = {}, []
    for part, (rows, steps) in parts.items():
        asked = sorted({row for step in steps for row in step.rows})
        logps = reference.base_logps(model, path.answer_logps, dataset, part, name, asked,
                                     lambda i, rows=rows: family(*rows[i]), pack, say)
        used.append(logps[asked])
        samples[part] = lambda i, rows=rows, logps=logps: Pair(family(*rows[i]), tuple(logps[i].tolist()))
    objective = Dpo(path.answer_logps, config.beta, config.loss, config.label_smoothing)
    return Made(objective, *samples.values(), objective.first_loss, reference.digest(used))


def check_reference(made: Made, state: dict) -> None:
    """Raises TrainingError when a run would go on with another reference than it began with."""
    before = state.get("reference")
    if before is not None and before != made.reference:
        raise TrainingError("the reference has changed since this run began", where=state["run_dir"],
                            why=f"the digest of its log-probabilities was {before[:19]}, it is {made.reference[:19]}",
                            fix="resume with the kernels and the code that it began with, or start a new run")
