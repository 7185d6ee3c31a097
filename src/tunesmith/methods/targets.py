"""Which layers of a base a recipe means: by name, strictly, with the nearest name when nothing fits."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tunesmith.errors import RecipeError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Target:
    """One linear layer that gets an adapter."""

    name: str
    inputs: int
    outputs: int


@dataclass(frozen=True, slots=True)
class Part:
    """Something that is trained: `module` is its short name for people."""

    module: str
    inputs: int
    outputs: int
    parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a method will train and take, from shapes alone."""

    parts: list[Part]
    adapter_bytes: int
    replaced_parameters: int = 0
    """Parameters of the base that are not held in its dtype,"""
    replaced_bytes: int = 0
    """and what they occupy instead, beside what is trained."""
    kept_bytes_per_token: int = 0
    """Kept for the backward pass on top of what LoRA keeps (engine.estimate)."""
    copied_inputs: int = 0
    """Width of the inputs that are copied to float32 on the fast path too, as PEFT does on the plain one."""
    adapts_linear: bool = True
    """Linear layers are adapted, so that their inputs are kept."""
    tokens_per_row: int = 0
    """Virtual tokens that every row is longer by."""
    weight_gradients: bool = False
    """The gradient of every weight of the base is computed too."""

    @property
    def trainable(self) -> int:
        """Trainable parameters."""
        return sum(p.parameters for p in self.parts)


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Every linear layer but the head, by its full name. Works on a model on the meta device."""
    import torch
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer, with its weight transposed

    head = model.get_output_embeddings()
    return {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear | Conv1D) and m is not head}


def target(name: str, module: nn.Module) -> Target:
    if hasattr(module, "nf"):
        return Target(name, module.nx, module.nf)
    return Target(name, module.in_features, module.out_features)


def chosen(model: PreTrainedModel, names: Literal["all-linear"] | list[str], key: str = "method.targets") -> list[Target]:
    """The linear layers that these names mean, in the model's order. A name is a full one or its last parts.

    Raises:
        RecipeError: a name means no linear layer of this base; `key` is the recipe's key.
    """
    linear = linear_layers(model)
    if names == "all-linear":
        return [target(n, m) for n, m in linear.items()]
    for given in names:
        if not any(fits(n, given) for n in linear):
            raise no_such(given, linear, key, "linear layer")
    if not names:
        raise RecipeError(f"{key}: the list is empty", fix="name at least one linear layer: " + ", ".join(short_names(linear)))
    return [target(n, m) for n, m in linear.items() if any(fits(n, g) for g in names)]


def fits(name: str, given: str) -> bool:
    return name == given or name.endswith("." + given)


def no_such(given: str, known: Iterable[str], key: str, what: str) -> RecipeError:
    short = short_names(known)
    near = difflib.get_close_matches(given, short, n=1)
    return RecipeError(f"{key}: {given!r} matches no {what} of the base",
                       fix=f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(short)}")


def short_names(names: Iterable[str]) -> list[str]:
    return sorted({n.rsplit(".", 1)[-1] for n in names})


def decoder_layers(model: PreTrainedModel) -> tuple[str, list[nn.Module]]:
    """(name, layers) of the list of decoder layers.

    Raises:
        RecipeError: it has none that can be told.
    """
    from torch import nn

    count = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, list(module)
    raise RecipeError(f"method: the decoder layers of architecture {model.config.model_type!r} are not known",
                      fix="use method: {type: lora}")
