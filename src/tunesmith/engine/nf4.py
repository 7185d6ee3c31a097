"""Weights in 4 bits: NF4 with double quantisation, bit for bit as bitsandbytes stores them, on any device torch has.

Blocks of weights share a scale, their largest absolute value; each weight is the nearest of 16 levels, the quantiles of
a normal distribution (Dettmers et al. 2023, arXiv 2305.14314, appendix E). Double quantisation keeps the scales in 8
bits as well: their mean is taken off, and blocks of 256 of them are stored in a dynamic code of 256 levels.

    weight      [out, in]           code     uint8, two weights a byte, the first in the upper half
    scales      one a block         float32, or uint8 levels + one float32 a block of 256 + their mean

`Nf4Linear` stands in for a frozen `nn.Linear`. Its weight is dequantised in the forward pass and again in the backward
pass, so that no copy of it is kept between the two.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import nn
from torch.autograd.function import once_differentiable

LEVELS = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
          -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
          0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0)
SCALES_BLOCK = 256


def dynamic_levels() -> torch.Tensor:
    """The 256 levels of the 8-bit dynamic code, ascending: a sign, an exponent of zeros, and a linear fraction (Dettmers
    2016, arXiv 1511.04561)."""
    levels = []
    for i in range(7):
        edges = torch.linspace(0.1, 1, 2**i + 1, dtype=torch.float32)
        means = (10.0 ** (i - 6)) * (edges[:-1] + edges[1:]) / 2.0
        levels += means.tolist() + (-means).tolist()
    return torch.tensor(sorted([*levels, 0.0, 1.0]))


def _nearest(values: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Index of the nearest level; the upper one from its lower border on, as bitsandbytes compares (`>`)."""
    borders = (levels[1:] + levels[:-1]) / 2
    return torch.bucketize(values, borders).to(torch.uint8)


@dataclass(slots=True)
class Packed:
    """A quantised weight."""

    code: torch.Tensor
    scales: torch.Tensor
    shape: tuple[int, int]
    block: int
    means: torch.Tensor | None = None
    """Of double quantisation: largest absolute value of each block of scales."""
    offset: torch.Tensor | None = None
    """And the mean of all of them."""
    kernels: ModuleType | None = None
    """bitsandbytes.functional, to dequantise with."""

    @classmethod
    def of(cls, weight: torch.Tensor, block: int, double: bool) -> Packed:
        """Quantise [out, in] row after row; the last block may be shorter."""
        flat = weight.detach().float().flatten()
        blocks = _blocks(flat, block)
        scales = blocks.abs().amax(1)
        levels = torch.tensor(LEVELS, device=flat.device)
        level = _nearest((blocks * (1.0 / scales.clamp(min=1e-38))[:, None]), levels).flatten()[: flat.numel()]
        level = torch.cat([level, level.new_full((-level.numel() % 2,), LEVELS.index(0.0))])
        code = (level[::2] << 4) | level[1::2]
        if not double:
            return cls(code, scales, tuple(weight.shape), block)
        offset = scales.mean()
        parts = _blocks(scales - offset, SCALES_BLOCK)
        means = parts.abs().amax(1)
        small = _nearest(parts / means.clamp(min=1e-38)[:, None], dynamic_levels().to(flat.device))
        return cls(code, small.flatten()[: scales.numel()], tuple(weight.shape), block, means, offset)

    def dequantise(self, dtype: torch.dtype) -> torch.Tensor:
        """[out, in]: level times scale in float32, rounded to `dtype`."""
        if self.kernels:
            return self.kernels.dequantize_4bit(self.code[:, None], self.kernels.QuantState(
                self.block_scales(), shape=torch.Size(self.shape), blocksize=self.block, quant_type="nf4", dtype=dtype))
        count = self.shape[0] * self.shape[1]
        values = _pairs(self.code.device).index_select(0, self.code.int()).flatten()
        values = _blocks(values[:count], self.block).mul_(self.block_scales()[:, None]).flatten()[:count]
        return values.view(self.shape).to(dtype)

    def with_kernels(self, dtype: torch.dtype) -> Packed:
        """The same, dequantised by bitsandbytes' kernels: where it is installed and gives these very bits, as it should.

        Its CPU kernel does not (0.50.2) for a block of 128 and rows of 64.
        """
        kernels = bitsandbytes()
        if kernels is None:
            return self
        fast = replace(self, kernels=kernels)
        try:
            return fast if fast.dequantise(dtype).equal(self.dequantise(dtype)) else self
        except (RuntimeError, NotImplementedError, ValueError):  # no kernel for this device
            return self

    def block_scales(self) -> torch.Tensor:
        """One float32 a block."""
        if self.means is None:
            return self.scales
        values = dynamic_levels().to(self.scales.device)[self.scales.int()]
        return _blocks(values, SCALES_BLOCK).mul_(self.means[:, None]).flatten()[: values.numel()] + self.offset

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.code, self.scales, self.means, self.offset) if t is not None)


@cache
def bitsandbytes() -> ModuleType | None:
    """Its functions, where it is installed (`pip install 'tunesmith[qlora]'`)."""
    try:
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        return import_module("bitsandbytes.functional")
    except (ImportError, RuntimeError, OSError):
        return None


@cache
def _pairs(device: torch.device) -> torch.Tensor:
    """[256, 2]: the two levels of each code byte."""
    levels = torch.tensor(LEVELS, device=device)
    return torch.stack([levels[:, None].expand(16, 16), levels.expand(16, 16)], -1).reshape(256, 2)


def _blocks(flat: torch.Tensor, size: int) -> torch.Tensor:
    """[blocks, size], the last one filled up with zeros."""
    missing = -flat.numel() % size
    return (torch.cat([flat, flat.new_zeros(missing)]) if missing else flat).view(-1, size)


def packed_bytes(weights: int, block: int, double: bool) -> int:
    """What `Packed` of so many weights occupies, by arithmetic."""
    blocks = -(-weights // block)
    scales = blocks + 4 * -(-blocks // SCALES_BLOCK) + 4 if double else 4 * blocks
    return -(-weights // 2) + scales


class Nf4LinearFunction(torch.autograd.Function):
    """y = x W^T + bias with W dequantised here and again in the backward pass."""

    @staticmethod
    def forward(ctx, x, packed, bias):
        ctx.packed = packed
        return nn.functional.linear(x, packed.dequantise(x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return grad @ ctx.packed.dequantise(grad.dtype), None, None


class Nf4Linear(nn.Linear):
    """A frozen linear layer whose weight is in 4 bits. `weight` is a dequantised copy, made anew at each look."""

    def __init__(self, linear: nn.Linear, block: int, double: bool):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.block, self.double, self.dtype = block, double, linear.weight.dtype
        packed = Packed.of(linear.weight, block, double)
        for name in ("code", "scales", "means", "offset"):
            self.register_buffer(name, getattr(packed, name))
        self._kernels = self.packed.with_kernels(self.dtype).kernels
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)

    _kernels: ModuleType | None = None

    @property
    def packed(self) -> Packed:
        return Packed(self.code, self.scales, (self.out_features, self.in_features), self.block, self.means, self.offset,
                      self._kernels)

    @property
    def weight(self) -> torch.Tensor:
        return self.packed.dequantise(self.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Nf4LinearFunction.apply(x, self.packed, self.bias)
