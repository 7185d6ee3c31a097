"""Give a model's own norms, gates and rotations the C kernels, in place.

A module is replaced by what it computes, not by its name alone: the first of each class is run beside its replacement on
random numbers, and a class that differs is left as it is. Calls that the kernels do not know go to the module's own
forward: weights that are trained, other devices and dtypes.
"""

from __future__ import annotations

import sys

import torch
from torch import nn

from tunesmith.engine.native.build import library_for, used
from tunesmith.engine.native.functions import GELU_TANH, SILU, Gated, RmsNorm, Rotary

MARK = "_tunesmith_original"


def replace(model: nn.Module) -> list[str]:
    """Names of the classes and functions that now use the kernels. Idempotent."""
    done: dict[type, bool] = {}
    for module in model.modules():
        made = None if MARK in vars(module) else _norm(module) or _gate(module)
        if made is None:
            continue
        kind = type(module)
        if kind not in done:
            done[kind] = _agrees(module, made)
        if done[kind]:
            setattr(module, MARK, module.forward)
            module.forward = made
    return sorted([kind.__name__ for kind, agrees in done.items() if agrees] + _rotations(model))


def _norm(module: nn.Module):
    """RMS norms of the Llama kind (w n) and the Gemma kind ((1 + w) n)."""
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not (type(module).__name__.endswith("RMSNorm") and isinstance(eps, float) and list(module._parameters) == ["weight"]):
        return None
    original, weight, offset = module.forward, module.weight, hasattr(module, "_norm")

    def forward(x):
        library = library_for(x)
        if library is None or weight.requires_grad or weight.dtype != x.dtype:
            return original(x)
        return RmsNorm.apply(library, x, module.weight, eps, offset)

    return forward


def _gate(module: nn.Module):
    """MLPs that multiply an activated gate into the inner layer, with two matrices or one for both."""
    act = _activation(getattr(module, "act_fn", getattr(module, "activation_fn", None)))
    names = set(module._modules)
    if act is None or "down_proj" not in names:
        return None
    original = module.forward
    if {"gate_proj", "up_proj"} <= names:
        def halves(x):
            return module.gate_proj(x), module.up_proj(x)
    elif "gate_up_proj" in names:
        def halves(x):
            return module.gate_up_proj(x).chunk(2, dim=-1)
    else:
        return None

    def forward(x):
        library = library_for(x)
        if library is None:
            return original(x)
        return module.down_proj(Gated.apply(library, *halves(x), act))

    return forward


def _activation(module: nn.Module | None) -> int | None:
    """By what it computes."""
    if not isinstance(module, nn.Module):
        return None
    x = torch.linspace(-4, 4, 33)
    with torch.no_grad():
        y = module(x)
    known = {SILU: nn.functional.silu(x), GELU_TANH: nn.functional.gelu(x, approximate="tanh")}
    return next((name for name, values in known.items() if torch.allclose(y, values, rtol=1e-6, atol=1e-6)), None)


@torch.no_grad()
def _agrees(module: nn.Module, made) -> bool:
    """Whether the replacement gives what the module gives, to the rounding of its dtype."""
    weight = next(module.parameters())
    width = weight.shape[-1]
    x = torch.randn(3, width, generator=torch.Generator().manual_seed(0)).to(weight.dtype)
    theirs = module.forward(x).float()
    with used():
        ours = made(x).float()
    return torch.allclose(ours, theirs, rtol=8 * torch.finfo(weight.dtype).eps, atol=8e-3 * theirs.abs().max().item()
                          if weight.dtype == torch.bfloat16 else 1e-5 * theirs.abs().max().item())


def _rotations(model: nn.Module) -> list[str]:
    """The function of a model's source file that turns queries and keys."""
    found = []
    for source in dict.fromkeys(sys.modules[type(m).__module__] for m in model.modules() if "Attention" in type(m).__name__):
        original = getattr(source, "apply_rotary_pos_emb", None)
        if original is None:
            continue
        if not hasattr(original, MARK):
            source.apply_rotary_pos_emb = _rotation(original)
        found.append("apply_rotary_pos_emb")
    return found


def _rotation(original):
    def apply_rotary_pos_emb(q, k, cos, sin, *args, **kwargs):
        library = library_for(q)
        known = not (args or kwargs) and q.ndim == 4 and q.shape[0] == cos.shape[0] == 1 and cos.ndim == 3
        if library is None or not known or not all(x.dtype == q.dtype and x.stride(-1) == 1 for x in (q, k, cos, sin)):
            return original(q, k, cos, sin, *args, **kwargs)
        cos, sin = cos.contiguous(), sin.contiguous()
        return Rotary.apply(library, q, cos, sin), Rotary.apply(library, k, cos, sin)

    setattr(apply_rotary_pos_emb, MARK, original)
    return apply_rotary_pos_emb
