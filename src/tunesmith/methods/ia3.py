"""IA3 through PEFT: a factor for each key, value and inner unit of the MLP (Liu et al. 2022, arXiv 2205.05638).

    outputs scaled:  y = l * (W x + b)       l: [out]      keys and values
    inputs scaled:   y = W (l * x) + b       l: [in]       the MLP's last layer

Factors start at 1, so the start is the base.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.errors import RecipeError
from tunesmith.methods import files
from tunesmith.methods.targets import Estimate, Part, Target, chosen, fits, linear_layers, short_names
from tunesmith.models.load import quiet_transformers

if TYPE_CHECKING:
    import torch
    from peft import IA3Config, PeftModel
    from transformers import PreTrainedModel

    from tunesmith.recipe.methods import Ia3

USUAL_RATES = (2e-3, 2e-2)
KEYS_AND_VALUES = (("k_proj", "v_proj"), ("qkv_proj",), ("c_attn",), ("query_key_value",))
LAST_OF_MLP = ("down_proj", "fc2", "mlp.c_proj", "dense_4h_to_h", "w2")
"""Names that decoders of transformers have; the first that a base has counts. In a fused layer queries are scaled too."""


def attach(model: PreTrainedModel, method: Ia3, base_ref: str) -> PeftModel:
    """Add float32 factors of 1. Draws nothing that is used from torch's generator.

    Raises:
        RecipeError: a name means no linear layer of this base.
    """
    from peft import get_peft_model

    planned, inner = targets(model, method)
    with quiet_transformers():
        made = get_peft_model(model, config(method, base_ref, planned, inner), autocast_adapter_dtype=True)
    settings = made.peft_config["default"]
    settings.base_model_name_or_path = base_ref
    settings.target_modules = sorted(settings.target_modules)
    settings.feedforward_modules = sorted(settings.feedforward_modules)
    for parameter in made.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return made


def config(method: Ia3, base_ref: str, planned: list[Target] = (), inner: list[str] = ()) -> IA3Config:
    from peft import IA3Config, TaskType

    return IA3Config(task_type=TaskType.CAUSAL_LM, target_modules=[t.name for t in planned] or ["auto"],
                     feedforward_modules=list(inner), base_model_name_or_path=base_ref)


def targets(model: PreTrainedModel, method: Ia3) -> tuple[list[Target], list[str]]:
    """(scaled layers, names of those whose inputs are scaled). Raises RecipeError as `attach`."""
    linear = linear_layers(model)
    last = next(([n] for n in LAST_OF_MLP if any(fits(name, n) for name in linear)), [])
    if method.targets == "auto":
        scaled = next((list(names) for names in KEYS_AND_VALUES if all(any(fits(n, g) for n in linear) for g in names)), None)
        if not scaled or not last:
            raise RecipeError("method.targets: which layers make keys and values is not known for this base",
                              fix=f"name them, and method.feedforward; it has: {', '.join(short_names(linear))}")
        planned = chosen(model, scaled + last)
    else:
        planned = chosen(model, method.targets)
    wanted = last if method.feedforward == "auto" else method.feedforward
    if method.feedforward != "auto" and wanted:
        inside = {t.name for t in chosen(model, wanted, "method.feedforward")}
        if outside := inside - {t.name for t in planned}:
            raise RecipeError(f"method.feedforward: {sorted(outside)[0]} is not among method.targets",
                              fix="name it in both: targets are all that is scaled, feedforward those scaled before the layer")
    return planned, [t.name for t in planned if any(fits(t.name, g) for g in wanted)]


def estimate(model: PreTrainedModel, method: Ia3) -> Estimate:
    """`out` factors a layer, `in` for the MLP's last. Kept for backward: what each factor is multiplied with."""
    planned, inner = targets(model, method)
    parts = [Part(t.name, t.inputs, t.outputs, t.inputs if t.name in inner else t.outputs) for t in planned]
    trainable = sum(p.parameters for p in parts)
    return Estimate(parts=parts, adapter_bytes=4 * trainable, kept_bytes_per_token=4 * trainable)


def save(model: PeftModel, directory: Path) -> None:
    """Write a plain PEFT directory. Raises StoreError: a full disk."""
    files.save_peft(model, directory)


def load(model: PreTrainedModel | PeftModel, directory: Path, *, name: str = "default", trainable: bool = False) -> PeftModel:
    """Raises AdapterError: no adapter there, or it does not fit."""
    made = files.load_peft(model, directory, name=name, trainable=trainable)
    for parameter_name, parameter in made.named_parameters():
        if "ia3_l" in parameter_name:
            parameter.data = parameter.data.float()
    return made


def restore(model: PeftModel, tensors: dict[str, torch.Tensor]) -> None:
    """Put the tensors of a checkpoint back, in place. Raises ValueError when they do not fit."""
    files.restore_peft(model, tensors)


def merge(model: PeftModel) -> PreTrainedModel:
    """The factors times the rows, or the columns, of each weight, in the base's dtype, in place."""
    return files.merge_peft(model)


def unmoved(model: PeftModel) -> str | None:
    """Why this adapter changes nothing, or None."""
    if all(p.detach().eq(1).all() for name, p in model.named_parameters() if "ia3_l" in name):
        return "every factor is still 1"
    return None
