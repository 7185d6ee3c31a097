"""The recipe of a fine-tuning job, from what the operator, the request and the file say. A layer counts before those above it:

    DEFAULTS                     cheap to evaluate, three epochs kept
    settings.recipe              the operator's
    extensions                   `extra_body={"tunesmith": {...}}`, or `tunesmith.*` in the metadata
    hyperparameters              epochs, batch size, learning rate: OpenAI's, or `auto`
    the job's own                base, files, seed

Extensions are sections of a recipe and are judged as a recipe is, all mistakes at once. What names a file, a model, an address
or a pattern is not for requests to give (CLOSED): a job reads what was uploaded, and loads what the operator has named.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from tunesmith.errors import Problem, RecipeError
from tunesmith.jobs.names import recipe_name
from tunesmith.jobs.settings import Settings

SECTIONS = ("method", "train", "data", "eval", "gates", "objective")
CLOSED = {
    "data.train": "files are uploaded: training_file", "data.test": "files are uploaded: validation_file",
    "data.evals": "it names files", "data.replay": "it names files", "data.template": "it names a file",
    "data.format": "the file says it", "data.style": "it is for text, and examples are uploaded",
    "train.epochs": "hyperparameters.n_epochs says it", "train.seed": "seed says it",
    "train.start_from": "it names files: give an ft: model as `model`",
    "eval.suites": "it names files", "eval.retrieval": "it names files", "eval.judge": "it names an address",
    "eval.embedder": "it names a model", "eval.check": "patterns can run for ever", "eval.style": "it is for text",
    "eval.safety.canaries": "it names a file", "eval.serving": "it starts a server",
    "gates.rollback": "channels are the operator's", "gates.serving": "it starts a server",
    "objective.teacher": "it names a model",
    "method.rank_pattern": "patterns can run for ever", "method.alpha_pattern": "patterns can run for ever",
}
"""What requests may not give, and why. tests/jobs/test_recipes.py holds every key of a recipe that takes free text to be here
or known to name nothing."""
METADATA = {"tunesmith.rank": "method.rank", "tunesmith.method": "method", "tunesmith.gates": "gates"}
"""For clients that cannot send more fields than OpenAI's."""
DEFAULTS: dict[str, dict[str, Any]] = {
    "data": {"on_overflow": "drop"},
    "train": {"eval_every_epoch": True, "checkpoint": {"every_steps": 50, "keep": 2, "keep_epochs": 3}},
    "eval": {"samples": 50, "max_new_tokens": 64},
    "track": {"experiment": "fine-tuning"},
}
LONGEST_ROW = 4096
"""data.max_tokens, where the base's context is not shorter."""
HELD_OUT_SHARE, HELD_OUT_MOST = 0.1, 50
"""Of the training file, when there is no validation file: a release is judged on examples that it was not trained on."""
SMALLEST_SPLIT = 0.001


# ---- what a request may give ---------------------------------------------------------------------------------------------


def extensions(given: Mapping[str, Any] | None, metadata: Mapping[str, str] | None) -> dict[str, dict]:
    """Sections of a recipe that a request gives, from its field `tunesmith` and from its metadata.

    Raises:
        RecipeError: with all that is closed or cannot be read; whether they are right, `problems_of` says.
    """
    found: dict[str, Any] = copy.deepcopy(dict(given or {}))
    problems = [Problem(code="unknown_key", message=f"{name}: no such section", fix=f"known are {', '.join(SECTIONS)}")
                for name in found if name not in SECTIONS]
    problems += [Problem(code="bad_value", message=f"{name}: a section is an object of keys and values")
                 for name, value in found.items() if name in SECTIONS and not isinstance(value, dict)]
    for name, text in (metadata or {}).items():
        if not name.startswith("tunesmith."):
            continue
        try:
            found = merged(found, _from_metadata(name, text))
        except ValueError as error:
            problems.append(Problem(code="bad_value", message=f"metadata {name}: {error}"))
    problems += [Problem(code="closed", message=f"{name}: requests may not give it, {CLOSED[name]}") for name in _given(found)
                 if name in CLOSED]
    if problems:
        raise _mistakes(problems)
    return found


