"""Everything that can be known before step 1, and all of it at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tunesmith.data.dataset import TRAIN, Dataset
from tunesmith.data.leaks import leaked_rows
from tunesmith.data.pack import plan_steps
from tunesmith.data.prepare import prepare
from tunesmith.errors import BaseModelError, Problem, TunesmithError
from tunesmith.models.base import Base, resolve
from tunesmith.models.load import tokenizer_of
from tunesmith.recipe.load import Loaded, load
from tunesmith.template.fingerprint import fingerprint
from tunesmith.training.objective import rows_of, teacher_of
from tunesmith.training.run import tokenizer_for

MASK_LOW, MASK_HIGH = 0.01, 0.95
"""Shares of trained tokens outside of which the mask is suspicious."""


def check(recipe: str | Path, say: Callable[[str], None] = lambda _line: None) -> dict:
    """`{ok, problems, estimate, targets, serving, dataset_id}`. Problems of severity error make `ok` false; none is raised.

    Schema, base, rows, template, mask, length, duplicates, leaks, targets, whether memory will do and vLLM will load it.
    """
    result: dict = {"ok": False, "problems": [], "estimate": None, "targets": [], "serving": None, "dataset_id": None}
    problems: list[Problem] = []
    try:
        loaded = load(recipe)
        base = resolve(loaded.recipe.base, loaded.folder)
        if loaded.recipe.objective.type == "distill":
            teacher_of(loaded, base)
        dataset = prepare(loaded, tokenizer_for(base, loaded), say)
        result["dataset_id"] = dataset.id
        problems += _data_problems(loaded, dataset)
        problems += _template_problems(loaded, base, dataset)
        result["estimate"], result["targets"], result["serving"] = estimate(loaded, base, dataset)
        problems += _memory_problems(result["estimate"]) + _serving_problems(result["serving"]["vllm"])
    except TunesmithError as error:
        problems += error.problems or [Problem(code=type(error).__name__, message=error.what, where=error.where,
                                               fix=error.fix or error.why)]
    result["problems"] = [p.as_dict() for p in problems]
    result["ok"] = not any(p.severity == "error" for p in problems)
    return result


def estimate(loaded: Loaded, base: Base, dataset: Dataset) -> tuple[dict, list[dict], dict]:
    """(peak memory, seconds, trainable parameters and adapter size; what is adapted; who can serve it), no weights loaded.

    Raises:
        RecipeError: a target matches no layer.
        BaseModelError: as `models.load.model_of`.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tunesmith.engine import estimate as arithmetic
    from tunesmith.engine.native import build
    from tunesmith.engine.precision import choose
    from tunesmith.methods import lora, report
    from tunesmith.models.load import parameter_count, quiet_transformers

    recipe = loaded.recipe
    try:
        with torch.device("meta"), quiet_transformers():
            config = AutoConfig.from_pretrained(base.path, trust_remote_code=False)
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise BaseModelError(f"base {base.ref!r} cannot be loaded as a causal language model", where=str(base.path),
                             why=str(error).splitlines()[0]) from error
    matched = lora.targets(model, recipe.method)
    trainable = lora.trainable_parameters(matched, recipe.method.rank)
    choice = choose(recipe.train.dtype)
    kernels = choice.device == "cpu" and build.start() is None
    shape = arithmetic.Shape.of(config.get_text_config(), parameter_count(base), trainable, choice.dtype.itemsize)
    lengths = rows_of(recipe, dataset, TRAIN).lengths
    steps = plan_steps(lengths, tokens_per_step=recipe.train.tokens_per_step, tokens_per_pack=recipe.train.tokens_per_pack,
                       epochs=recipe.train.epochs, max_steps=recipe.train.max_steps, seed=recipe.train.seed)
    packs = [sum(lengths[r] for r in pack) for step in steps for pack in step.packs]
    trained = dataset.manifest["counts"]["trained_tokens"] / dataset.manifest["counts"]["tokens"]
    found = {
        "peak_memory_bytes": arithmetic.peak_memory_bytes(shape, max(packs), max(lengths), kernels),
        "seconds": round(arithmetic.seconds(shape, sum(packs), int(sum(packs) * trained), choice.flops_per_second), 1),
        "trainable_parameters": trainable, "adapter_bytes": 4 * trainable, "steps": len(steps), "tokens": sum(packs),
        "matched_layers": len(matched), "dtype": str(choice.dtype).removeprefix("torch."),
    }
    config = lora.config(recipe.method, base.ref).to_dict()
    return found, report.by_module(matched, recipe.method.rank), {"vllm": report.vllm(config)}


def _data_problems(loaded: Loaded, dataset: Dataset) -> list[Problem]:
    allowed = loaded.recipe.gates.leak.max_rows
    problems = []
    for f in dataset.manifest["findings"]:
        name = f["code"].partition(":")[2]
        within = name and name in dataset.tests and leaked_rows(dataset.manifest["findings"], name) <= allowed
        problems.append(Problem(code=f["code"], severity="warning" if within else f["severity"], message=f["message"],
                                where=f["examples"][0] if f["examples"] else None, fix=f["fix"]))
    counts = dataset.manifest["counts"]
    share = counts["trained_tokens"] / counts["tokens"]
    if not MASK_LOW <= share <= MASK_HIGH:
        problems.append(Problem(code="mask_share", severity="warning", message=f"{share:.1%} of the tokens are trained",
                                fix="look at some rows with `tunesmith data show`"))
    return problems


def _template_problems(loaded: Loaded, base: Base, dataset: Dataset) -> list[Problem]:
    """A template of the recipe's own is fine, but every server that loads the adapter has to have it too."""
    if loaded.recipe.data.template is None:
        return []
    trained = dataset.manifest["inputs"]["template"]
    own = tokenizer_of(base)
    if own.chat_template and fingerprint(own) == trained:
        return []
    return [Problem(code="template_differs", severity="warning", where=loaded.recipe.data.template,
                    message="prompts will not be the base's own: the fingerprint is "
                            f"{trained[:19]}, the base's {fingerprint(own)[:19] if own.chat_template else 'it has none'}",
                    fix="serve with the release's tokenizer, which holds this template, or leave data.template out")]


def _serving_problems(vllm: dict) -> list[Problem]:
    if vllm["loads"]:
        return []
    return [Problem(code="vllm_refuses", severity="warning", message=f"vLLM will not load this adapter: {why}",
                    fix="change the method, or serve it merged") for why in vllm["refused"]]


def _memory_problems(estimate: dict) -> list[Problem]:
    available = _available_bytes()
    if available is None or estimate["peak_memory_bytes"] <= available:
        return []
    return [Problem(code="memory", severity="warning", fix="lower train.tokens_per_pack: the result is the same",
                    message=f"about {estimate['peak_memory_bytes'] / 1e9:.1f} GB are needed and "
                            f"{available / 1e9:.1f} GB are free")]


def _available_bytes() -> int | None:
    import os

    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):  # not known on this system
        return None
