"""From a recipe to what the loop trains: the objective, and how a row of the dataset becomes one of its samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.data.dataset import TRAIN, Dataset, Tokens
from tunesmith.data.pack import Step
from tunesmith.data.pairs import Answers, Labelled
from tunesmith.errors import RecipeError, TrainingError
from tunesmith.models.base import Base, resolve
from tunesmith.models.load import model_of, tokenizer_of
from tunesmith.recipe.load import Loaded
from tunesmith.recipe.schema import Recipe

if TYPE_CHECKING:
    from tunesmith.objectives.step import Objective

Say = Callable[[str], None]
STARTS_ELSEWHERE = ("prompt", "prefix")
"""Methods whose untrained adapter is not the base: what their loss is before step 1 is not known."""


def rows_of(recipe: Recipe, dataset: Dataset, part: str) -> Tokens | Answers:
    """The rows of a part with the lengths that they have in a pack."""
    if recipe.objective.type == "dpo":
        return Answers.of_pairs(dataset, part)
    return Labelled.of(dataset, part, recipe.train.seed) if recipe.objective.type == "kto" else dataset.tokens(part)


@dataclass(frozen=True, slots=True)
class Made:
    objective: Objective
    train: Callable[[int], Any]
    """A row of `train` as the objective's sample."""
    held_out: Callable[[int], Any]
    first_loss: Callable[[list], float | None] = lambda _packs: None
    reference: dict | None = None
    """`{key, digest, steps}` of what other models said of the rows of so many steps, for run.json."""


@dataclass(frozen=True, slots=True)
class _Asking:
    """What a reference needs to know of the run."""

    loaded: Loaded
    dataset: Dataset
    plans: dict[str, tuple[Sequence[Step], Any]]
    """{part: (steps, its rows)}."""
    before: dict | None
    """run.json's `reference`, of a run that goes on."""
    say: Say

    @property
    def pack_tokens(self) -> int:
        return self.loaded.recipe.train.tokens_per_pack or self.loaded.recipe.train.tokens_per_step

    def kept(self, part: str, name: str):
        """Raises TrainingError when what the run began with is gone and would come out otherwise now."""
        from tunesmith.training import reference

        if self.before is None or self.before["key"] == name:
            return reference.Kept(self.dataset, part, name, self.say)
        found = reference.Kept(self.dataset, part, self.before["key"], self.say)
        if found.missing(self.rows(part, self.before["steps"])):
            raise TrainingError("the reference that this run began with is gone", where=str(found.path),
                                why="the kernels or the code have changed since, so it would come out otherwise now",
                                fix="bring the old ones back, or start a new run")
        self.say("chose reference=as it began (the kernels or the code have changed since)")
        return found

    def rows(self, part: str, steps: int | None = None) -> list[int]:
        plan = self.plans[part][0]
        return sorted({row for step in (plan[:steps] if part == TRAIN else plan) for row in step.rows})

    def facts(self, name: str, kept: dict[str, Any]) -> dict:
        """For run.json. Raises TrainingError when the numbers of the steps that the run began with are others now."""
        from tunesmith.training import reference

        def digests(steps: int) -> str:
            return " ".join(reference.digest(kept[part], self.rows(part, steps), rows.trained_lengths())
                            for part, (_, rows) in self.plans.items())

        steps = len(self.plans[TRAIN][0])
        if self.before and self.before["digest"] != (now := digests(self.before["steps"])):
            raise TrainingError("the reference has changed since this run began", where=str(kept[TRAIN].path),
                                why=f"the digest of its numbers was {self.before['digest'][:19]}, it is {now[:19]}",
                                fix="resume with the kernels and the code that it began with, or start a new run")
        return {"key": self.before["key"] if self.before else name, "digest": digests(steps), "steps": steps}


def make(loaded: Loaded, base: Base, dataset: Dataset, model, facts: dict, plans: tuple[Sequence[Step], Sequence[Step]],
         before: dict | None, say: Say) -> Made:
    """The objective of a recipe, and its samples of the rows in `plans`, (of train, held out).

    `facts` are what the arithmetic depends on besides: engine, kernels, dtype, device. `before`: run.json's `reference`.

    Raises:
        RecipeError: the teacher has another vocabulary.
        TrainingError: a run would go on with another reference than it began with.
    """
    from tunesmith.engine import fast, plain
    from tunesmith.objectives.sft import Sft, sample

    recipe, path, part = loaded.recipe, {"fast": fast, "plain": plain}[facts["engine"]], dataset.tests[0]
    rows = {name: rows_of(recipe, dataset, name) for name in (TRAIN, part)}
    if recipe.objective.type == "sft":
        return Made(Sft(path.forward_loss), lambda i: sample(*rows[TRAIN][i]), lambda i: sample(*rows[part][i]))
    planned = dict(zip((TRAIN, part), zip(plans, rows.values(), strict=True), strict=True))
    asking = _Asking(loaded, dataset, planned, before, say)
    facts = facts | {"dataset": dataset.id}
    if recipe.objective.type == "distill":
        return _distill(asking, base, model, facts)
    return _against_the_base(asking, model, path.answer_logps, facts | {"base": base.digest})


