"""The fused LoRA linear against autograd of its formula, and against finite differences.

pytest tests/engine/test_lora_linear.py
"""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from tunesmith.engine.lora_linear import LoraLinearFunction

SCALING = 1.7


def tensors(*, bias: bool, lead: tuple[int, ...] = (5,), inputs: int = 6, outputs: int = 4, rank: int = 3):
    torch.manual_seed(0)
    x, a, b = (torch.randn(*shape, dtype=torch.float64, requires_grad=True)
               for shape in ((*lead, inputs), (rank, inputs), (outputs, rank)))
    weight = torch.randn(outputs, inputs, dtype=torch.float64)
    return x, weight, torch.randn(outputs, dtype=torch.float64) if bias else None, a, b


def formula(x, weight, bias, a, b):
    return x @ weight.T + (bias if bias is not None else 0.0) + SCALING * (x @ a.T) @ b.T


@pytest.mark.parametrize("bias", [False, True])
def test_gradients_pass_gradcheck(bias):
    x, weight, bias_, a, b = tensors(bias=bias)
    assert gradcheck(lambda x, a, b: LoraLinearFunction.apply(x, weight, bias_, a, b, SCALING), (x, a, b))


@pytest.mark.parametrize("lead", [(5,), (1, 5), (2, 3, 4), (1,)])
@pytest.mark.parametrize("bias", [False, True])
def test_output_and_gradients_are_those_of_the_formula(bias, lead):
    x, weight, bias_, a, b = tensors(bias=bias, lead=lead)
    expected = formula(x, weight, bias_, a, b)
    y = LoraLinearFunction.apply(x, weight, bias_, a, b, SCALING)
    assert y.shape == expected.shape
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(y)
    for got, want in zip(torch.autograd.grad(y, (x, a, b), upstream), torch.autograd.grad(expected, (x, a, b), upstream),
                         strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_an_input_without_gradient_gets_none_and_the_adapter_still_does():
    x, weight, _, a, b = tensors(bias=False)
    y = LoraLinearFunction.apply(x.detach(), weight, None, a, b, SCALING)
    y.sum().backward()
    assert x.grad is None
    assert a.grad is not None and b.grad is not None


def test_adapter_gradients_come_in_the_adapters_dtype():
    x, weight, bias, a, b = tensors(bias=True)
    half = [t.detach().to(torch.bfloat16) for t in (x, weight, bias)]
    a, b = (t.detach().float().requires_grad_() for t in (a, b))
    y = LoraLinearFunction.apply(half[0].requires_grad_(), *half[1:], a, b, SCALING)
    y.sum().backward()
    assert (y.dtype, half[0].grad.dtype, a.grad.dtype, b.grad.dtype) == (
        torch.bfloat16, torch.bfloat16, torch.float32, torch.float32)


def test_inputs_are_not_written_to():
    x, weight, bias, a, b = tensors(bias=True)
    before = [t.detach().clone() for t in (x, weight, bias, a, b)]
    LoraLinearFunction.apply(x, weight, bias, a, b, SCALING).sum().backward()
    assert all(torch.equal(t.detach(), old) for t, old in zip((x, weight, bias, a, b), before, strict=True))
