"""Bottleneck adapters: a small MLP behind the MLP, or the attention, of every decoder layer.

    h' = h + W_up f(W_down h + b_down) + b_up       W_down: [m, d]   W_up: [d, m]   2 d m + m + d parameters

Houlsby et al. 2019 (arXiv 1902.00751) put one behind both, Pfeiffer et al. 2020 (arXiv 2005.00052) one behind the MLP.
W_up and both biases start at zero, so the start is the base. PEFT has none: the files are like PEFT's, with
`peft_type: BOTTLENECK`, and only this package loads them. Being curved, an adapter cannot be merged into the base.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from tunesmith.errors import AdapterError, RecipeError
from tunesmith.methods import files
from tunesmith.methods.adapted import Adapted, alone, copy_into
from tunesmith.methods.targets import Estimate, Part, decoder_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tunesmith.recipe.methods import Bottleneck

PEFT_TYPE = "BOTTLENECK"
USUAL_RATES = (1e-4, 2e-3)
PLACES = {"mlp": ("mlp", "feed_forward"), "attention": ("self_attn", "attn", "attention", "self_attention")}
ACTIVATIONS = {"relu": nn.functional.relu, "gelu": nn.functional.gelu, "silu": nn.functional.silu}


class Block(nn.Module):
    """down, nonlinearity, up, in the dtype of what comes in; the weights are float32."""

    def __init__(self, width: int, size: int, activation: str):
        super().__init__()
        self.down, self.up = nn.Linear(width, size), nn.Linear(size, width)
        self.activation = ACTIVATIONS[activation]
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        inner = self.activation(nn.functional.linear(h, self.down.weight.to(h.dtype), self.down.bias.to(h.dtype)))
        return h + nn.functional.linear(inner, self.up.weight.to(h.dtype), self.up.bias.to(h.dtype))


class WithBlocks(Adapted):
    adapted_by = "bottleneck"

    def __init__(self, base: nn.Module, config: dict):
        super().__init__(base, config)
        self.blocks = nn.ModuleDict()
        for name, module in places(base, config["after"]).items():
            block = Block(base.config.get_text_config().hidden_size, config["size"], config["activation"]).to(base.device)
            self.blocks[name.replace(".", "-")] = block
            module.register_forward_hook(self._behind(block))

    def _behind(self, block: Block):
        return lambda _module, _args, output: changed(output, block) if self.enabled else None

    def trained(self) -> dict[str, nn.Parameter]:
        return {f"{name.replace('-', '.')}": p for name, p in self.blocks.named_parameters()}


def changed(output, change: Callable[[torch.Tensor], torch.Tensor]):
    """A module's output with other hidden states: they are all of it, or the first of a tuple."""
    return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)


def places(model: PreTrainedModel, after: list[str]) -> dict[str, nn.Module]:
    """The modules behind which a block stands, by name: `3.mlp`. Raises RecipeError where a base has none of that kind."""
    _, layers = decoder_layers(model)
    found = {}
    for number, layer in enumerate(layers):
        for place in after:
            child = next((n for n, _ in layer.named_children() if n in PLACES[place]), None)
            if child is None:
                raise RecipeError(f"method.after: layer {number} of {model.config.model_type!r} has no module for {place!r}",
                                  fix=f"it has: {', '.join(n for n, _ in layer.named_children())}")
            found[f"{number}.{child}"] = getattr(layer, child)
    return found


def attach(model: PreTrainedModel, method: Bottleneck, base_ref: str) -> WithBlocks:
    """Put blocks behind the modules that the method names. Draws from torch's global generator.

    Raises:
        RecipeError: the base has no such modules.
    """
    return WithBlocks(model.requires_grad_(False), config(method, base_ref))


def config(method: Bottleneck, base_ref: str) -> dict:
    return {"peft_type": PEFT_TYPE, "task_type": "CAUSAL_LM", "base_model_name_or_path": base_ref, "size": method.size,
            "activation": method.activation, "after": list(method.after)}


def estimate(model: PreTrainedModel, method: Bottleneck) -> Estimate:
    """2 d m + m + d a block. Kept for backward: its input, in 4 bytes at most, and m inner units twice."""
    width, size = model.config.get_text_config().hidden_size, method.size
    parts = [Part(n, width, width, 2 * width * size + size + width) for n in places(model, method.after)]
    return Estimate(parts=parts, adapter_bytes=4 * sum(p.parameters for p in parts),
                    kept_bytes_per_token=len(parts) * 4 * (width + 2 * size))


def save(model: WithBlocks, directory: Path) -> None:
    """Write config and weights. Raises StoreError: a full disk."""
    files.write(directory, model.peft_config["default"], model.trained())


def load(model: PreTrainedModel, directory: Path, *, name: str = "default", trainable: bool = False) -> WithBlocks:
    """Put saved blocks behind a base's modules.

    Raises:
        AdapterError: no adapter there, its tensors are not exactly those of its config on this base, or the base
            carries another adapter.
    """
    settings = files.read_config(directory)
    base = alone(model, directory)
    tensors = files.read_tensors(directory)
    with files.fitting(directory):
        files.same_shapes(tensors, shapes(base, settings))  # before anything hangs on the base
    made = WithBlocks(base, settings)
    copy_into(made.trained(), tensors)
    made.requires_grad_(False)
    made.blocks.requires_grad_(trainable)
    return made.train(trainable)


def shapes(model: PreTrainedModel, settings: dict) -> dict[str, torch.Size]:
    """Shape of each tensor that these settings make on a base, by its name in the file: `3.mlp.down.weight`.

    Raises:
        ValueError: the settings are not known here, or (RecipeError) the base has no such places.
        KeyError: one of them is missing.
    """
    if settings["activation"] not in ACTIVATIONS or not set(settings["after"]) <= set(PLACES):
        raise ValueError(f"activation {settings['activation']!r} after {settings['after']}: not known here")
    width, size = model.config.get_text_config().hidden_size, settings["size"]
    parts = {"down.weight": (size, width), "down.bias": (size,), "up.weight": (width, size), "up.bias": (width,)}
    return {f"{n}.{part}": torch.Size(shape) for n in places(model, settings["after"]) for part, shape in parts.items()}


def restore(model: WithBlocks, tensors: dict[str, torch.Tensor]) -> None:
    """Put the tensors of a checkpoint back, in place. Raises ValueError when they do not fit."""
    copy_into(model.trained(), tensors)


def merge(model: WithBlocks) -> PreTrainedModel:
    """Raises AdapterError: there is no such model."""
    raise AdapterError("a bottleneck adapter cannot be merged", why="its nonlinearity is no weight of the base",
                       fix="serve it as an adapter, or train LoRA, which merges")


def unmoved(model: WithBlocks) -> str | None:
    """Why this adapter changes nothing, or None."""
    if any(p.detach().any() for n, p in model.trained().items() if ".up." in n):
        return None
    return "every up projection is still zero"
