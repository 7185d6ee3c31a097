"""The verbs as functions: what `tunesmith VERB` does, for Python. `import tunesmith; tunesmith.run("recipe.yaml")`.

Each returns the JSON document that the command prints with --json. Paths in it are absolute. `say` gets the lines a
person would read; the default is silence.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tunesmith.releases.verbs import (  # noqa: F401  (verbs like those below)
    export,
    gc,
    merge,
    named,
    new_key,
    promote,
    pull,
    push,
    release,
    rollback,
    sign_release,
    verify_merge,
    verify_release,
    verify_replay,
)

Say = Callable[[str], None]


def _silent(_line: str) -> None:
    return None


def check(recipe: str | Path, *, say: Say = _silent) -> dict:
    """`{ok, problems, estimate, targets, serving, dataset_id, advice[]}`; advice is at most three lines, or none."""
    from tunesmith.training.check import check as check_recipe

    return check_recipe(recipe, say)


def prepare(recipe: str | Path, *, say: Say = _silent) -> dict:
    """`{dataset_id, path, counts, findings}`. Raises DataError for rows that cannot be used."""
    dataset, _tokenizer = _dataset(recipe, say)
    return {"dataset_id": dataset.id, "path": str(dataset.path), "counts": dataset.manifest["counts"],
            "findings": dataset.manifest["findings"]}


def show_rows(recipe: str | Path, *, part: str = "train", first: int = 0, count: int = 3, say: Say = _silent) -> dict:
    """Rendered rows: `rows[{where, text, tokens[{id, text, trained, role}]}]`, role as `template.roles` has it."""
    from tunesmith.errors import UsageError
    from tunesmith.template.roles import roles, texts

    dataset, tokenizer = _dataset(recipe, say)
    if part not in ("train", *dataset.tests):
        raise UsageError(f"no part {part!r}", fix=f"one of train, {', '.join(dataset.tests)}")
    rows, tokens = dataset.rows(part), dataset.tokens(part)
    shown = []
    for i in range(first, min(first + count, len(rows))):
        (ids, trained), row = tokens[i], rows[i]
        columns = zip(ids, texts(tokenizer, ids), trained, roles(tokenizer, row.messages, row.tools), strict=True)
        pieces = [{"id": t, "text": text, "trained": on, "role": role} for t, text, on, role in columns]
        shown.append({"where": row.where, "text": tokenizer.decode(ids), "tokens": pieces})
    return {"dataset_id": dataset.id, "counts": dataset.manifest["counts"], "findings": dataset.manifest["findings"],
            "part": part, "rows": shown}


def audit(recipe: str | Path, *, say: Say = _silent) -> dict:
    """`prepare`, the data card drawn, and what filters take or would take: `{..., filters, diversity, card, packing}`."""
    from tunesmith.data.card import packing, write_card
    from tunesmith.recipe.load import load

    loaded = load(recipe)
    dataset, tokenizer = _dataset(recipe, say)
    return {"dataset_id": dataset.id, "path": str(dataset.path), "counts": dataset.manifest["counts"],
            "findings": dataset.manifest["findings"], "filters": dataset.manifest["filters"],
            "diversity": dataset.manifest["diversity"], "packing": packing(dataset, loaded.recipe),
            "card": str(write_card(dataset, loaded.recipe, tokenizer))}


def diff_data(a: str | Path, b: str | Path, *, say: Say = _silent) -> dict:
    """What changed from dataset `a` to `b`, each a dataset id or a recipe. `{identical, inputs, parts, counts}`."""
    from tunesmith.data.diff import diff

    return diff(_any_dataset(a, say), _any_dataset(b, say))


def convert_data(source: str | list[str], target: str | Path, to: str) -> dict:
    """`{path, to, rows_read, rows, lossy[], notes[]}`: the rows of a file in another format, and those it cannot say."""
    from tunesmith.data.convert import convert

    return convert(source, target, to)


def curate_data(recipe: str | Path, out: str | Path, *, rows: int | None = None, folds: int = 2, say: Say = _silent) -> dict:
    """Rows to propose and rows to suspect, in the new directory `out`: `{path, recipe, page, dataset_id, rows, proposed,
    suspects, threshold{value, typical, wrong, power}, why, warning, worst[{where, score, reason}]}`.

    Raises:
        UsageError: `out` is there already.
        DataError: too few rows to be judged by each other, or fewer above suspicion than `rows`.
    """
    from tunesmith.training.curate import curate

    return curate(recipe, Path(out), rows, folds, say)


def train(recipe: str | Path, *, resume: str | None = None, extend_epochs: int = 0, say: Say = _silent) -> dict:
    """The run's state: run_id, run_dir, adapter_dir, steps, train_loss, eval_loss, tokens_per_second, peak_memory_bytes.

    `extend_epochs` adds to the total of the run that is resumed. Raises UsageError without `resume`.
    """
    from tunesmith.training.run import train as train_recipe

    return train_recipe(recipe, resume=resume, extend_epochs=extend_epochs, say=say)


def evaluate(run: str, *, suites: Sequence[str] = (), serving: bool = False, say: Say = _silent) -> dict:
    """`{report_path, metrics{name: {unit, base, tuned, delta, ci95}}, sets, baselines[], conclusion, worry}` of a run, or of a
    release's run. `suites` are suite files beside those of its recipe; with `serving`, also
    `serving{memory_bytes, base[], tuned[]}`: the server's speed with this adapter.

    Raises:
        RecipeError: a suite file that is wrong; all mistakes are listed.
        DataError: items that a metric cannot be computed on, or that do not fit the base's context.
    """
    from tunesmith.evals.run import evaluate as evaluate_run
    from tunesmith.evals.run import summary

    found = _run_of(run)
    report = evaluate_run(found, say, suites=suites, serving=serving)
    return {"run_id": found.state["run_id"], "report_path": found.state["report_path"], **summary(report)}


def vote(run: str, *, against: str = "base", pairs: int = 20, seed: int | None = None) -> dict:
    """A blind page of base and tuned texts: `{ballot, page, key, pairs, left_out}`. `against` is `base` or `author`.

    Raises:
        UsageError: the run was not evaluated with `eval.style`.
    """
    from tunesmith.evals.run import report_of
    from tunesmith.evals.style.ballot import make

    found = _run_of(run)
    return make(report_of(found), found.path, {"base": "zero_shot"}.get(against, against), pairs, seed)


def count_votes(run: str, votes: list[str | Path]) -> dict:
    """Votes that such a page saved, counted and written into the report: `{run_id, report_path, votes{against: {pairs, votes,
    wins, losses, ties, share, ci95, p_value, readers}}}`.

    Raises:
        DataError: a file that is no such votes. NotFoundError: votes on a page that was not made from this run.
    """
    from tunesmith.evals.run import report_of, write_report
    from tunesmith.evals.style.ballot import read

    found = _run_of(run)
    report = report_of(found)
    report["style"]["votes"] = read([Path(v) for v in votes], report, found.path)
    write_report(found, report)
    return {"run_id": found.state["run_id"], "report_path": found.state["report_path"], "votes": report["style"]["votes"]}


def compose(name: str, adapters: Sequence[tuple[str, float]], *, how: str = "cat", rank: int | None = None,
            density: float | None = None, sign: str | None = None, seed: int | None = None, samples: int | None = None,
            max_drop: float | None = None, max_loss_rise: float | None = None, say: Say = _silent) -> dict:
    """The state of a new run whose adapter is composed of `adapters`, (run or release, weight) each: run_id, run_dir,
    adapter_dir, composed{how, rank, error, kept, overlap, vllm, parents[], sets}. What each `how` computes: docs/compose.md.

    `samples`: rows that are evaluated of each test set, instead of what its parent's recipe says; `max_drop`, `max_loss_rise`:
    those of `gates.composition`, instead of the first parent's recipe's.

    Raises:
        UsageError: adapters that cannot be composed, and why; settings that mean nothing.
        AdapterError: a parent or the result is not finite, or the result does nothing.
    """
    from tunesmith.methods.compose import Settings
    from tunesmith.releases.source import source_of
    from tunesmith.training.compose import composed, source_of_run

    found = [(weight, *named(one)) for one, weight in adapters]
    sources = [source_of_run(run, weight) if run else source_of(release, weight) for weight, release, run in found]
    given = {"max_drop": max_drop, "max_loss_rise": max_loss_rise}
    return composed(name, sources, Settings(how=how, rank=rank, density=density, sign=sign, seed=seed),
                    samples=samples, allowed={k: v for k, v in given.items() if v is not None}, say=say).state


def sweep(recipe: str | Path, sets: list[str], *, margin: float = 0.0, say: Say = _silent) -> dict:
    """Train the recipe for each combination of `KEY=V1,V2`, and compare: `{sweep_id, status, metric, rows[{values, run_id,
    status, trainable_parameters, target, regression, peak_memory_bytes, seconds, spectrum, against_best}], recommended,
    separated, conclusion, path, page, ...}`.

    `margin`: how much worse than the best is good enough, in the target metric's own unit. Sizes in bytes, times in seconds.

    Raises:
        UsageError: fewer than two combinations or more than 64, or a key that changes nothing of what is trained.
        RecipeError: an unknown key, or a value that does not fit.
        DataError: combinations that would be tested on different rows.
        TrainingError: not one of them could be trained.
    """
    from tunesmith.evals.sweep import sweep as sweep_recipe

    return sweep_recipe(recipe, sets, margin, say)


def run(recipe: str | Path, *, say: Say = _silent) -> dict:
    """check, train, eval and release in one document, with the seconds of each phase.

    Raises:
        DataError: the check found errors; nothing was trained.
    """
    from tunesmith.errors import DataError, Problem

    seconds: dict[str, float] = {}

    def phase(name: str, verb: Callable[[], dict]) -> dict:
        began = time.monotonic()
        result = verb()
        seconds[name] = round(time.monotonic() - began, 1)
        return result

    checked = phase("check", lambda: check(recipe, say=say))
    if not checked["ok"]:
        raise DataError("the recipe is not ready to be trained", where=str(recipe),
                        problems=[Problem(**p) for p in checked["problems"] if p["severity"] == "error"])
    trained = phase("train", lambda: train(recipe, say=say))
    if trained["status"] != "finished":
        return {**checked, **trained, "seconds": seconds}
    evaluated = phase("eval", lambda: evaluate(trained["run_id"], say=say))
    released = phase("release", lambda: release(trained["run_id"], say=say))
    return {**checked, **trained, **evaluated, **released, "seconds": seconds}


def runs() -> dict:
    """`{runs[...], releases[...]}`, newest first."""
    from tunesmith.releases.bundle import all_releases
    from tunesmith.training.run import all_runs

    return {"runs": all_runs(), "releases": [{k: m[k] for k in ("release_id", "name", "created", "run_id", "metrics")}
                                             for m in all_releases()]}


def show(name: str) -> dict:
    """A run's state, a release's manifest or a channel's history, with `kind`. Raises NotFoundError."""
    from tunesmith.errors import NotFoundError
    from tunesmith.releases.channel import current

    try:
        return {"kind": "channel", **current(name)}
    except NotFoundError:
        found, run = named(name)
    return {"kind": "run", **run.state} if run else {"kind": "release", "path": str(found.path), **found.manifest}


