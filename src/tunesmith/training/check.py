"""Everything that can be known before step 1, and all of it at once."""

from __future__ import annotations

import dataclasses
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
FAR_OFF = 5
"""A learning rate so many times outside of what is usual for a method is of another method."""


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
        problems += _method_problems(loaded, base, dataset)
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

    from tunesmith import methods
    from tunesmith.engine import estimate as arithmetic
    from tunesmith.engine.memory import resident_bytes
    from tunesmith.engine.precision import choose
    from tunesmith.methods import report
    from tunesmith.models.load import parameter_count, quiet_transformers

    recipe = loaded.recipe
    try:
        with torch.device("meta"), quiet_transformers():
            config = AutoConfig.from_pretrained(base.path, trust_remote_code=False)
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise BaseModelError(f"base {base.ref!r} cannot be loaded as a causal language model", where=str(base.path),
                             why=str(error).splitlines()[0]) from error
    needs = methods.of(recipe.method).estimate(model, recipe.method)
    trainable = needs.trainable
    choice = choose(methods.wanted_dtype(recipe.method, recipe.train.dtype))
    engine = _engine(recipe, config.get_text_config(), choice.device)
    shape = arithmetic.Shape.of(config.get_text_config(), parameter_count(base), trainable, choice.dtype.itemsize)
    # a weight with a gradient costs 6 FLOPs a token, of which the frozen base's 4 are counted already
    timed = dataclasses.replace(shape, trainable=shape.parameters // 3) if needs.weight_gradients else shape
    rate = arithmetic.flops_per_second(shape, choice.dtype, choice.device)
    lengths = rows_of(recipe, dataset, TRAIN).lengths
    steps = plan_steps(lengths, tokens_per_step=recipe.train.tokens_per_step, tokens_per_pack=recipe.train.tokens_per_pack,
                       epochs=recipe.train.epochs, max_steps=recipe.train.max_steps, seed=recipe.train.seed)
    rows = [[lengths[r] + needs.tokens_per_row for r in pack] for step in steps for pack in step.packs]
    packs = [max(pack) * len(pack) if engine == "plain" else sum(pack) for pack in rows]
    trained = dataset.manifest["counts"]["trained_tokens"] / dataset.manifest["counts"]["tokens"]
    process = resident_bytes() + needs.replaced_bytes - needs.replaced_parameters * shape.bytes_per_weight

    def peak(pack_tokens: int) -> int:
        return (arithmetic.peak_memory_bytes(shape, pack_tokens, max(lengths), engine, process)
                + needs.kept_bytes_per_token * pack_tokens)

    found = {
        "peak_memory_bytes": peak(max(packs)),
        "seconds": round(arithmetic.seconds(timed, sum(packs), int(sum(packs) * trained), rate, engine), 1),
        "trainable_parameters": trainable, "adapter_bytes": needs.adapter_bytes, "steps": len(steps),
        "tokens": sum(map(sum, rows)), "matched_layers": len(needs.parts),
        "dtype": str(choice.dtype).removeprefix("torch."), "engine": engine,
        "longest_row": max(map(max, rows)), "smaller_packs": _smaller(peak, max(packs), max(map(max, rows))),
    }
    return found, report.by_module(needs.parts), {"vllm": report.vllm(methods.saved_config(recipe.method, base.ref))}


def _engine(recipe, config, device: str) -> str:
    """`kernels`, `torch` or `plain`, as `training.run` will choose."""
    from tunesmith.engine import fast
    from tunesmith.engine.native import build

    method = recipe.method
    plain = (recipe.train.engine == "plain" or method.type in ("prompt", "prefix") or getattr(method, "dropout", 0.0)
             or getattr(method, "modules_to_save", None) or fast.why_not_base(config, recipe.data.max_tokens))
    return "plain" if plain else "kernels" if device == "cpu" and build.start() is None else "torch"


def _smaller(peak: Callable[[int], int], largest: int, row: int) -> list[dict]:
    """`{tokens_per_pack, peak_memory_bytes}`: what halving the largest pack again and again saves, down to one row."""
    found, tokens = [], largest // 2
    while tokens >= row:
        found.append({"tokens_per_pack": tokens, "peak_memory_bytes": peak(tokens)})
        tokens //= 2
    return found


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


def _method_problems(loaded: Loaded, base: Base, dataset: Dataset) -> list[Problem]:
    """A learning rate of another method, and virtual tokens that rows have no room for."""
    import json

    from tunesmith.methods import of

    method, rate = loaded.recipe.method, loaded.recipe.train.learning_rate
    low, high = of(method).USUAL_RATES
    problems = []
    if not low / FAR_OFF <= rate <= FAR_OFF * high:
        problems.append(Problem(code="learning_rate", severity="warning",
                                message=f"train.learning_rate {rate:g} is unusual for method.type {method.type}",
                                fix=f"{low:g} to {high:g} is usual"))
    room = json.loads((base.path / "config.json").read_text(encoding="utf-8")).get("max_position_embeddings")
    longest = max(dataset.tokens(TRAIN).lengths) + getattr(method, "tokens", 0)
    if room and longest > room:
        problems.append(Problem(code="context", severity="warning",
                                message=f"the longest row and its virtual tokens are {longest} tokens: the base takes {room}",
                                fix="lower data.max_tokens or method.tokens"))
    return problems


def _memory_problems(estimate: dict) -> list[Problem]:
    """Which knob helps, and by how much."""
    available = _available_bytes()
    if available is None or estimate["peak_memory_bytes"] <= available:
        return []
    smaller = estimate["smaller_packs"]
    fitting = next((pack for pack in smaller if pack["peak_memory_bytes"] <= available), None)
    if fitting:
        fix = (f"train.tokens_per_pack: {fitting['tokens_per_pack']} takes about {fitting['peak_memory_bytes'] / 1e9:.1f} GB; "
               "the result is the same")
    else:
        least = f", and packs of one row still take {smaller[-1]['peak_memory_bytes'] / 1e9:.1f} GB" if smaller else ""
        shorter = f"the longest row has {estimate['longest_row']} tokens{least}: lower data.max_tokens"
        fix = shorter + ("" if estimate["dtype"] == "bfloat16" else ", set train.dtype: bfloat16") + ", or take a smaller base"
    return [Problem(code="memory", severity="warning", fix=fix,
                    message=f"about {estimate['peak_memory_bytes'] / 1e9:.1f} GB are needed and "
                            f"{available / 1e9:.1f} GB are free")]


def _available_bytes() -> int | None:
    import os

    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):  # not known on this system
        return None
