"""What every training row costs a model that learned from the other rows: the scores that `data.curate` judges.

    rows      a a' b c d e            in one order, by their content; near-duplicates (a, a') on one side
    folds     [a a' d] [b c e]
    fold 0    train a short adapter on [b c e], measure a a' d          our own trainer, the recipe's own settings
    fold 1    train a short adapter on [a a' d], measure b c e
    base      measure all rows before anything is learned
    control   each adapter also measures some of its rows with the answer of another: what is surely wrong costs so much

A row that the others help to predict agrees with them; one that contradicts them stays expensive, and an adapter that never
saw it cannot have learned it by heart (cross-fitting, as in confident learning: Northcutt et al. 2021). Short, because a
network learns what rows have in common before it learns their mistakes (Arpit et al. 2017; Han et al. 2018).

Every fold is kept beside the dataset as soon as it is measured. A scoring that was interrupted goes on after the last whole
fold, and another choice of rows costs nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.data.curate import canonical_order, digest, wrong_on_purpose
from tunesmith.data.dataset import TRAIN, Dataset
from tunesmith.data.pack import plan_steps
from tunesmith.data.rows import Row
from tunesmith.data.similar import Index
from tunesmith.errors import DataError, TemplateError, TrainingError
from tunesmith.methods import wanted_dtype
from tunesmith.models.base import Base
from tunesmith.objectives.sft import Sample, Sft, sample
from tunesmith.recipe.load import Loaded
from tunesmith.recipe.schema import Train
from tunesmith.store.files import explain_os_errors, read_json, sha256_bytes, sha256_json, write_bytes, write_json
from tunesmith.template.render import render

if TYPE_CHECKING:
    import numpy as np

Say = Callable[[str], None]
LEAST_ROWS = 20
"""Of a fold. What fewer rows have in common cannot be told from chance."""
STEPS = 64
"""Optimizer steps that an adapter gets, where one pass makes fewer: by smaller steps, then by more passes."""
LEAST_TOKENS = 512
"""Steps are not made smaller than this to reach them."""
MOST_PASSES = 4
"""Unless the recipe's own epochs are more."""
MOST_TOKENS = 100_000
"""That an adapter learns from. The example's 1,500 rows take 90,000 to be learned to the end."""
CONTROLS = 100
"""Rows of a fold that are measured once more with a wrong answer, at most."""
ROOMS = ("engine", "methods", "objectives", "training")


@dataclass(frozen=True, slots=True)
class Budget:
    """How long the adapter of one fold learns."""

    steps: int
    tokens_per_step: int

    def __str__(self) -> str:
        return f"{self.steps} steps of {self.tokens_per_step} tokens"


@dataclass(frozen=True)
class Crossfit:
    """What every row costs, nats. Tokens end to end in the order of the dataset: row i's are ends[i]:ends[i + 1]."""

    ends: np.ndarray
    base: np.ndarray
    """Of every trained token, by the base."""
    fitted: np.ndarray
    """The same by the adapter that never saw the row."""
    wrong: np.ndarray
    """Means of rows that were given the answer of another row, by the adapter that saw neither."""
    folds: np.ndarray
    """Of each row."""
    budget: Budget


