"""Two models asked the same: no difference from itself, and every difference seen.

pytest tests/exports/test_probe.py
"""

import copy

import pytest
import torch

from tunesmith.evals.items import Item
from tunesmith.exports.probe import Said, ask, difference, parting, questions

ITEMS = [Item(f"q{i}", [{"role": "user", "content": text}]) for i, text in enumerate(("12 Oak Street", "Who?", "a b c d e"))]


@pytest.fixture(scope="module")
def base(lively_base):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(lively_base), AutoTokenizer.from_pretrained(lively_base)


@pytest.fixture(scope="module")
def asked(base):
    return questions(base[1], ITEMS)


def test_a_model_does_not_differ_from_itself(base, asked):
    model, tokenizer = base
    reference = ask(model, tokenizer, asked, new_tokens=8)
    found = difference(reference, ask(model, tokenizer, asked, along=reference, new_tokens=8))
    assert (found.max_abs_logit_diff, found.max_kl, found.top1_agreement, found.same_texts, found.parted) == (0, 0, 1, 1, [])
    assert found.questions == 3 and found.tokens == sum(len(s.logits) for s in reference)
    assert all(len(s.logits) == len(s.answer) + s.stopped for s in reference)


@torch.no_grad()
def test_another_model_differs_and_its_texts_part_at_a_choice(base, asked):
    model, tokenizer = base
    other = copy.deepcopy(model)
    other.get_output_embeddings().weight.copy_(other.get_output_embeddings().weight.roll(7, 0))
    reference = ask(model, tokenizer, asked, new_tokens=8)
    said = ask(other, tokenizer, asked, along=reference, new_tokens=8)
    found = difference(reference, said)
    assert found.mean_kl > 0 and found.top1_agreement < 1 and found.same_texts == 0
    assert all(one["margin"] is None or one["margin"] > 0 for one in found.parted)


def test_a_shift_of_all_logits_is_no_difference():
    logits = torch.randn(3, 11)
    found = difference([Said("", [1, 2, 3], False, logits)], [Said("", [1, 2, 3], False, logits + 5)])
    assert found.max_abs_logit_diff < 1e-5 and found.max_kl < 1e-10


def test_kl_is_what_torch_computes():
    x, y = torch.randn(4, 9), torch.randn(4, 9)
    found = difference([Said("", [1] * 4, False, x)], [Said("", [1] * 4, False, y)])
    rows = torch.nn.functional.kl_div(y.double().log_softmax(-1), x.double().log_softmax(-1), log_target=True,
                                      reduction="none").sum(-1)
    assert found.mean_kl == pytest.approx(float(rows.mean())) and found.max_kl == pytest.approx(float(rows.max()))


def test_where_two_answers_part():
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, 1.0, 0.0]])
    one = Said("", [1, 0], False, logits)
    assert parting(one, Said("", [1, 0], False)) is None
    assert parting(one, Said("", [1, 1], False)) == {"at": 1, "reference": 0, "other": 1, "margin": pytest.approx(1.0)}
    assert parting(one, Said("", [1], True)) == {"at": 1, "reference": 0, "other": None, "margin": None}
    assert parting(Said("", [1], True, logits), Said("", [1, 2], False))["margin"] == pytest.approx(2.0)
