"""Autograd functions around the C kernels. Each computes in float32 and rounds once to the dtype of its input.

Shapes: T = tokens of the pack, H = query heads, K = key/value heads, D = head size, F = inner width, V = words.
What is saved for backward is the input and one float a row, never an upcast copy.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_int64, c_void_p
from typing import TYPE_CHECKING

import torch
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from tunesmith.engine.native.build import Library

SILU, GELU_TANH = 0, 1
"""Activations that `gated` knows, by their number in kernels.c."""
LANES = 16
"""Head sizes are a multiple of this."""


class _Shape(ctypes.Structure):
    _fields_ = [*((n, c_int64) for n in ("heads", "kv_heads", "size", "window")), ("scale", c_float),
                *((n, c_int64) for n in ("q_token", "q_head", "k_token", "k_head", "v_token", "v_head"))]


def _at(x: torch.Tensor) -> c_void_p:
    return c_void_p(x.data_ptr())


class RmsNorm(torch.autograd.Function):
    """w n, or (1 + w) n with `offset`; n = x / sqrt(mean(x^2) + eps), over the last dimension (arXiv 1910.07467)."""

    @staticmethod
    def forward(ctx, library: Library, x, weight, eps: float, offset: bool):
        x = x.contiguous()
        rows, dim = x.numel() // x.shape[-1], x.shape[-1]
        y, scale = torch.empty_like(x), torch.empty(rows)
        library.functions.rms_norm(_at(x), _at(weight), _at(y), _at(scale), c_int64(rows), c_int64(dim), c_float(eps),
                                   c_int(offset))
        ctx.save_for_backward(x, weight, scale)
        ctx.library, ctx.offset = library, offset
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight, scale = ctx.saved_tensors
        dy, dx = dy.contiguous(), torch.empty_like(x)
        ctx.library.functions.rms_norm_backward(_at(dy), _at(x), _at(weight), _at(scale), _at(dx), c_int64(len(scale)),
                                                c_int64(x.shape[-1]), c_int(ctx.offset))
        return None, dx, None, None, None


class Rotary(torch.autograd.Function):
    """Turn the halves of [1, H, T, D] by cos and sin, [1, T, R] with R <= D (arXiv 2104.09864). Laid out as [1, T, H, D]."""

    @staticmethod
    def forward(ctx, library: Library, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        ctx.library = library
        return _turn(library, x, cos, sin, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        dy = dy if dy.stride(-1) == 1 else dy.contiguous()
        return None, _turn(ctx.library, dy, *ctx.saved_tensors, back=True), None, None


def _turn(library: Library, x, cos, sin, back: bool) -> torch.Tensor:
    _, heads, tokens, size = x.shape
    y = torch.empty(1, tokens, heads, size, dtype=x.dtype)
    library.functions.rotary(_at(x), c_int64(x.stride(2)), c_int64(x.stride(1)), _at(cos), _at(sin), _at(y), c_int64(tokens),
                             c_int64(heads), c_int64(size), c_int64(cos.shape[-1]), c_int(back))
    return y.transpose(1, 2)


class Gated(torch.autograd.Function):
    """act(gate) * up, of [..., F] (arXiv 2002.05202)."""

    @staticmethod
    def forward(ctx, library: Library, gate, up, act: int):
        gate, up = _rows(gate), _rows(up)
        rows, width = gate.numel() // gate.shape[-1], gate.shape[-1]
        y = torch.empty(gate.shape, dtype=gate.dtype)
        library.functions.gated(_at(gate), c_int64(gate.stride(-2)), _at(up), c_int64(up.stride(-2)), _at(y), c_int64(rows),
                                c_int64(width), c_int(act))
        ctx.save_for_backward(gate, up)
        ctx.library, ctx.act = library, act
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        gate, up = ctx.saved_tensors
        dy, width = dy.contiguous(), gate.shape[-1]
        dgate, dup = (torch.empty(gate.shape, dtype=gate.dtype) for _ in range(2))
        ctx.library.functions.gated_backward(_at(dy), _at(gate), c_int64(gate.stride(-2)), _at(up), c_int64(up.stride(-2)),
                                             _at(dgate), _at(dup), c_int64(dy.numel() // width), c_int64(width), c_int(ctx.act))
        return None, dgate, dup, None


def _rows(x: torch.Tensor) -> torch.Tensor:
    """As it is when its rows are evenly spaced, such as one half of a wider tensor; a copy otherwise."""
    even = x.stride(-1) == 1 and x.ndim >= 2 and all(x.stride(i) == x.stride(i + 1) * x.shape[i + 1] for i in range(x.ndim - 2))
    return x if even else x.contiguous()


class Attention(torch.autograd.Function):
    """Causal attention inside the rows of a pack, [1, heads, T, D] each; row r is tokens starts[r] to starts[r + 1].

    Family f is rows families[f] to families[f + 1]; each of them sees the first as if it stood before it.

    Computed tile by tile with the softmax's logarithm kept for backward, so that no L x L matrix is ever stored
    (FlashAttention-2, arXiv 2307.08691), only the triangle that is seen, each row and KV head by itself.
    """

    @staticmethod
    def forward(ctx, library: Library, q, k, v, starts, families, scale: float, window: int | None):
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        _, heads, tokens, size = q.shape
        out, lse = torch.empty(1, tokens, heads, size, dtype=q.dtype), torch.empty(tokens, heads)
        shape = _Shape(heads, k.shape[1], size, window or 0, scale, *(s for x in (q, k, v) for s in (x.stride(2), x.stride(1))))
        _enough(library.functions.attention(ctypes.byref(shape), _at(q), _at(k), _at(v), _at(out), _at(lse), _at(starts),
                                            _at(families), c_int64(len(families) - 1)))
        ctx.save_for_backward(q, k, v, out, lse, starts, families)
        ctx.library, ctx.shape = library, shape
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        q, k, v, out, lse, starts, families = ctx.saved_tensors
        dout = dout.contiguous()
        grads = [torch.empty(1, x.shape[2], x.shape[1], x.shape[3], dtype=x.dtype) for x in (q, k, v)]
        _enough(ctx.library.functions.attention_backward(
            ctypes.byref(ctx.shape), *map(_at, (q, k, v, out, lse, dout, *grads, starts, families)),
            c_int64(len(families) - 1)))
        return None, *(g.transpose(1, 2) for g in grads), None, None, None, None


def _enough(failed: int) -> None:
    if failed:
        raise MemoryError("no memory for the tiles of attention")


def cross_entropy(library: Library, logits_CV, labels_C, gradient: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss [C], hits [C]) of labels, 0 where negative. With `gradient`, logits become softmax - onehot in place."""
    rows, words = logits_CV.shape
    loss, hits = torch.empty(rows), torch.empty(rows, dtype=torch.uint8)
    library.functions.cross_entropy(_at(logits_CV), _at(labels_C), _at(loss), _at(hits), c_int64(rows), c_int64(words),
                                    c_int(gradient))
    return loss, hits


