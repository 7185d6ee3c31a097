"""Packed attention against torch's attention of each row by itself.

pytest tests/engine/test_attention.py
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tunesmith.engine.attention import packed_attention
from tunesmith.engine.packing import layout

HEADS, KV_HEADS, SIZE = 6, 2, 8


def queries_keys_values(tokens: int, dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.randn(1, h, tokens, SIZE, dtype=dtype).requires_grad_() for h in (HEADS, KV_HEADS, KV_HEADS)]


def each_row_alone(q, k, v, lengths, scaling) -> torch.Tensor:
    """[1, T, H, D], as transformers wants it back."""
    outs = [F.scaled_dot_product_attention(*parts, is_causal=True, scale=scaling, enable_gqa=True)
            for parts in zip(*(x.split(lengths, dim=2) for x in (q, k, v)), strict=True)]
    return torch.cat(outs, dim=2).transpose(1, 2)


@pytest.mark.parametrize("scaling", [None, 0.05])
@pytest.mark.parametrize("lengths", [[9], [4, 4, 4], [1, 1], [3, 17, 1, 2, 40, 8, 16], [2]])
def test_output_and_gradients_equal_each_row_alone(lengths, scaling):
    q, k, v = queries_keys_values(sum(lengths))
    expected = each_row_alone(q, k, v, lengths, scaling)
    out, weights = packed_attention(None, q, k, v, None, scaling=scaling, packing=layout(lengths))
    assert weights is None
    assert out.shape == (1, sum(lengths), HEADS, SIZE)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    upstream = torch.randn_like(out)
    for got, want in zip(torch.autograd.grad(out, (q, k, v), upstream),
                         torch.autograd.grad(expected, (q, k, v), upstream), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_bfloat16_in_bfloat16_out_with_float32_inside():
    lengths = [5, 12]
    q, k, v = queries_keys_values(sum(lengths), torch.bfloat16)
    out, _ = packed_attention(None, q, k, v, None, packing=layout(lengths))
    exact = each_row_alone(q.float(), k.float(), v.float(), lengths, None)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, exact.bfloat16()) or (out.float() - exact).abs().max() <= 2**-8 * exact.abs().max()


@pytest.mark.parametrize("wrong", [
    {"packing": None},
    {"attention_mask": torch.ones(1, 1, 6, 6)},
    {"dropout": 0.1},
    {"packing": layout([2, 3])},
], ids=["no layout", "a mask", "dropout", "a layout of another pack"])
def test_what_would_be_ignored_is_refused(wrong):
    arguments = {"attention_mask": None, "packing": layout([2, 4])} | wrong
    with pytest.raises(ValueError, match="layout|packing=Layout"):
        packed_attention(None, *queries_keys_values(6), **arguments)