def crossfit(loaded: Loaded, base: Base, dataset: Dataset, tokenizer, folds: int, *, say: Say = lambda _line: None) -> Crossfit:
    """Measure every training row by the base and by an adapter of the rows of other folds.

    Raises:
        DataError: too few rows for so many folds, or nearly all rows are near-duplicates of each other.
        TrainingError: an adapter cannot be trained, or Ctrl-C ended it; folds that are measured are kept.
    """
    import numpy as np

    rows, tokens = dataset.rows(TRAIN), dataset.tokens(TRAIN)
    if len(rows) < LEAST_ROWS * folds:
        raise DataError(f"{len(rows)} training rows are too few to be judged by each other in {folds} folds",
                        where=str(loaded.path), why=f"a fold of fewer than {LEAST_ROWS} rows says nothing of the others",
                        fix="read them yourself with `tunesmith data show`, or give more rows"
                        + (", or fewer --folds" if folds > 2 and len(rows) >= 2 * LEAST_ROWS else ""))
    order = canonical_order(rows)
    near = loaded.recipe.data.dedup.near
    ordered = [rows[i] for i in order]
    places = fold_of(ordered, folds, Index(ordered, near).groups() if near is not None else ())
    fold = np.empty(len(rows), np.int64)
    fold[order] = places
    if (smallest := int(np.bincount(fold, minlength=folds).min())) < LEAST_ROWS:
        raise DataError(f"the smallest of {folds} folds would hold {smallest} rows", where=str(loaded.path),
                        why="near-duplicates stay together, and most rows are near-duplicates of each other",
                        fix="give rows that differ more, or raise data.dedup.near")
    lengths = tokens.lengths
    budget = budget_of(loaded.recipe.train, min(sum(lengths[i] for i in order if fold[i] != f) for f in range(folds)))
    say(f"chose {folds} adapters of {budget} (one pass over the other rows; up to {STEPS} steps where that is less, at most "
        f"{MOST_TOKENS:,} tokens)")
    ends = np.concatenate([[0], np.cumsum(tokens.trained_lengths())]).astype(np.int64)
    kept = _Kept(dataset.path / "crossfit" / _key(loaded, base, folds, budget), say)
    scorer = _Scorer(loaded, base, budget, kept.arithmetic(wanted_dtype(loaded.recipe.method, loaded.recipe.train.dtype)), say)
    samples = [sample(*tokens[i]) for i in range(len(rows))]
    measured = kept.or_made("base", lambda: {"losses": np.concatenate(scorer.measure([samples[i] for i in order], []))})
    by_base, fitted, wrong = _in_place(ends, order, measured["losses"]), np.zeros(int(ends[-1]), np.float32), []
    for f in range(folds):
        held_out, learned = [i for i in order if fold[i] == f], [i for i in order if fold[i] != f]
        controls = _controls(loaded, tokenizer, [rows[i] for i in held_out])

        def made(held_out=held_out, learned=learned, controls=controls) -> dict[str, np.ndarray]:
            found = scorer.measure([samples[i] for i in held_out] + controls, [samples[i] for i in learned])
            return {"losses": np.concatenate(found[: len(held_out)]),
                    "wrong": np.array([c.mean() for c in found[len(held_out) :]], np.float32)}

        measured = kept.or_made(f"fold-{f}", made)
        fitted += _in_place(ends, held_out, measured["losses"])
        wrong.append(measured["wrong"])
    return Crossfit(ends, by_base, fitted, np.concatenate(wrong), fold, budget)


def _in_place(ends: np.ndarray, order: Sequence[int], losses: np.ndarray) -> np.ndarray:
    """Losses of the rows `order`, laid where their tokens are in the dataset; 0 elsewhere."""
    import numpy as np

    placed, begin = np.zeros(int(ends[-1]), np.float32), 0
    for i in order:
        count = int(ends[i + 1] - ends[i])
        placed[ends[i] : ends[i + 1]] = losses[begin : begin + count]
        begin += count
    return placed


def _controls(loaded: Loaded, tokenizer, rows: Sequence[Row]) -> list[Sample]:
    """Some of the rows, each with the answer of another. Those that cannot be rendered or are too long are left out."""
    made = []
    for row in wrong_on_purpose(rows, CONTROLS):
        with suppress(TemplateError):
            rendered = render(tokenizer, row.messages, row.tools)
            if len(rendered.ids) <= loaded.recipe.data.max_tokens:
                made.append(sample(rendered.ids, rendered.trained))
    return made


def fold_of(rows: Sequence[Row], folds: int, similar: Sequence[Sequence[int]]) -> list[int]:
    """A fold for each row: groups of near-duplicates whole, the largest first, always into the fold with the fewest rows."""
    grouped = [list(group) for group in similar]
    inside = {i for group in grouped for i in group}
    grouped += [[i] for i in range(len(rows)) if i not in inside]
    sizes, place = [0] * folds, [0] * len(rows)
    for group in sorted(grouped, key=lambda g: (-len(g), digest(rows[g[0]]))):
        smallest = sizes.index(min(sizes))
        sizes[smallest] += len(group)
        for i in group:
            place[i] = smallest
    return place


