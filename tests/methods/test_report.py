"""What is adapted, where its gradient goes, and whether vLLM would load it.

pytest tests/methods/test_report.py
"""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM

from tunesmith.methods import lora, report
from tunesmith.recipe.methods import Lora


@pytest.fixture
def base():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
                                        num_key_value_heads=2, vocab_size=60))


def test_table_names_every_adapted_layer_once_and_its_parameters_are_pefts(base):
    method = Lora(rank=5)
    table = report.by_module(lora.estimate(base, method).parts)
    assert [t["module"] for t in table] == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert {t["layers"] for t in table} == {3}
    assert next(t for t in table if t["module"] == "k_proj") == {"module": "k_proj", "layers": 3, "inputs": 32, "outputs": 16,
                                                                  "parameters": 3 * 5 * (32 + 16)}
    model = lora.attach(base, method, "tiny")
    assert sum(t["parameters"] for t in table) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_gradient_shares_are_those_of_the_norms(base):
    model = lora.attach(base, Lora(rank=4, targets=["q_proj", "down_proj"]), "tiny")
    model(input_ids=torch.randint(0, 60, (2, 9))).logits.square().mean().backward()
    shares = report.gradient_shares(model)
    squares = {m: sum(p.grad.square().sum() for n, p in model.named_parameters() if m in n and p.grad is not None)
               for m in ("q_proj", "down_proj")}
    assert shares == pytest.approx({m: (s / sum(squares.values())).item() for m, s in squares.items()})
    assert sum(shares.values()) == pytest.approx(1.0)


def test_without_a_gradient_every_share_is_zero(base):
    model = lora.attach(base, Lora(rank=4, targets=["q_proj"]), "tiny")
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    assert report.gradient_shares(model) == {"q_proj": 0.0}


@pytest.mark.parametrize(("rank", "flag"), [(1, 1), (2, 8), (8, 8), (9, 16), (16, 16), (33, 64), (300, 320), (512, 512)])
def test_vllm_gets_the_smallest_rank_that_it_allows(rank, flag):
    made = lora.config(Lora(rank=rank), "tiny").to_dict()
    assert report.vllm(made) == {"loads": True, "max_lora_rank": flag, "refused": []}


@pytest.mark.parametrize(("changes", "word"), [
    ({"use_dora": True}, "DoRA"),
    ({"bias": "lora_only"}, "biases"),
    ({"modules_to_save": ["embed_tokens", "lm_head"]}, "embed_tokens, lm_head"),
    ({"init_lora_weights": "pissa"}, "pissa"),
    ({"r": 600}, "600"),
    ({"rank_pattern": {"q_proj": 1000}}, "1000"),
    ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
    ({"use_qalora": True}, "use_qalora"),
])
def test_what_vllm_refuses_is_said(changes, word):
    made = LoraConfig(**{"r": 8, "target_modules": ["q_proj"]} | changes).to_dict()
    found = report.vllm(made)
    assert not found["loads"]
    assert word in " ".join(found["refused"])


@pytest.mark.parametrize("changes", [{"use_rslora": True}, {"init_lora_weights": "gaussian"}, {"modules_to_save": ["score"]},
                                     {"init_lora_weights": "orthogonal"}])
def test_what_vllm_takes_is_not_refused(changes):
    assert report.vllm(LoraConfig(r=8, target_modules=["q_proj"], **changes).to_dict())["loads"]


def test_another_kind_of_adapter_is_refused_by_its_name():
    assert "PREFIX_TUNING" in report.vllm({"peft_type": "PREFIX_TUNING"})["refused"][0]
