"""The chunked loss against torch's own cross-entropy over the whole logits.

pytest tests/engine/test_loss.py
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from tunesmith.engine import loss as room
from tunesmith.engine.loss import IGNORE, chunked_loss, labelled_positions
from tunesmith.engine.native import build

TOKENS, HIDDEN, VOCABULARY = 50, 12, 31  # 30 of them labelled


@pytest.fixture
def problem():
    torch.manual_seed(0)
    hidden_TD = torch.randn(TOKENS, HIDDEN, dtype=torch.float64).float().requires_grad_()
    labels_T = torch.randint(0, VOCABULARY, (TOKENS,))
    labels_T[torch.randperm(TOKENS)[:20]] = IGNORE
    return hidden_TD, labels_T


def head(bias: bool) -> torch.nn.Linear:
    torch.manual_seed(1)
    return torch.nn.Linear(HIDDEN, VOCABULARY, bias=bias).requires_grad_(False)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", [1, 7, 10, 29, 30, 31, 1000])
def test_loss_hits_and_gradient_equal_cross_entropy_for_any_chunk(problem, monkeypatch, chunk, bias):
    hidden_TD, labels_T = problem
    monkeypatch.setattr(room, "CHUNK_TOKENS", chunk)
    logits_TV = head(bias)(hidden_TD)
    expected = F.cross_entropy(logits_TV, labels_T, ignore_index=IGNORE, reduction="sum")
    (expected_grad,) = torch.autograd.grad(3.0 * expected, hidden_TD)
    got, hits = chunked_loss(hidden_TD, head(bias), labels_T)
    (grad,) = torch.autograd.grad(3.0 * got, hidden_TD)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-5, atol=1e-6)
    assert hits.item() == (logits_TV.argmax(-1) == labels_T).sum().item()


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", [1, 7, 30, 1000])
def test_a_head_that_is_trained_gets_its_gradient(problem, monkeypatch, chunk, bias, kernels):
    hidden_TD, labels_T = problem
    monkeypatch.setattr(room, "CHUNK_TOKENS", chunk)
    ours, theirs = head(bias).requires_grad_(True), head(bias).requires_grad_(True)
    (3.0 * F.cross_entropy(theirs(hidden_TD), labels_T, ignore_index=IGNORE, reduction="sum")).backward()
    build.start()
    with build.used() if kernels else nullcontext():
        (3.0 * chunked_loss(hidden_TD.detach(), ours, labels_T)[0]).backward()
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-4, atol=1e-5)
    if bias:
        torch.testing.assert_close(ours.bias.grad, theirs.bias.grad, rtol=1e-4, atol=1e-5)


def test_a_pack_without_labels_costs_nothing_and_pulls_nowhere(problem):
    hidden_TD, labels_T = problem
    total, hits = chunked_loss(hidden_TD, head(False), torch.full_like(labels_T, IGNORE))
    total.backward()
    assert (total.item(), hits.item()) == (0.0, 0)
    assert hidden_TD.grad.count_nonzero() == 0


def test_tokens_without_a_label_get_no_gradient(problem):
    hidden_TD, labels_T = problem
    chunked_loss(hidden_TD, head(False), labels_T)[0].backward()
    assert torch.equal(hidden_TD.grad.any(1), labels_T != IGNORE)


def test_without_gradients_the_numbers_are_the_same(problem):
    hidden_TD, labels_T = problem
    with_grad = chunked_loss(hidden_TD, head(True), labels_T)
    with torch.inference_mode():
        without = chunked_loss(hidden_TD, head(True), labels_T)
    assert [x.item() for x in with_grad] == [x.item() for x in without]


def test_logits_that_overflow_float16_are_still_finite():
    hidden_TD = torch.full((3, HIDDEN), 400.0, requires_grad=True)
    layer = head(False)
    layer.weight[0] = 60.0
    total, _ = chunked_loss(hidden_TD, layer, torch.tensor([0, 1, IGNORE]))
    total.backward()
    assert total.isfinite() and hidden_TD.grad.isfinite().all()


def test_labelled_positions_are_where_the_label_is_not_ignored():
    assert labelled_positions(torch.tensor([IGNORE, 5, 0, IGNORE])).tolist() == [1, 2]
