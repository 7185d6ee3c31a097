"""LoRA through PEFT: attach, save, load, merge, estimate. PEFT owns parameter names and files.

    y = W x + s B A x        A: [r, in]   B: [out, r]   s = alpha / r, with rsLoRA alpha / sqrt(r)

Hu et al. 2021 (arXiv 2106.09685). DoRA adds the length of every row of W + s B A (`out` numbers a layer), PiSSA another
start (`pissa.py`), LoRA+ another learning rate for B, `modules_to_save` whole copies of other modules.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tunesmith.errors import RecipeError
from tunesmith.methods import files, pissa
from tunesmith.methods.files import CONFIG_FILE, WEIGHTS_FILE, merge_peft  # noqa: F401 - of every adapter
from tunesmith.methods.targets import Estimate, Part, Target, chosen, decoder_layers, fits, no_such
from tunesmith.models.load import quiet_transformers

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from torch import nn
    from transformers import PreTrainedModel

    from tunesmith.recipe.methods import LowRank

USUAL_RATES = (5e-5, 2e-3)


def attach(model: PreTrainedModel, method: LowRank, base_ref: str) -> PeftModel:
    """Add trainable float32 A (Kaiming) and B (zero) to every target. Draws from torch's global generator.

    Raises:
        RecipeError: a name means nothing in this base, or a module that cannot be trained whole.
    """
    from peft import get_peft_model

    planned = targets(model, method)
    saved = saved_modules(model, method)
    if saved and model.dtype.itemsize < 4:
        raise RecipeError("method.modules_to_save: modules that are trained whole need float32",
                          why=f"the base is in {str(model.dtype).removeprefix('torch.')}, which rounds most steps away",
                          fix="set train.dtype: float32")
    with quiet_transformers():
        made_config = config(method, base_ref, _names(planned, method), list(saved))
        peft_model = get_peft_model(model, made_config, autocast_adapter_dtype=True)
    made = peft_model.peft_config["default"]
    made.base_model_name_or_path = base_ref  # PEFT puts the path of the loaded base there
    made.target_modules = sorted(made.target_modules)  # PEFT makes it a set: the file would differ from run to run
    if getattr(method, "init", None) == "pissa":
        pissa.start(peft_model)
    return peft_model


def config(method: LowRank, base_ref: str, names: Literal["all-linear"] | list[str] | None = None,
           saved: list[str] | None = None) -> LoraConfig:
    """PEFT's, as it will stand beside the weights (with PiSSA, `pissa.saved_config` of it)."""
    from peft import LoraConfig, TaskType

    return LoraConfig(r=method.rank, lora_alpha=method.alpha, lora_dropout=method.dropout, use_rslora=method.rslora,
                      use_dora=getattr(method, "dora", False), rank_pattern=dict(method.rank_pattern),
                      alpha_pattern=dict(method.alpha_pattern), modules_to_save=saved or list(method.modules_to_save) or None,
                      target_modules=names or method.targets, task_type=TaskType.CAUSAL_LM, bias="none",
                      base_model_name_or_path=base_ref)


def _names(planned: list[Target], method: LowRank) -> Literal["all-linear"] | list[str]:
    """PEFT's own `layers_to_transform` takes what it can match and is silent about the rest: full names mean themselves."""
    return [t.name for t in planned] if method.layers_to_transform or method.modules_to_save else method.targets


def targets(model: PreTrainedModel, method: LowRank) -> list[Target]:
    """The layers that `attach` would adapt. Works on a model on the meta device.

    Raises:
        RecipeError: as `attach`.
    """
    found = chosen(model, method.targets)
    if method.layers_to_transform is not None:
        name, layers = decoder_layers(model)
        if odd := [n for n in method.layers_to_transform if n >= len(layers)]:
            raise RecipeError(f"method.layers_to_transform: there is no layer {odd[0]}",
                              fix=f"the base has {len(layers)}, from 0 to {len(layers) - 1}")
        found = [t for t in found if any(t.name.startswith(f"{name}.{n}.") for n in method.layers_to_transform)]
        if not found:
            raise RecipeError("method.layers_to_transform: none of method.targets stands in these layers")
    for key in ("rank_pattern", "alpha_pattern"):
        for given in getattr(method, key):
            if not any(_pattern([given], t.name) for t in found):
                raise no_such(given, [t.name for t in found], f"method.{key}", "adapted layer")
    return found


def _pattern(patterns: list[str], name: str) -> str | None:
    """The first pattern that fits, in the way of PEFT."""
    import re

    return next((p for p in patterns if re.match(rf"(.*\.)?({p})$", name)), None)


def rank_of(method: LowRank, name: str) -> int:
    return method.rank_pattern.get(_pattern(list(method.rank_pattern), name), method.rank)


