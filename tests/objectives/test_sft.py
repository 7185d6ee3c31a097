"""Supervised fine-tuning: what is predicted from what, and how much each token weighs.

pytest tests/objectives/test_sft.py
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tunesmith.engine.loss import IGNORE
from tunesmith.objectives.sft import Measured, evaluate, forward_backward, labelled, sample

VOCABULARY = 11


class Bigram(torch.nn.Module):
    """Logits of the next token depend on the token alone: everything can be written down by hand."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.logits_VV = torch.nn.Parameter(torch.randn(VOCABULARY, VOCABULARY, dtype=torch.float64))


def forward_loss(model, rows):
    ids = torch.tensor([t for tokens, _ in rows for t in tokens])
    labels = torch.tensor([t for _, labels in rows for t in labels])
    logits = model.logits_VV[ids]
    loss = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    return loss, (logits.argmax(-1) == labels).sum()


def test_sample_shifts_labels_to_the_token_before():
    ids, labels = sample([5, 6, 7, 8, 9], [False, False, True, True, False])
    assert ids == [5, 6, 7, 8, 9]
    assert labels == [IGNORE, 7, 8, IGNORE, IGNORE]


def test_first_token_is_never_a_label_because_nothing_comes_before_it():
    assert sample([5, 6], [True, True])[1] == [6, IGNORE]


def test_sample_refuses_a_mask_of_another_length():
    with pytest.raises(ValueError):
        sample([5, 6, 7], [False, True])


def test_labelled_counts_labels_and_not_tokens():
    rows = [sample([1, 2, 3], [False, True, True]), sample([4, 5], [False, False]), sample([6, 7], [False, True])]
    assert labelled([rows[:2], rows[2:]]) == 3
    assert labelled([]) == 0


LONG = sample(list(range(1, 10)), [False] + [True] * 8)
SHORT = sample([3, 4], [False, True])


@pytest.mark.parametrize("packs", [[[LONG, SHORT]], [[LONG], [SHORT]], [[SHORT], [LONG]]])
def test_each_token_of_a_step_weighs_the_same_however_it_is_packed(packs):
    model = Bigram()
    measured = forward_backward(forward_loss, model, packs)
    logp = model.logits_VV.detach().log_softmax(-1)
    pairs = [(a, b) for a, b in zip(range(1, 9), range(2, 10), strict=True)] + [(3, 4)]
    assert measured.loss == pytest.approx(-sum(logp[a, b].item() for a, b in pairs) / 9, rel=1e-12)
    assert (measured.tokens, measured.trained_tokens) == (11, 9)
    by_hand = torch.zeros_like(logp)
    for a, b in pairs:
        by_hand[a] += (logp[a].exp() - F.one_hot(torch.tensor(b), VOCABULARY)) / 9
    torch.testing.assert_close(model.logits_VV.grad, by_hand, rtol=1e-10, atol=1e-14)


def test_gradients_add_to_those_already_there():
    model = Bigram()
    forward_backward(forward_loss, model, [[LONG]])
    once = model.logits_VV.grad.clone()
    forward_backward(forward_loss, model, [[LONG]])
    torch.testing.assert_close(model.logits_VV.grad, 2 * once)


def test_accuracy_is_the_share_of_labels_that_are_most_likely():
    model = Bigram()
    with torch.no_grad():
        model.logits_VV.zero_()
        for token in (1, 2, 3):
            model.logits_VV[token, token + 1] = 5.0
        model.logits_VV[4, 7] = 5.0
    right = forward_backward(forward_loss, model, [[sample([1, 2, 3, 4, 5], [False, True, True, True, True])]])
    assert right.accuracy == 3 / 4


def test_evaluate_measures_the_same_without_gradients():
    model = Bigram()
    packs = [[LONG, SHORT], [SHORT]]
    evaluated = evaluate(forward_loss, model, packs)
    assert model.logits_VV.grad is None
    trained = forward_backward(forward_loss, model, packs)
    assert evaluated == Measured(pytest.approx(trained.loss, rel=1e-12), trained.accuracy, 13, 10)


def test_a_uniform_model_has_the_loss_of_a_uniform_guess():
    model = Bigram()
    torch.nn.init.zeros_(model.logits_VV)
    assert evaluate(forward_loss, model, [[LONG]]).loss == pytest.approx(math.log(VOCABULARY))