def _from_metadata(name: str, text: str) -> dict[str, dict]:
    """Raises ValueError."""
    if name not in METADATA:
        raise ValueError(f"no such key; known are {', '.join(METADATA)}")
    if name == "tunesmith.method" and not text.lstrip().startswith("{"):
        return {"method": {"type": text.strip()}}
    value = json.loads(text)
    if name == "tunesmith.rank":
        return {"method": {"rank": value}}
    if not isinstance(value, dict):
        raise ValueError("a JSON object belongs there")
    return {METADATA[name]: value}


def _given(sections: Mapping[str, Any]) -> Iterator[str]:
    """`section.key` and `section.key.key` of all that was given."""
    for section, keys in sections.items():
        for key, value in keys.items() if isinstance(keys, dict) else ():
            yield f"{section}.{key}"
            yield from (f"{section}.{key}.{inner}" for inner in value) if isinstance(value, dict) else ()


def problems_of(recipe: Mapping[str, Any]) -> list[Problem]:
    """Every mistake of a recipe that was put together here."""
    from pydantic import ValidationError

    from tunesmith.recipe.load import merge_alternatives, problem_of
    from tunesmith.recipe.schema import Recipe

    try:
        Recipe.model_validate(recipe)
    except ValidationError as error:
        return merge_alternatives([problem_of(e, {}, "tunesmith") for e in error.errors()])
    return []


def refuse(recipe: Mapping[str, Any]) -> None:
    """Raises RecipeError with every mistake."""
    if problems := problems_of(recipe):
        raise _mistakes(problems)


def _mistakes(problems: list[Problem]) -> RecipeError:
    said = "; ".join(p.message + (f" ({p.fix})" if p.fix else "") for p in problems)
    return RecipeError(f"the extensions have {len(problems)} mistake{'s' * (len(problems) > 1)}: {said}", problems=problems)


# ---- the recipe ----------------------------------------------------------------------------------------------------------


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """One mapping of several, of which later ones count before earlier ones, key by key. A section of another `type` begins
    anew: a rank means nothing to a prompt."""
    made: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            before = made.get(key)
            both = isinstance(before, dict) and isinstance(value, dict)
            usual = {"method": "lora", "objective": "sft"}.get(key)
            if both and "type" in value and value["type"] != before.get("type", usual):
                both = False
            made[key] = merged(before, value) if both else copy.deepcopy(value)
    return made


