"""A frozen linear layer plus its LoRA, forward and backward in one autograd function.

    y  = x W^T + bias + s (x A^T) B^T           x: [T, in]   W: [out, in]   A: [r, in]   B: [out, r]
    dA = s (dy B)^T x      dB = s dy^T (x A^T)      dx = dy W + s (dy B) A

Saved for backward: x and x A^T (r columns). PEFT's own forward saves the same but runs more kernels and casts x to
float32 and back; `W` gets no gradient because it is frozen. The low-rank products run in x's dtype with A and B cast
once a call; their gradients are returned in A's and B's own dtype. W may be an `nf4.Packed`.
Derivation: Hu et al. 2021 (arXiv 2106.09685), eq. 3.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.autograd.function import once_differentiable


class LoraLinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, lora_a, lora_b, scaling):
        ctx.packed, weight = (None, weight) if torch.is_tensor(weight) else (weight, weight.dequantise(x.dtype))
        a, b = lora_a.to(x.dtype), (lora_b * scaling).to(x.dtype)
        flat = x.reshape(-1, x.shape[-1])
        down = flat @ a.T
        y = torch.addmm(bias, flat, weight.T) if bias is not None else flat @ weight.T
        y = y.addmm_(down, b.T)
        ctx.save_for_backward(flat, down, None if ctx.packed else weight, a, b)
        ctx.scaling, ctx.shape, ctx.lora_dtype = scaling, x.shape, lora_a.dtype
        return y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        flat, down, weight, a, b = ctx.saved_tensors
        dy = grad.reshape(-1, grad.shape[-1])
        up = dy @ b
        grad_a = (up.T @ flat).to(ctx.lora_dtype)
        grad_b = (dy.T @ down).to(ctx.lora_dtype) * ctx.scaling
        grad_x = None
        if ctx.needs_input_grad[0]:
            weight = ctx.packed.dequantise(dy.dtype) if ctx.packed else weight  # again: no copy is kept in between
            grad_x = (dy @ weight).addmm_(up, a).view(ctx.shape)
        return grad_x, None, None, grad_a, grad_b, None


def fused_forward(layer: nn.Module):
    """A `forward` for one PEFT `lora.Linear`: the function above with the adapter that is active at the call.

    The layer must be plain LoRA without dropout: `fast.why_not` checks that. Merged, disabled or several active
    adapters are left to PEFT.
    """
    base, peft_forward = layer.base_layer, layer.forward

    def forward(x, *args, **kwargs):
        active = [name for name in layer.active_adapters if name in layer.lora_A]
        if layer.disable_adapters or layer.merged or kwargs or len(active) != 1:
            return peft_forward(x, *args, **kwargs)
        name = active[0]
        if name in layer.lora_variant or layer.lora_bias.get(name):  # loaded beside a plain one after this was made
            return peft_forward(x, *args, **kwargs)
        return LoraLinearFunction.apply(x, getattr(base, "packed", None) or base.weight, base.bias, layer.lora_A[name].weight,
                                        layer.lora_B[name].weight, layer.scaling[name])

    return forward
