"""QLoRA: LoRA on a base whose linear layers are in 4 bits (Dettmers et al. 2023, arXiv 2305.14314).

The adapter's files are those of LoRA, and `quantisation.json` beside them says how the base was quantised, so that what
is evaluated and served is what was trained. The head, the embedding and the norms stay as they are.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from tunesmith.engine.memory import give_back
from tunesmith.engine.nf4 import Nf4Linear, packed_bytes
from tunesmith.errors import AdapterError, RecipeError
from tunesmith.methods import QUANTISATION_FILE, files, lora
from tunesmith.methods.lora import USUAL_RATES, config, learning_rate_ratios, restore, targets, unmoved  # noqa: F401
from tunesmith.methods.targets import Estimate, linear_layers

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from tunesmith.recipe.methods import Qlora

Onto = Literal["dequantised", "original"]


def attach(model: PreTrainedModel, method: Qlora, base_ref: str) -> PeftModel:
    """Quantise the base in place and add LoRA to it.

    Raises:
        RecipeError: as `lora.attach`, or the base's linear layers are not `nn.Linear`.
    """
    quantise(model, method.block_size, method.double_quant)
    made = lora.attach(model, method, base_ref)
    made.adapted_by = "qlora"
    return made


def quantise(model: PreTrainedModel, block: int, double: bool) -> None:
    """Every linear layer but the head becomes an `Nf4Linear`, one after the other, in place."""
    for name, module in linear_layers(model).items():
        if not isinstance(module, nn.Linear):
            raise RecipeError(f"method.type: qlora cannot quantise {name}, a {type(module).__name__}",
                              fix="use method: {type: lora}")
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, Nf4Linear(module, block, double).train(module.training))
    del module
    give_back()  # what the weights occupied lies in pieces that no activation fits into


def estimate(model: PreTrainedModel, method: Qlora) -> Estimate:
    """LoRA's parameters; the quantised layers' codes and scales, and the largest of them once dequantised in 4 bytes."""
    of_lora = lora.estimate(model, method)
    sizes = [m.weight.numel() for m in linear_layers(model).values()]
    held = sum(packed_bytes(n, method.block_size, method.double_quant) for n in sizes) + 4 * max(sizes)
    return Estimate(parts=of_lora.parts, adapter_bytes=of_lora.adapter_bytes, replaced_parameters=sum(sizes),
                    replaced_bytes=held)


def save(model: PeftModel, directory: Path) -> None:
    """Write a plain PEFT directory of LoRA, and how its base is quantised. Raises StoreError: a full disk."""
    lora.save(model, directory)
    one = next(m for m in model.modules() if isinstance(m, Nf4Linear))
    (directory / QUANTISATION_FILE).write_text(json.dumps(
        {"quant_type": "nf4", "block_size": one.block, "double_quant": one.double, "layers": "every linear layer but the head"},
        indent=2), encoding="utf-8")


def load(model: PreTrainedModel | PeftModel, directory: Path, *, name: str = "default", trainable: bool = False) -> PeftModel:
    """Quantise the base as it was trained on, unless it is, and put the adapter on it.

    Raises:
        AdapterError: no adapter there, it does not fit, or what the base carries needs it otherwise.
    """
    with files.fitting(directory):
        wanted = json.loads((directory / QUANTISATION_FILE).read_text(encoding="utf-8"))
        if wanted["quant_type"] != "nf4":
            raise ValueError(f"{QUANTISATION_FILE} says {wanted['quant_type']}: nf4 is known")
        block, double = wanted["block_size"], wanted["double_quant"]
    found = {(m.block, m.double) for m in model.modules() if isinstance(m, Nf4Linear)}
    if not found and hasattr(model, "peft_config"):
        raise AdapterError("this adapter was trained on a quantised base", where=str(directory),
                           why="the base here is not, and carries other adapters",
                           fix="load it on a base of its own, or merge it")
    if not found:
        quantise(model, block, double)
    elif found != {(block, double)}:
        raise AdapterError("the base is quantised in another way", where=str(directory),
                           why=f"the adapter's has block_size {block}, double_quant {double}",
                           fix="load it on a base of its own")
    made = lora.load(model, directory, name=name, trainable=trainable)
    made.adapted_by = "qlora"
    return made


def merge(model: PeftModel, onto: Onto = "dequantised", original: PreTrainedModel | None = None) -> PreTrainedModel:
    """A model without quantisation, in one of two ways that differ by the quantisation's error.

    `dequantised`: the weights that the adapter was trained on, plus it: answers as in training, up to rounding.
    `original`: the adapter on the base as it was before (`original`, which is changed in place): its weights are more
    exact, but the adapter has learned to live with the others.

    Raises:
        AdapterError: the merged weights are not finite, or `original` is missing.
    """
    if onto == "original":
        if original is None:
            raise AdapterError("merging onto the original base needs it", fix="load the base again and give it as original")
        with tempfile.TemporaryDirectory(prefix="tunesmith-") as folder:
            lora.save(model, Path(folder))
            return lora.merge(lora.load(original, Path(folder)))
    for parent in list(model.modules()):
        for key, module in list(parent.named_children()):
            if isinstance(module, Nf4Linear):
                setattr(parent, key, dense(module))
    return lora.merge(model)


@torch.no_grad()
def dense(layer: Nf4Linear) -> nn.Linear:
    """An ordinary layer with the weights that 4 bits made."""
    made = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    made.weight = nn.Parameter(layer.weight, requires_grad=False)
    if layer.bias is not None:
        made.bias = layer.bias
    return made