def recipe_of(settings: Settings, job: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of a job (its row), but for its files and what `auto` means for them."""
    kind, layers = job["method"]["type"], (settings.recipe, job["extensions"])
    recipe = merged(DEFAULTS, *layers)
    recipe |= {"name": recipe_name(job["id"], job["suffix"]), "base": job["base"]}
    recipe["data"] = {"train": "train.jsonl"} | recipe["data"]
    recipe["train"] = recipe["train"] | {"seed": job["seed"]}
    wanted = {"supervised": ("sft", "distill"), "dpo": ("dpo",)}[kind]
    objective = recipe.get("objective", {})
    if "objective" in job["extensions"] and "type" in objective and objective["type"] not in wanted:
        raise _mistakes([Problem(code="bad_value", fix=f"give one of {', '.join(wanted)}, or leave it out",
                                 message=f"objective.type: {objective['type']!r}, and method.type is {kind!r}")])
    if objective.get("type", "sft") not in wanted:
        objective = job["extensions"].get("objective", {}) | {"type": wanted[0]}
    recipe["objective"] = {"type": wanted[0]} | objective
    _measure_the_target(recipe)
    recipe["track"] = _track(recipe["track"], job["integrations"])
    return recipe


def _measure_the_target(recipe: dict[str, Any]) -> None:
    """What the target gate reads is measured, and what is measured has a target that reads it."""
    section, gates = recipe["eval"], recipe.setdefault("gates", {})
    target = gates.setdefault("target", {})
    if not isinstance(target, dict):
        return  # a mistake that is told as others are
    named = [target["metric"]] if target.get("metric", "loss") != "loss" else []
    metrics = section.setdefault("metrics", ["loss", *named])
    if "metric" not in target and isinstance(metrics, list) and metrics:
        target["metric"] = "loss" if "loss" in metrics else metrics[0]


def _track(track: dict[str, Any], integrations: list[dict] | None) -> dict[str, Any]:
    """W&B's project is MLflow's experiment, its names and tags are tags."""
    for one in integrations or []:
        told = one["wandb"]
        tags = {f"wandb.{k}": told[k] for k in ("name", "entity") if told.get(k)}
        tags |= {f"wandb.tag.{tag}": "true" for tag in told.get("tags") or []}
        track = merged(track, {"experiment": told["project"], "tags": tags})
    return track


def asked_for_target(settings: Settings, job: Mapping[str, Any]) -> bool:
    """Whether somebody named a target: the gate may refuse only then."""
    return "target" in merged(settings.recipe.get("gates", {}), job["extensions"].get("gates", {}))


# ---- what `auto` means ---------------------------------------------------------------------------------------------------


def auto_epochs(examples: int) -> int:
    """OpenAI's published rule: 3, more for fewer than 34 examples (25 at most), fewer for more than 8,333."""
    if examples * 3 < 100:
        return min(25, max(1, 100 // examples))
    return max(1, 25_000 // examples) if examples * 3 > 25_000 else 3


def auto_batch(examples: int) -> int:
    """OpenAI's published rule: 0.2% of the examples, 1 to 256."""
    return max(1, min(256, round(0.002 * examples)))


def usual_rate(method: Mapping[str, Any], preferences: bool) -> float:
    """The learning rate that a multiplier of 1 stands for: 2e-4, or the middle of what is usual where that is not; for
    preferences, which take smaller steps, the low end of what is usual."""
    from importlib import import_module

    low, high = import_module(f"tunesmith.methods.{method.get('type', 'lora')}").USUAL_RATES
    return low if preferences else 2e-4 if low <= 2e-4 <= high else math.sqrt(low * high)


def resolved(job: Mapping[str, Any], examples: int) -> dict[str, int | float]:
    """A job's hyperparameters as numbers."""
    asked = job["method"][job["method"]["type"]]["hyperparameters"]
    auto = {"n_epochs": auto_epochs(examples), "batch_size": auto_batch(examples), "learning_rate_multiplier": 1.0}
    if job["method"]["type"] == "dpo":
        auto["beta"] = job["extensions"].get("objective", {}).get("beta", 0.1)
    return {name: value if (given := asked.get(name, "auto")) == "auto" else given for name, value in auto.items()}


def finished(recipe: Mapping[str, Any], job: Mapping[str, Any], examples: int, *, held_out: bool,
             context: int | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the recipe with a job's numbers, the numbers as the job shows them).

    `held_out`: there is a validation file. `context`: the base's, in tokens.
    """
    numbers: dict[str, Any] = resolved(job, examples)
    asked = job["method"][job["method"]["type"]]["hyperparameters"]
    data, train, objective = dict(recipe["data"]), dict(recipe["train"]), dict(recipe["objective"])
    data.setdefault("max_tokens", min(context or LONGEST_ROW, LONGEST_ROW))
    if held_out:
        data["test"] = "validation.jsonl"
    else:
        share = min(HELD_OUT_SHARE, HELD_OUT_MOST / examples)
        data["split"] = {"test": max(SMALLEST_SPLIT, round(share, 4))} | data.get("split", {})
    train["epochs"] = numbers["n_epochs"]
    if asked.get("batch_size", "auto") != "auto" or not {"rows_per_step", "tokens_per_step"} & train.keys():
        train["rows_per_step"] = numbers["batch_size"]
    numbers["batch_size"] = train.get("rows_per_step", "auto")
    rate = train.get("learning_rate") or usual_rate(recipe.get("method", {}), objective["type"] == "dpo")
    train["learning_rate"] = rate * numbers["learning_rate_multiplier"]
    if objective["type"] == "dpo":
        objective["beta"] = numbers["beta"]
    return {**recipe, "data": data, "train": train, "objective": objective}, numbers
