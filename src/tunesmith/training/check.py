"""Everything that can be known before step 1, and all of it at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tunesmith.data.dataset import TRAIN, Dataset
from tunesmith.data.leaks import leaked_rows
from tunesmith.data.prepare import prepare
from tunesmith.errors import BaseModelError, Problem, TunesmithError
from tunesmith.models.base import Base, resolve
from tunesmith.models.load import tokenizer_of
from tunesmith.recipe.load import Loaded, load
from tunesmith.recipe.schema import Recipe
from tunesmith.template.fingerprint import fingerprint
from tunesmith.training import advice
from tunesmith.training.objective import rows_of, teacher_of
from tunesmith.training.run import planned, tokenizer_for

MASK_LOW, MASK_HIGH = 0.01, 0.95
"""Shares of trained tokens outside of which the mask is suspicious."""
FAR_OFF = 5
"""A learning rate so many times outside of what is usual for a method is of another method."""


def check(recipe: str | Path, say: Callable[[str], None] = lambda _line: None) -> dict:
    """`{ok, problems, estimate, targets, serving, dataset_id, advice[]}`. A problem of severity error makes `ok` false; none is
    raised.

    Schema, base, rows, template, mask, length, duplicates, leaks, targets, whether memory will do and vLLM will load it.
    """
    result: dict = {"ok": False, "problems": [], "estimate": None, "targets": [], "serving": None, "dataset_id": None,
                    "advice": []}
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
        result["advice"] = advice.advise(_facts(loaded.recipe, base, dataset))
    except TunesmithError as error:
        problems += error.problems or [Problem(code=type(error).__name__, message=error.what, where=error.where,
                                               fix=error.fix or error.why)]
    result["problems"] = [p.as_dict() for p in problems]
    result["ok"] = not any(p.severity == "error" for p in problems)
    return result


def _teaching_bytes(loaded: Loaded, base: Base, p: Plan) -> int:
    """While a teacher that is not yet in the cache answers, before step 1: its weights and files beside the base's weights."""
    from tunesmith.engine.estimate import LIBRARY_BYTES
    from tunesmith.models.load import file_bytes, parameter_count

    if loaded.recipe.objective.type != "distill":
        return 0
    teacher = teacher_of(loaded, base)
    weights = parameter_count(teacher) * p.shape.bytes_per_weight
    return p.loading - file_bytes(base) + weights + file_bytes(teacher) + LIBRARY_BYTES


def on_meta(base: Base):
    """The base without its weights. Raises BaseModelError as `models.load.model_of`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tunesmith.models.load import quiet_transformers

    try:
        with torch.device("meta"), quiet_transformers():
            config = AutoConfig.from_pretrained(base.path, trust_remote_code=False)
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise BaseModelError(f"base {base.ref!r} cannot be loaded as a causal language model", where=str(base.path),
                             why=str(error).splitlines()[0]) from error


def estimate_parameters(loaded: Loaded, base: Base) -> int:
    """Trainable parameters. Raises RecipeError: the method does not fit this base."""
    from tunesmith import methods

    return methods.of(loaded.recipe.method).estimate(on_meta(base), loaded.recipe.method).trainable


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """A training as the estimate sees it."""

    needs: Any
    """methods.targets.Estimate"""
    dtype: Any
    device: str
    engine: str
    shape: Any
    """engine.estimate.Shape"""
    steps: int
    rows: list[list[int]]
    """Tokens of each row of each pack,"""
    packs: list[int]
    """and of each pack, padding included."""
    peak: Callable[[int], int]
    """Bytes of a training whose largest pack has so many tokens."""
    loading: int
    """Bytes while the base is loaded: its weights, and the pages of its files, which the system takes back when it must."""


def plan(recipe: Recipe, base: Base, dataset: Dataset, model) -> Plan:
    """What a recipe's training takes on this base (`on_meta`). Raises RecipeError: a target matches no layer."""
    from tunesmith import methods
    from tunesmith.engine import estimate as arithmetic
    from tunesmith.engine.memory import resident_bytes
    from tunesmith.engine.precision import choose
    from tunesmith.models.load import file_bytes, parameter_count

    config = model.config.get_text_config()
    needs = methods.of(recipe.method).estimate(model, recipe.method)
    choice = choose(methods.wanted_dtype(recipe.method, recipe.train.dtype))
    engine = _engine(recipe, config, choice.device)
    shape = arithmetic.Shape.of(config, parameter_count(base), needs.trainable, choice.dtype.itemsize,
                                needs.adapts_linear)
    lengths = rows_of(recipe, dataset, TRAIN).lengths
    steps = planned(recipe.train, lengths)
    rows = [[lengths[r] + needs.tokens_per_row for r in pack] for step in steps for pack in step.packs]
    packs = [max(pack) * len(pack) if engine == "plain" else sum(pack) for pack in rows]
    started = resident_bytes()
    process = started + needs.replaced_bytes - needs.replaced_parameters * shape.bytes_per_weight
    loaded = started + shape.parameters * shape.bytes_per_weight

    copies = needs.copied_inputs * 4 if engine != "plain" and shape.bytes_per_weight < 4 else 0
    kept = needs.kept_bytes_per_token + copies

    def peak(pack_tokens: int) -> int:
        return max(loaded, arithmetic.peak_memory_bytes(shape, pack_tokens, max(lengths), engine, process, kept))

    return Plan(needs, choice.dtype, choice.device, engine, shape, len(steps), rows, packs, peak, loaded + file_bytes(base))