def budget_of(train: Train, tokens: int) -> Budget:
    """One pass over so many tokens, in enough steps to learn anything; never more than MOST_TOKENS or max_steps."""
    one_pass = min(tokens, MOST_TOKENS)
    per_step = min(train.tokens_per_step, max(LEAST_TOKENS, one_pass // STEPS))
    passes = max(MOST_PASSES, train.epochs if train.max_steps is None else 1)
    steps = max(one_pass // per_step, min(STEPS, passes * one_pass // per_step), 1)
    return Budget(min(steps, train.max_steps or steps), per_step)


def _key(loaded: Loaded, base: Base, folds: int, budget: Budget) -> str:
    """Whatever the losses depend on besides the dataset, the code that makes them included."""
    package = Path(__file__).parent.parent
    code = sha256_bytes(b"".join(p.read_bytes() for room in ROOMS for p in sorted((package / room).rglob("*.py"))))
    settings = loaded.recipe.model_dump(mode="json", include={"method", "objective", "train"})
    return sha256_json([settings, base.digest, folds, str(budget), code]).removeprefix("sha256:")[:20]


class _Kept:
    """Arrays on disk, by name; each file whole or absent."""

    def __init__(self, folder: Path, say: Say):
        self.folder, self.say = folder, say

    def arithmetic(self, wanted: str) -> str:
        """The dtype of the first measurement. All of them take it and its number of threads, or sums differ in the last bit."""
        import torch

        from tunesmith.engine.precision import choose

        path = self.folder / "arithmetic.json"
        if not path.is_file():
            choice = choose(wanted)
            self.say(choice.because)
            write_json(path, {"threads": torch.get_num_threads(), "dtype": str(choice.dtype).removeprefix("torch.")})
        first = read_json(path)
        if torch.get_num_threads() != first["threads"]:
            self.say(f"chose threads={first['threads']} (as the first measurement)")
            torch.set_num_threads(first["threads"])
        return first["dtype"]

    def or_made(self, name: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        import io

        import numpy as np

        path = self.folder / f"{name}.npz"
        if path.is_file():
            self.say(f"{name} was measured before")
            with explain_os_errors(path, "read"), np.load(path) as found:
                return dict(found)
        self.say(f"measuring {name}")
        value, buffer = make(), io.BytesIO()
        np.savez(buffer, **value)
        write_bytes(path, buffer.getvalue())
        return value


@dataclass(frozen=True)
class _Scorer:
    loaded: Loaded
    base: Base
    budget: Budget
    dtype: str
    say: Say

    def measure(self, asked: Sequence[Sample], learned: Sequence[Sample]) -> list[np.ndarray]:
        """Losses of the labelled tokens of each sample, by an adapter of the samples `learned`, or by the base if there are
        none."""
        import torch

        from tunesmith import methods
        from tunesmith.engine import fast, plain
        from tunesmith.engine.memory import keep_pages
        from tunesmith.engine.precision import device
        from tunesmith.models.load import model_of
        from tunesmith.training.run import prepare_engine

        recipe = self.loaded.recipe
        keep_pages()
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.manual_seed(recipe.train.seed)
        model = methods.attach(model_of(self.base, getattr(torch, self.dtype), device()), recipe.method, self.base.ref)
        name, forward_loss = prepare_engine(model, recipe, (lambda _line: None) if learned else self.say)
        if learned:
            self._train(model, forward_loss, learned)
        model.eval()
        untouched = not learned and recipe.method.type in ("prompt", "prefix")  # the others begin as the base
        engine = {"fast": fast, "plain": plain}[name]
        losses: dict[int, np.ndarray] = {}
        for pack in self._packs(asked):
            with model.disable_adapter() if untouched else nullcontext():
                found = engine.token_losses(model, [asked[n] for n in pack])
            losses |= {n: values.cpu().numpy() for n, values in zip(pack, found, strict=True)}
        return [losses[n] for n in range(len(asked))]

    def _packs(self, asked: Sequence[Sample]) -> list[tuple[int, ...]]:
        steps = plan_steps([len(ids) for ids, _ in asked], tokens_per_step=self._pack_tokens)
        return [pack for step in steps for pack in step.packs]

    @property
    def _pack_tokens(self) -> int:
        per_step = self.budget.tokens_per_step
        return min(self.loaded.recipe.train.tokens_per_pack or per_step, per_step)

    def _train(self, model, forward_loss, learned: Sequence[Sample]) -> None:
        from tunesmith.training import loop

        train = self.loaded.recipe.train
        steps = plan_steps([len(ids) for ids, _ in learned], tokens_per_step=self.budget.tokens_per_step,
                           tokens_per_pack=self._pack_tokens, epochs=self.budget.steps, max_steps=self.budget.steps,
                           seed=train.seed)
        config = train.model_copy(update={"eval_every_steps": None, "checkpoint": train.checkpoint.model_copy(
            update={"every_steps": len(steps), "keep": 1})})
        with tempfile.TemporaryDirectory(prefix="tunesmith-") as scratch:
            outcome = loop.train(loop.Training(Path(scratch), config, model, Sft(forward_loss), steps, learned.__getitem__, []))
        if not outcome.finished:
            raise TrainingError("scoring was interrupted", why="nothing is proposed from half of the scores",
                                fix="start it again: it goes on after the last fold that was measured")