def watcher(run: str):
    """Looks at a run again and again: `watcher(run).now()`. Raises NotFoundError."""
    from tunesmith.training.look import Look
    from tunesmith.training.run import Run

    return Look(Run.find(run))


def watch(run: str) -> dict:
    """What a run is doing now: status, step, losses, speed, time left, warnings, events, curves."""
    return watcher(run).now()


def tensorboard_writer(directory: str | Path, run: str):
    """Writes looks at a run as TensorBoard event files: `.add(look)`, `.close()`. Raises UsageError."""
    from tunesmith.track.tensorboard import Events
    from tunesmith.training.run import Run

    return Events(directory, Run.find(run).state["run_id"])


def compare(a: str, b: str) -> dict:
    """What differs from `a` to `b`, runs or releases: `{a, b, recipe, dataset, metrics, curves, speed}`."""
    from tunesmith.releases.compare import compare as compare_both
    from tunesmith.releases.compare import side

    return compare_both(side(*named(a)), side(*named(b)))


def verify_packing(recipe: str | Path, *, say: Say = _silent) -> dict:
    """`{identical, message, ...}`: packed rows against each row alone."""
    from tunesmith.training.prove import packing

    return packing(recipe, say)


def verify_resume(recipe: str | Path, *, steps: int = 4, kills: int = 0, say: Say = _silent) -> dict:
    """`{identical, message, kills[{after_step, in_checkpoint}], ...}`: a resumed training against the uninterrupted one."""
    from tunesmith.training.prove import resume

    return resume(recipe, steps, say, kills)