def disagreement(library: Library, dtype: torch.dtype) -> str | None:
    """The kernel that does not compute what torch does, on a small example of each; None when all agree."""
    draw = torch.Generator().manual_seed(0)
    within = 4 * torch.finfo(dtype).eps + 1e-5

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw).to(dtype).requires_grad_()

    def differ(ours, theirs, *inputs) -> bool:
        up = torch.randn(ours.shape, generator=draw).to(dtype)
        pairs = [(ours, theirs), *zip(torch.autograd.grad(ours, inputs, up), torch.autograd.grad(theirs, inputs, up.float()),
                                      strict=True)]
        return any(not torch.allclose(a.float(), b.float(), rtol=within, atol=within * b.abs().max().item()) for a, b in pairs)

    x, weight = random(5, 48), random(48).detach()
    n = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-5)
    if differ(RmsNorm.apply(library, x, weight, 1e-5, False), n * weight.float(), x):
        return "norm"
    gate, up = random(5, 48), random(5, 48)
    if differ(Gated.apply(library, gate, up, SILU), torch.nn.functional.silu(gate.float()) * up.float(), gate, up):
        return "gate"
    q, angle = random(1, 2, 7, 32), torch.rand(1, 7, 16, generator=draw).repeat(1, 1, 2)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    turned = torch.cat([-q[..., 16:], q[..., :16]], -1)
    if differ(Rotary.apply(library, q, cos, sin), q.float() * cos.float() + turned.float() * sin.float(), q):
        return "rotation"
    k, v = random(1, 1, 7, 32), random(1, 1, 7, 32)
    out = Attention.apply(library, q, k, v, torch.tensor([0, 3, 5, 7]), torch.tensor([0, 3]), 0.2, None)
    seen = torch.ones(7, 7, dtype=torch.bool).tril()
    seen[5:, 3:5] = False  # three tokens, and two rows that see them and not each other
    plain = torch.nn.functional.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=seen, scale=0.2,
                                                             enable_gqa=True).transpose(1, 2)
    if differ(out, plain, q, k, v):
        return "attention"
    logits, labels = random(5, 97), torch.tensor([3, 96, -100, 0, 50])
    want = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
    (want_grad,) = torch.autograd.grad(want, logits)
    ours = logits.detach().clone()
    loss, _ = cross_entropy(library, ours, labels, gradient=True)
    same = torch.allclose(loss.sum(), want, rtol=1e-4) and torch.allclose(ours.float(), want_grad.float(), atol=within)
    return None if same else "loss"