def estimate(loaded: Loaded, base: Base, dataset: Dataset) -> tuple[dict, list[dict], dict]:
    """(peak memory, seconds, trainable parameters and adapter size; what is adapted; who can serve it), no weights loaded.

    Raises:
        RecipeError: a target matches no layer.
        BaseModelError: as `models.load.model_of`.
    """
    from tunesmith import methods
    from tunesmith.engine import estimate as arithmetic
    from tunesmith.methods import report

    p = plan(loaded.recipe, base, dataset, on_meta(base))
    loading = max(p.loading, _teaching_bytes(loaded, base, p))
    # a weight with a gradient costs 6 FLOPs a token, of which the frozen base's 4 are counted already
    timed = dataclasses.replace(p.shape, trainable=p.shape.parameters // 3) if p.needs.weight_gradients else p.shape
    rate = arithmetic.flops_per_second(p.shape, p.dtype, p.device)
    trained = dataset.manifest["counts"]["trained_tokens"] / dataset.manifest["counts"]["tokens"]
    tokens, longest = sum(p.packs), max(map(max, p.rows))
    found = {
        "peak_memory_bytes": max(p.peak(max(p.packs)), loading), "step_memory_bytes": p.peak(max(p.packs)),
        "seconds": round(arithmetic.seconds(timed, tokens, int(tokens * trained), rate, p.engine), 1),
        "trainable_parameters": p.needs.trainable, "adapter_bytes": p.needs.adapter_bytes, "steps": p.steps,
        "tokens": sum(map(sum, p.rows)), "matched_layers": len(p.needs.parts),
        "dtype": str(p.dtype).removeprefix("torch."), "engine": p.engine,
        "longest_row": longest, "smaller_packs": _smaller(p.peak, max(p.packs), longest),
    }
    serving = {"vllm": report.vllm(methods.saved_config(loaded.recipe.method, base.ref))}
    return found, report.by_module(p.needs.parts), serving


def _facts(recipe: Recipe, base: Base, dataset: Dataset) -> advice.Facts:
    """What each method would take in place of the recipe's. One that this base cannot be trained with is left out."""
    model, counts, varied = on_meta(base), dataset.manifest["counts"], dataset.manifest["diversity"]
    peaks, parameters = {}, {}
    for kind, method in advice.alternatives(recipe.method).items():
        train = recipe.train.model_copy(update={"dtype": "auto"}) if kind == "full" else recipe.train
        with suppress(TunesmithError):
            p = plan(recipe.model_copy(update={"method": method, "train": train}), base, dataset, model)
            peaks[kind], parameters[kind] = p.peak(max(p.packs)), p.needs.trainable
    return advice.Facts(method=recipe.method, peaks=peaks, parameters=parameters, free_bytes=_available_bytes(),
                        trained_tokens=counts["trained_tokens"], varied=varied and varied["vendi"]["share"])


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
    if available is None or estimate["step_memory_bytes"] <= available:
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
                    message=f"about {estimate['step_memory_bytes'] / 1e9:.1f} GB are needed and "
                            f"{available / 1e9:.1f} GB are free")]


def _available_bytes() -> int | None:
    from tunesmith.engine.memory import available_bytes

    return available_bytes()