def verify_quantised(recipe: str | Path, *, steps: int = 8, say: Say = _silent) -> dict:
    """`{ok, stages[{stage, against, largest_difference, tolerance, same_tokens, ok, why}], message}`: QLoRA from training to
    both merged models, each stage's logits against those of the one before.

    Raises:
        UsageError: the recipe's method is not qlora.
    """
    from tunesmith.evals.quantised import quantised

    return quantised(recipe, steps, say)


def init(directory: str | Path, *, example: str = "addresses") -> dict:
    """Copy an example: a recipe and real data that run as they are. `{path, recipe}`. Never overwrites."""
    from tunesmith.recipe.examples import copy

    return copy(example, Path(directory))


def import_recipe(file: str | Path, *, out: str | Path | None = None, tool: str | None = None) -> dict:
    """A YAML of axolotl or LLaMA-Factory as a recipe: `{recipe, source, mapped[], unsupported[], ignored[], added[]}`."""
    from tunesmith.recipe.foreign.convert import import_recipe as convert

    return convert(file, out=out, tool=tool)


def _dataset(recipe: str | Path, say: Say):
    from tunesmith.data.prepare import prepare as prepare_data
    from tunesmith.models.base import resolve
    from tunesmith.recipe.load import load
    from tunesmith.training.run import tokenizer_for

    loaded = load(recipe)
    tokenizer = tokenizer_for(resolve(loaded.recipe.base, loaded.folder), loaded)
    return prepare_data(loaded, tokenizer, say), tokenizer