def _against_the_base(asking: _Asking, model, answer_logps: Callable, facts: dict) -> Made:
    """Preferences and labelled answers."""
    from tunesmith.objectives import dpo, kto
    from tunesmith.objectives.families import family
    from tunesmith.training import reference

    config = asking.loaded.recipe.objective
    pairs = config.type == "dpo"
    name = reference.key(**facts, answers=config.type, seed=None if pairs else asking.loaded.recipe.train.seed)
    samples, kept = {}, {}
    for part, (_, rows) in asking.plans.items():
        def answers(i: int, rows=rows):
            return family(*rows[i]) if pairs else family(*rows[i], rows.mismatched(i))

        kept[part] = asking.kept(part, name)
        logps = reference.base_logps(kept[part], model, answer_logps, asking.rows(part), answers, asking.pack_tokens,
                                     adapted="started_from" in facts)

        def sample(i: int, rows=rows, answers=answers, logps=logps):
            prompt, *given = answers(i)
            said = tuple(logps[i].tolist())
            return dpo.Pair((prompt, *given), said) if pairs else \
                kto.Labelled((prompt, given[0]), (prompt, given[1]), rows.desirable[i], said)

        samples[part] = sample
    objective = dpo.Dpo(answer_logps, config.beta, config.loss, config.label_smoothing) if pairs else \
        kto.Kto(answer_logps, config.beta, config.desirable_weight, config.undesirable_weight)
    made = Made(objective, *samples.values(), reference=asking.facts(name, kept))
    if asking.loaded.recipe.method.type in STARTS_ELSEWHERE and "started_from" not in facts:
        return made
    return Made(objective, *samples.values(), objective.first_loss, made.reference)


def _distill(asking: _Asking, base: Base, model, facts: dict) -> Made:
    from tunesmith.engine import distill as path
    from tunesmith.objectives.distill import Distill, Taught
    from tunesmith.objectives.sft import sample
    from tunesmith.training import reference

    recipe, config = asking.loaded.recipe, asking.loaded.recipe.objective
    teacher = teacher_of(asking.loaded, base)
    most = config.top_k, config.temperature, model.get_base_model().get_output_embeddings().weight.shape[0]
    name = reference.key(**facts, teacher=teacher.digest, most=most)

    def load() -> tuple[Any, str]:
        return _teacher_model(teacher, recipe, facts, asking.say)

    samples, kept = {}, {}
    for part, (_, rows) in asking.plans.items():
        kept[part] = asking.kept(part, name)
        taught = reference.teachings(kept[part], load, asking.rows(part), lambda i, rows=rows: sample(*rows[i]),
                                     rows.trained_lengths(), most, asking.pack_tokens)
        samples[part] = lambda i, rows=rows, taught=taught: Taught(sample(*rows[i]), *taught(i))
    settings = path.Settings(config.temperature, config.alpha, config.kl)
    distances = path.fast_distances if facts["engine"] == "fast" else path.plain_distances
    return Made(Distill(distances, settings), *samples.values(), reference=asking.facts(name, kept))


def _teacher_model(teacher: Base, recipe: Recipe, facts: dict, say: Say) -> tuple[Any, str]:
    """The teacher on the fast path where that knows it: with an adapter of zeros, which is what the fast path switches."""
    import torch

    from tunesmith.engine import fast
    from tunesmith.methods import lora
    from tunesmith.recipe.methods import Lora

    state = torch.get_rng_state()
    model = lora.attach(model_of(teacher, getattr(torch, facts["dtype"]), facts["device"]), Lora(rank=1), teacher.ref)
    torch.set_rng_state(state)
    reason = "as the student" if facts["engine"] == "plain" else fast.why_not(model, recipe.data.max_tokens)
    if reason is None:
        fast.accelerate(model)
    say(f"chose teacher={'plain (' + reason + ')' if reason else 'fast'}")
    return model, "plain" if reason else "fast"


def teacher_of(loaded: Loaded, base: Base) -> Base:
    """The teacher of a recipe.

    Raises:
        BaseModelError: it cannot be found.
        RecipeError: it has another vocabulary than the base, so that its numbers would be of other words.
    """
    ref = loaded.recipe.objective.teacher

    teacher = resolve(ref, loaded.folder)
    ours, theirs = (tokenizer_of(b).get_vocab() for b in (base, teacher))
    if ours != theirs:
        odd = min(set(ours.items()) ^ set(theirs.items()), key=lambda item: item[1])
        raise RecipeError(f"the teacher {ref!r} has another vocabulary than the base {base.ref!r}", where=str(loaded.path),
                          why=f"{len(theirs):,} words and {len(ours):,}; word {odd[1]} is {_named(theirs, odd[1])!r} there and "
                              f"{_named(ours, odd[1])!r} here",
                          fix="take a teacher of the same family, with the same tokenizer")
    return teacher


def _named(vocabulary: dict[str, int], number: int) -> str | None:
    return next((word for word, n in vocabulary.items() if n == number), None)
