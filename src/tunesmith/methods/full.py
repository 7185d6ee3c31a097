"""Full fine-tuning: every weight is trained, in float32, and the adapter's directory holds all of them.

    adapter_config.json         {"peft_type": "FULL", the base's name and digest}
    adapter_model.safetensors   every parameter, float32, tied ones once

Loading puts them in the base's place; switching the adapter off puts the base's own back. ADR 10 says why whole
weights and not differences.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from tunesmith.errors import AdapterError
from tunesmith.methods import files
from tunesmith.methods.adapted import Adapted, alone, copy_into
from tunesmith.methods.targets import Estimate, Part

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tunesmith.recipe.methods import Full

PEFT_TYPE = "FULL"
USUAL_RATES = (1e-6, 3e-5)


class Whole(Adapted):
    adapted_by = "full"

    def __init__(self, base: nn.Module, config: dict, own: dict[str, nn.Parameter] | None):
        """`own`: the base's parameters, to switch back to; None: training overwrites them, and the base is there until then."""
        super().__init__(base, config)
        self._own = own
        self._tuned = dict(base.named_parameters()) if own is not None else None

    def _switch(self, on: bool) -> None:
        if on != self.enabled and self._own is None and not self.unmoved():
            raise AdapterError("the base's own weights are gone", why="full fine-tuning changes them in place",
                               fix="load the base a second time, or load the trained weights onto a base")
        if on != self.enabled and self._own is not None:
            _replace(self.base, self._tuned if on else self._own)
        self.enabled = on

    def trained(self) -> dict[str, nn.Parameter]:
        return dict(self.base.named_parameters())


def attach(model: PreTrainedModel, method: Full, base_ref: str) -> Whole:
    """Make every parameter trainable, in float32, in place. Draws nothing."""
    model.float().requires_grad_(True)
    made = Whole(model, config(method, base_ref), None)
    made.remember_start()
    return made


def config(method: Full, base_ref: str) -> dict:
    return {"peft_type": PEFT_TYPE, "task_type": "CAUSAL_LM", "base_model_name_or_path": base_ref}


def estimate(model: PreTrainedModel, method: Full) -> Estimate:
    """Every parameter, tied ones once. Works on the meta device."""
    parts = [Part(n.removesuffix(".weight"), p.shape[-1], p.shape[0] if p.ndim > 1 else 1, p.numel())
             for n, p in model.named_parameters()]
    count = sum(p.parameters for p in parts)
    return Estimate(parts=parts, adapter_bytes=4 * count, replaced_parameters=count, weight_gradients=True)


def save(model: Whole, directory: Path) -> None:
    """Write config and weights. Raises StoreError: a full disk."""
    files.write(directory, model.peft_config["default"], model.trained())


def load(model: PreTrainedModel, directory: Path, *, name: str = "default", trainable: bool = False) -> Whole:
    """Put trained weights in the base's place, in float32. The base's own are kept, to switch back to, unless `trainable`.

    Raises:
        AdapterError: no weights there, not exactly those of this base, or the base carries an adapter.
    """
    settings = files.read_config(directory)
    base = alone(model, directory)
    tensors = files.read_tensors(directory)
    own = dict(base.named_parameters())
    with files.fitting(directory):
        files.same_tensors(tensors, own)
    _replace(base, {n: nn.Parameter(t.to(own[n].device, torch.float32), requires_grad=trainable) for n, t in tensors.items()})
    for module in base.modules():
        for key, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                module._buffers[key] = buffer.float()
    own = {n: nn.Parameter(p.detach().float(), requires_grad=False) for n, p in own.items()}
    made = Whole(base, settings, None if trainable else own)
    if trainable:
        made.remember_start()
    return made


def _replace(model: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
    """Put other parameters where these names are, and everywhere that the one there is tied to."""
    now = dict(model.named_parameters())
    places = {id(p): parameters[n] for n, p in now.items()}
    for module in model.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[key] = places[id(parameter)]


def restore(model: Whole, tensors: dict[str, torch.Tensor]) -> None:
    """Put the weights of a checkpoint back, in place. Raises ValueError when they do not fit."""
    copy_into(model.trained(), tensors)


def merge(model: Whole) -> PreTrainedModel:
    """The model with its trained weights: there is nothing to add up."""
    model._switch(True)
    return model.base


def unmoved(model: Whole) -> str | None:
    """Why training changed nothing, or None."""
    return "every weight is still the base's" if model.unmoved() else None