def _any_dataset(name: str | Path, say: Say):
    """A dataset by its id or unique prefix, or that of a recipe. Raises NotFoundError."""
    from tunesmith.data.dataset import Dataset
    from tunesmith.errors import NotFoundError
    from tunesmith.store.home import home

    if Path(name).suffix in (".yaml", ".yml"):
        return _dataset(name, say)[0]
    found = [p for p in (home() / "datasets").glob(f"{name}*") if (p / "manifest.json").is_file()]
    if len(found) != 1:
        raise NotFoundError(f"{'several datasets begin' if found else 'no dataset begins'} with {name!r}",
                            where=str(home() / "datasets"), fix="give a whole dataset id, or a recipe")
    return Dataset.open(found[0])


def _run_of(name: str):
    """A run by its id, or the newest run of a recipe, or the run that a release was made from."""
    from tunesmith.errors import NotFoundError
    from tunesmith.training.run import Run, all_runs

    if Path(name).suffix in (".yaml", ".yml"):
        path = str(Path(name).absolute())
        made = [s for s in all_runs() if s["recipe_path"] == path and s["status"] == "finished"]
        if not made:
            raise NotFoundError("this recipe has no finished run", where=path, fix=f"tunesmith train {name}")
        return Run.find(made[0]["run_id"])
    found, run = named(name)
    return run or Run.find(found.manifest["run_id"])


