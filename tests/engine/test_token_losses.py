"""Losses of single tokens, with any weight from above, against torch's cross-entropy over the whole logits.

pytest tests/engine/test_token_losses.py
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tunesmith.engine import token_losses as room
from tunesmith.engine.loss import IGNORE
from tunesmith.engine.native import build
from tunesmith.engine.token_losses import TokenLosses, labelled_losses

TOKENS, HIDDEN, VOCABULARY = 50, 12, 31


@pytest.fixture(params=[False, True], ids=["torch", "kernels"])
def kernels(request):
    if not request.param:
        yield
        return
    assert build.start() is None
    with build.used():
        yield


@pytest.fixture
def problem():
    torch.manual_seed(0)
    hidden_TD = torch.randn(TOKENS, HIDDEN).requires_grad_()
    labels_T = torch.randint(0, VOCABULARY, (TOKENS,))
    labels_T[torch.randperm(TOKENS)[:20]] = IGNORE
    return hidden_TD, labels_T


@pytest.mark.parametrize("trained", [False, True], ids=["frozen head", "trained head"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", [1, 8, 1000])
def test_each_token_has_its_own_loss_and_any_weight_from_above(problem, kernels, monkeypatch, chunk, bias, trained):
    hidden_TD, labels_T = problem
    monkeypatch.setattr(room, "CHUNK_TOKENS", chunk)
    head = torch.nn.Linear(HIDDEN, VOCABULARY, bias=bias).requires_grad_(trained)
    expected = F.cross_entropy(head(hidden_TD), labels_T, ignore_index=IGNORE, reduction="none")
    got = TokenLosses.apply(hidden_TD, head.weight, head.bias, labels_T)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    above = torch.randn(TOKENS)
    inputs = [hidden_TD, *head.parameters()] if trained else [hidden_TD]
    for want, found in zip(*(torch.autograd.grad(x, inputs, above) for x in (expected, got)), strict=True):
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)


def test_labelled_ones_come_in_order_and_then_zeros(problem):
    hidden_TD, labels_T = problem
    head = torch.nn.Linear(HIDDEN, VOCABULARY).requires_grad_(False)
    found = labelled_losses(hidden_TD, head, labels_T)
    expected = F.cross_entropy(head(hidden_TD), labels_T, ignore_index=IGNORE, reduction="none")[labels_T != IGNORE]
    torch.testing.assert_close(found[: len(expected)], expected, rtol=1e-5, atol=1e-6)
    assert not found[len(expected) :].any()


def test_without_gradients_the_numbers_are_the_same(problem):
    hidden_TD, labels_T = problem
    head = torch.nn.Linear(HIDDEN, VOCABULARY).requires_grad_(False)
    with torch.inference_mode():
        without = labelled_losses(hidden_TD, head, labels_T)
    assert torch.equal(labelled_losses(hidden_TD, head, labels_T), without)
