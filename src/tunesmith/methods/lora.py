"""LoRA through PEFT: attach, save, load, estimate. PEFT owns parameter names and files."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.errors import AdapterError, RecipeError, StoreError
from tunesmith.models.load import quiet_transformers

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

    from tunesmith.recipe.schema import Method

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class Target:
    """One linear layer that gets an adapter."""

    name: str
    inputs: int
    outputs: int


def attach(model: PreTrainedModel, method: Method, base_ref: str) -> PeftModel:
    """Add trainable float32 A (Kaiming) and B (zero) to every target. Draws from torch's global generator.

    Raises:
        RecipeError: a target names no linear layer of this base.
    """
    from peft import get_peft_model

    targets(model, method)
    with quiet_transformers():
        peft_model = get_peft_model(model, config(method, base_ref), autocast_adapter_dtype=True)
    made = peft_model.peft_config["default"]
    made.base_model_name_or_path = base_ref  # PEFT puts the path of the loaded base there
    made.target_modules = sorted(made.target_modules)  # PEFT makes it a set: the file would differ from run to run
    return peft_model


def config(method: Method, base_ref: str) -> LoraConfig:
    """PEFT's, as it will stand beside the weights."""
    from peft import LoraConfig, TaskType

    return LoraConfig(r=method.rank, lora_alpha=method.alpha, lora_dropout=method.dropout, target_modules=method.targets,
                      task_type=TaskType.CAUSAL_LM, bias="none", base_model_name_or_path=base_ref)


def targets(model: PreTrainedModel, method: Method) -> list[Target]:
    """The layers that `attach` would adapt. Works on a model on the meta device.

    Raises:
        RecipeError: as `attach`.
    """
    import torch
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer, with its weight transposed

    head = model.get_output_embeddings()
    linear = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear | Conv1D) and m is not head}
    if method.targets == "all-linear":
        chosen = linear
    else:
        known = sorted({n.rsplit(".", 1)[-1] for n in linear})
        for given in method.targets:
            if not any(n == given or n.endswith("." + given) for n in linear):
                near = difflib.get_close_matches(given, known, n=1)
                raise RecipeError(f"method.targets: {given!r} matches no linear layer of the base",
                                  fix=f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(known)}")
        chosen = {n: m for n, m in linear.items() if any(n == g or n.endswith("." + g) for g in method.targets)}
    return [Target(n, m.nx, m.nf) if isinstance(m, Conv1D) else Target(n, m.in_features, m.out_features)
            for n, m in chosen.items()]


def trainable_parameters(matched: list[Target], rank: int) -> int:
    """r * (in + out) for each adapted layer."""
    return sum(rank * (t.inputs + t.outputs) for t in matched)


def save(model: PeftModel, directory: Path) -> None:
    """Write a plain PEFT directory. The caller makes it atomic (`store.files.publish_directory`).

    Raises:
        StoreError: a full disk, which safetensors does not report as an OSError.
    """
    from safetensors import SafetensorError

    try:
        with quiet_transformers():
            model.save_pretrained(str(directory), safe_serialization=True, save_embedding_layers=False)
    except SafetensorError as error:
        raise StoreError(f"could not write {directory / WEIGHTS_FILE}", why=str(error),
                         fix="free some space, or set TUNESMITH_HOME to a disk that has room") from error
    (directory / "README.md").unlink(missing_ok=True)  # PEFT's blank model card


def load(model: PreTrainedModel | PeftModel, directory: Path, *, name: str = "default", trainable: bool = False) -> PeftModel:
    """Put an adapter on a base (or beside the adapters already on it, which stay as they are when it is refused).

    Raises:
        AdapterError: no adapter there, or its tensors are not exactly those that its config makes on this base.
            PEFT only warns of missing keys, and answers with the base's own weights.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import SafetensorError, safe_open

    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (directory / file).is_file():
            raise AdapterError(f"no {file}", where=str(directory), fix="give the directory of a PEFT adapter")
    beside = isinstance(model, PeftModel)
    try:
        with safe_open(directory / WEIGHTS_FILE, framework="pt") as f:
            stored = set(f.keys())
        with quiet_transformers():
            if beside:
                model.load_adapter(str(directory), adapter_name=name, is_trainable=trainable)
            else:
                model = PeftModel.from_pretrained(model, str(directory), adapter_name=name, is_trainable=trainable)
        expected = set(get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))
        if odd := sorted(stored ^ expected):
            raise ValueError(f"{len(odd)} tensors of the adapter and the base do not match, for example {odd[0]}")
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
        if beside and name in model.peft_config:
            model.delete_adapter(name)
        raise AdapterError("the adapter does not fit this base", where=str(directory),
                           why=f"{type(error).__name__}: {str(error).splitlines()[-1].strip()}",
                           fix="load it on the base it was trained on (see its release's manifest)") from error
    return model
