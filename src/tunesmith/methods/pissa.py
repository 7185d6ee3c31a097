"""PiSSA: LoRA that starts at the largest singular values of each weight (Meng et al. 2024, arXiv 2404.02948).

    W = U S V^T      A0 = sqrt(S_r / s) V_r^T      B0 = U_r sqrt(S_r / s)      s = alpha / r

PiSSA trains A and B from A0 and B0 on the base W - s B0 A0. The base is left alone here and the product is subtracted
from the layer's output instead, which is the same sum:

    y = W x + s B A x - s B0 A0 x

So the adapter can be switched off (PEFT's would leave the base without its largest singular values), several adapters
share one base, and what is saved is what was trained: a plain LoRA of rank 2r for the base as it is, [A; A0] and
[B, -B0]. It costs the thin products twice.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.methods.files import CONFIG_FILE, WEIGHTS_FILE, full_disk

if TYPE_CHECKING:
    import torch
    from peft import PeftModel


def start(model: PeftModel) -> None:
    """Set A and B of every layer, and subtract their product from its output."""
    import torch

    for layer in _layers(model).values():
        weight = layer.get_base_layer().weight.detach().float()
        if layer.fan_in_fan_out or hasattr(layer.get_base_layer(), "nf"):
            weight = weight.T
        a, b, scaling = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.scaling["default"]
        u, s, vt = torch.linalg.svd(weight, full_matrices=False)
        rank = min(a.shape[0], len(s))
        root = (s[:rank] / scaling).sqrt()
        with torch.no_grad():  # a rank above the weight's own leaves the rest at zero in B
            a[:rank].copy_(root[:, None] * vt[:rank])
            b.zero_()[:, :rank].copy_(u[:, :rank] * root)
        layer.register_buffer("pissa_a", a.detach().clone(), persistent=False)
        layer.register_buffer("pissa_b", b.detach().clone(), persistent=False)
        layer.register_forward_hook(_subtract)


def _subtract(layer, args: tuple, output: torch.Tensor) -> torch.Tensor:
    """A hook, so that it holds for PEFT's forward and for the fused one."""
    if layer.disable_adapters or layer.merged:
        return output
    x, scaling = args[0], layer.scaling["default"]
    a, b = layer.pissa_a.to(x.dtype), (layer.pissa_b * scaling).to(x.dtype)
    return output - (x @ a.T) @ b.T


def used(model: PeftModel) -> bool:
    return any(hasattr(layer, "pissa_a") for layer in _layers(model).values())


def save(model: PeftModel, directory: Path) -> None:
    """Turn the files that PEFT wrote into those of a plain LoRA of twice the rank."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / WEIGHTS_FILE)
    for name, layer in _layers(model).items():
        a, b = f"{name}.lora_A.weight", f"{name}.lora_B.weight"
        tensors[a] = torch.cat([tensors[a], layer.pissa_a.cpu()])
        tensors[b] = torch.cat([tensors[b], -layer.pissa_b.cpu()], 1).contiguous()
    config = saved_config(json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8")))
    with full_disk(directory):
        save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})
        (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def saved_config(config: dict) -> dict:
    """Of the plain LoRA with the same scaling: twice the rank, and alpha times 2, with rsLoRA times sqrt(2)."""
    factor = math.sqrt(2) if config.get("use_rslora") else 2.0
    return config | {
        "r": 2 * config["r"], "lora_alpha": factor * config["lora_alpha"], "init_lora_weights": True,
        "rank_pattern": {k: 2 * v for k, v in (config.get("rank_pattern") or {}).items()},
        "alpha_pattern": {k: factor * v for k, v in (config.get("alpha_pattern") or {}).items()}}


def restore(model: PeftModel, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Set what is subtracted from the saved halves, and return A and B alone.

    The halves of the file count, not this machine's decomposition, whose last bits may be others.
    """
    tensors = dict(tensors)
    for name, layer in _layers(model).items():
        a, b = f"{name}.lora_A.weight", f"{name}.lora_B.weight"
        rank = layer.r["default"]
        if a not in tensors or b not in tensors or tensors[a].shape[0] != 2 * rank or tensors[b].shape[1] != 2 * rank:
            raise ValueError(f"{name} is not of rank {2 * rank}, as PiSSA of rank {rank} is saved")
        layer.pissa_a.copy_(tensors[a][rank:])
        layer.pissa_b.copy_(-tensors[b][:, rank:])
        tensors[a], tensors[b] = tensors[a][:rank].contiguous(), tensors[b][:, :rank].contiguous()
    return tensors


def unmoved(model: PeftModel) -> str | None:
    layers = _layers(model).values()
    same = all(layer.lora_A["default"].weight.equal(layer.pissa_a) and layer.lora_B["default"].weight.equal(layer.pissa_b)
               for layer in layers)
    return "every A and B is still what is subtracted" if same else None


def _layers(model: PeftModel) -> dict:
    """LoRA layers of the adapter `default`, by their full names, which are those of the saved tensors."""
    from peft.tuners.lora import LoraLayer

    return {n: m for n, m in model.named_modules() if isinstance(m, LoraLayer) and "default" in m.lora_A}