def saved_modules(model: PreTrainedModel, method: LowRank) -> dict[str, nn.Module]:
    """The modules of `modules_to_save` by their full names.

    PEFT takes every module whose name *ends* with a given one (`norm` would be three kinds), ignores those that fit none,
    and copies a tied head away from its embedding.

    Raises:
        RecipeError: a name that fits nothing, has adapters of its own, or is tied to another module.
    """
    if not method.modules_to_save:
        return {}
    modules = {n: m for n, m in model.named_modules() if n and next(m.parameters(), None) is not None}
    adapted = {t.name for t in chosen(model, method.targets)}
    head, words = model.get_output_embeddings(), model.get_input_embeddings()
    found: dict[str, nn.Module] = {}
    for given in method.modules_to_save:
        mine = {n: m for n, m in modules.items() if fits(n, given)}
        if not mine:
            raise no_such(given, modules, "method.modules_to_save", "module")
        for name, module in mine.items():
            if any(m in (head, words) for m in module.modules()) and head is not None and head.weight is words.weight:
                raise RecipeError(f"method.modules_to_save: {given} is tied to another module of this base",
                                  why="input embedding and head are one weight; training a copy of one would leave the other "
                                      "as it was, and a merged checkpoint has room for only one",
                                  fix="leave it out, or train every weight with method: {type: full}")
            if inside := [a for a in adapted if a == name or a.startswith(name + ".")]:
                raise RecipeError(f"method.modules_to_save: {given} is trained whole and has an adapter ({inside[0]})",
                                  fix="take it out of method.targets or of method.modules_to_save")
        found |= mine
    return found


def trainable_parameters(matched: list[Target], rank: int) -> int:
    """r * (in + out) for each adapted layer."""
    return sum(rank * (t.inputs + t.outputs) for t in matched)


def estimate(model: PreTrainedModel, method: LowRank) -> Estimate:
    """r (in + out) a layer, with DoRA out more, and the modules that are trained whole. Works on the meta device."""
    dora = getattr(method, "dora", False)
    parts = [Part(t.name, t.inputs, t.outputs, rank_of(method, t.name) * (t.inputs + t.outputs) + dora * t.outputs)
             for t in targets(model, method)]
    adapter = sum(p.parameters for p in parts) * (2 if getattr(method, "init", None) == "pissa" else 1)
    for name, module in saved_modules(model, method).items():
        shape = next(module.parameters()).shape
        parts.append(Part(name, shape[-1], shape[0], sum(p.numel() for p in module.parameters())))
        adapter += parts[-1].parameters
    # DoRA goes PEFT's way: of each layer it keeps the outputs of base and adapter, and a float32 copy of the input
    outputs, inputs = (sum(getattr(p, side) for p in parts) if dora else 0 for side in ("outputs", "inputs"))
    return Estimate(parts=parts, adapter_bytes=4 * adapter, kept_bytes_per_token=8 * outputs, copied_inputs=inputs)


def learning_rate_ratios(method: LowRank) -> dict[str, float]:
    """{part of a parameter's name: its learning rate over the others'}."""
    return {"lora_B": method.lora_plus_ratio} if method.lora_plus_ratio != 1.0 else {}


def save(model: PeftModel, directory: Path) -> None:
    """Write a plain PEFT directory. The caller makes it atomic (`store.files.publish_directory`).

    Raises:
        StoreError: a full disk, which safetensors does not report as an OSError.
    """
    files.save_peft(model, directory)
    if pissa.used(model):
        pissa.save(model, directory)


def load(model: PreTrainedModel | PeftModel, directory: Path, *, name: str = "default", trainable: bool = False) -> PeftModel:
    """Put an adapter on a base (or beside the adapters already on it, which stay as they are when it is refused).

    Raises:
        AdapterError: no adapter there, or its tensors are not exactly those that its config makes on this base.
    """
    return files.load_peft(model, directory, name=name, trainable=trainable)


def restore(model: PeftModel, tensors: dict[str, torch.Tensor]) -> None:
    """Put the tensors of a checkpoint back, in place. Raises ValueError when they do not fit."""
    if pissa.used(model):
        tensors = pissa.restore(model, tensors)
    files.restore_peft(model, tensors)


def merge(model: PeftModel) -> PreTrainedModel:
    """W + s B A in every layer, in the base's dtype, in place. Of PiSSA, what is saved is merged.

    Raises:
        AdapterError: the merged weights are not finite.
    """
    if pissa.used(model):
        with tempfile.TemporaryDirectory(prefix="tunesmith-") as folder:
            save(model, Path(folder))
            model = load(model.unload(), Path(folder))
    return merge_peft(model)


def unmoved(model: PeftModel) -> str | None:
    """Why this adapter changes nothing, or None. B starts at zero, and with PiSSA A and B at what is subtracted."""
    if pissa.used(model):
        return pissa.unmoved(model)
    if any(p.detach().abs().max() > 0 for name, p in model.named_parameters() if "lora_B" in name):
        return None
    for name, p in model.named_parameters():
        if ".modules_to_save." in name and p.requires_grad:
            before, key = name.split(".modules_to_save.")
            original = model.get_submodule(before).original_module.get_parameter(key.split(".", 1)[1])
            if not p.detach().equal(original.detach().to(p.dtype)):
                return None
    return "every lora_B is still zero"
