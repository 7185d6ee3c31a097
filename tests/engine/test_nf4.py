"""Weights in 4 bits: the paper's definition, bitsandbytes' bits, gradients, and no copy kept.

python -m pytest tests/engine/test_nf4.py
"""

from __future__ import annotations

import gc
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tunesmith.engine.lora_linear import LoraLinearFunction
from tunesmith.engine.nf4 import LEVELS, Nf4Linear, Packed, dynamic_levels, packed_bytes

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 70))


@pytest.fixture
def bnb():
    return pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is absent: pip install 'tunesmith[qlora]'")


def weight(shape: tuple[int, int], dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return (0.05 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


# ---- the definition ---------------------------------------------------------------------------------------------------


def test_levels_are_the_quantiles_of_a_normal_distribution():
    """Appendix E of the paper: 9 quantiles of the positive half, 8 of the negative, scaled to 1, zero in between."""
    offset = 0.9677083
    normal = torch.distributions.Normal(0.0, 1.0)
    positive = normal.icdf(torch.linspace(offset, 0.5, 9, dtype=torch.float64)[:-1])
    negative = -normal.icdf(torch.linspace(offset, 0.5, 8, dtype=torch.float64)[:-1])
    levels = torch.cat([positive, torch.zeros(1), negative]).sort().values
    torch.testing.assert_close(torch.tensor(LEVELS).double(), levels / levels.abs().max(), atol=2e-6, rtol=0)


@settings(max_examples=60, deadline=None, database=None)
@given(shape=SHAPES, block=st.sampled_from([64, 128, 256]), seed=st.integers(0, 99))
def test_every_weight_is_the_nearest_level_times_its_blocks_largest(shape, block, seed):
    w = weight(shape, seed=seed)
    got = Packed.of(w, block, double=False).dequantise(torch.float32).flatten()
    for begin in range(0, w.numel(), block):
        part = w.flatten()[begin : begin + block]
        scale = part.abs().max()
        choices = scale * torch.tensor(LEVELS)
        best = (part[:, None] - choices).abs().min(1).values
        torch.testing.assert_close((got[begin : begin + block] - part).abs(), best, rtol=1e-4, atol=1e-7)
        assert (got[begin : begin + block, None] == choices).any(1).all()


@settings(max_examples=40, deadline=None, database=None)
@given(shape=SHAPES, block=st.sampled_from([64, 256]), double=st.booleans())
def test_quantising_what_was_dequantised_changes_nothing_more_and_bytes_are_as_told(shape, block, double):
    packed = Packed.of(weight(shape), block, double)
    assert packed.bytes == packed_bytes(math.prod(shape), block, double)
    if not double:
        once = packed.dequantise(torch.float32)
        assert torch.equal(Packed.of(once, block, False).dequantise(torch.float32), once)


def test_double_quantisation_costs_little_and_zero_blocks_stay_zero():
    w = weight((64, 256))
    w[10:20] = 0
    single, double = (Packed.of(w, 64, d).dequantise(torch.float32) for d in (False, True))
    assert double[10:20].abs().max() == 0
    assert 0 < (double - single).norm() / single.norm() < 0.03
    assert 0.05 < (single - w).norm() / w.norm() < 0.12  # it is a 4-bit number, after all


# ---- bitsandbytes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [64, 128, 4096])
@pytest.mark.parametrize("shape", [(96, 128), (130, 70), (33, 65), (576, 192)])
def test_codes_and_scales_are_bit_for_bit_those_of_bitsandbytes(bnb, shape, block, dtype):
    w = weight(shape, dtype)
    code, state = bnb.quantize_4bit(w, blocksize=block, quant_type="nf4", compress_statistics=False)
    ours = Packed.of(w, block, double=False)
    assert torch.equal(code.flatten(), ours.code)
    assert torch.equal(state.absmax, ours.scales)
    assert torch.equal(state.code.cpu(), torch.tensor(LEVELS))
    if shape[1] % block == 0 or block == 64:  # its CPU kernel is wrong for some blocks that are longer than a row
        assert torch.equal(bnb.dequantize_4bit(code, state), ours.dequantise(dtype))


def test_the_dynamic_code_is_bit_for_bit_that_of_bitsandbytes(bnb):
    assert torch.equal(dynamic_levels(), bnb.create_dynamic_map())


@pytest.mark.parametrize("shape", [(64, 256), (576, 1536)])
def test_double_quantisation_is_that_of_bitsandbytes_or_nearer(bnb, shape):
    """Means and offset are equal bit for bit, and levels where bitsandbytes finds the nearest: its CPU kernel takes the
    neighbour for one scale in some hundred, where a scale lies almost in the middle between two."""
    w = weight(shape)
    code, state = bnb.quantize_4bit(w, blocksize=64, quant_type="nf4", compress_statistics=True)
    ours = Packed.of(w, 64, double=True)
    assert torch.equal(code.flatten(), ours.code) and torch.equal(state.offset, ours.offset)
    assert torch.equal(state.state2.absmax, ours.means)
    levels, exact = dynamic_levels(), Packed.of(w, 64, double=False).scales - ours.offset
    value = exact / ours.means.repeat_interleave(256)[: len(exact)]
    other = state.absmax != ours.scales
    assert other.float().mean() < 0.02
    assert (state.absmax.int() - ours.scales.int()).abs().max() <= 1
    assert ((value - levels[ours.scales.int()]).abs() <= (value - levels[state.absmax.int()]).abs()).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_kernels_are_used_where_they_give_the_same_bits_and_only_there(bnb, dtype):
    good = Packed.of(weight((64, 256)), 64, double=True).with_kernels(dtype)
    assert good.kernels is bnb
    packed = Packed.of(weight((64, 64)), 128, double=False)
    theirs = bnb.dequantize_4bit(packed.code[:, None], bnb.QuantState(
        packed.scales, shape=torch.Size(packed.shape), blocksize=128, quant_type="nf4", dtype=dtype))
    same = torch.equal(theirs, packed.dequantise(dtype))
    assert (packed.with_kernels(dtype).kernels is not None) == same


# ---- the layer --------------------------------------------------------------------------------------------------------


@pytest.fixture
def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(48, 40).requires_grad_(False)


def test_layer_and_its_gradient_are_those_of_the_dequantised_weight(linear):
    layer = Nf4Linear(linear, 64, True)
    x = torch.randn(3, 5, 48, requires_grad=True)
    up = torch.randn(3, 5, 40)
    want = nn.functional.linear(x, layer.weight, linear.bias)
    assert torch.equal(layer(x), want)
    torch.testing.assert_close(torch.autograd.grad(layer(x), x, up)[0], torch.autograd.grad(want, x, up)[0])
    assert not torch.equal(layer.weight, linear.weight)


def kept(make) -> int:
    """Bytes of float tensors that autograd keeps for the backward pass of what `make` computes."""
    seen: dict[int, int] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        seen[t.data_ptr()] = t.numel() * t.element_size() if t.is_floating_point() else 0
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = make()
    assert out.requires_grad
    gc.collect()
    return sum(seen.values())


def test_no_dequantised_weight_is_kept_for_the_backward_pass(linear):
    layer = Nf4Linear(linear, 64, True)
    x = torch.randn(2, 48, requires_grad=True)
    a, b = torch.randn(3, 48, requires_grad=True), torch.randn(40, 3, requires_grad=True)
    whole = linear.weight.numel() * 4
    assert kept(lambda: layer(x)) < whole
    assert kept(lambda: LoraLinearFunction.apply(x, layer.packed, layer.bias, a, b, 2.0)) < whole
    dense = nn.Linear(48, 40).requires_grad_(False)  # the control: a plain layer keeps its weight, which is no copy
    assert kept(lambda: dense(x)) >= whole


def test_fused_lora_on_a_quantised_weight_is_the_formula(linear):
    layer = Nf4Linear(linear, 64, False)
    x, up = torch.randn(7, 48, requires_grad=True), torch.randn(7, 40)
    a, b = torch.randn(3, 48, requires_grad=True), torch.randn(40, 3, requires_grad=True)
    ours = LoraLinearFunction.apply(x, layer.packed, layer.bias, a, b, 2.0)
    want = x @ layer.weight.T + linear.bias + 2.0 * (x @ a.T) @ b.T
    torch.testing.assert_close(ours, want)
    for got, expected in zip(torch.autograd.grad(ours, (x, a, b), up), torch.autograd.grad(want, (x, a, b), up), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
