"""LoRA through PEFT: what is adapted, what the files hold, and which adapters are refused.

pytest tests/methods/test_lora.py
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tunesmith.errors import AdapterError, RecipeError
from tunesmith.methods import lora
from tunesmith.models.base import resolve
from tunesmith.models.load import model_of
from tunesmith.recipe.methods import Lora

ALL_LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.fixture
def base(tiny_base):
    """A fresh frozen base each call: PEFT changes models in place."""
    return lambda dtype=torch.float32: model_of(resolve(str(tiny_base)), dtype)


@pytest.fixture
def adapter(base, tmp_path) -> Path:
    """An adapter on disk whose B is not zero."""
    torch.manual_seed(0)
    model = lora.attach(base(), Lora(rank=4, alpha=8.0), "tiny")
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    folder = tmp_path / "adapter"
    folder.mkdir()
    lora.save(model, folder)
    return folder


@pytest.fixture
def broken(adapter, tmp_path):
    """A copy of the adapter with its tensors or its config changed in place by a function."""

    def make(*, tensors=None, config=None) -> Path:
        folder = tmp_path / "broken"
        shutil.copytree(adapter, folder)
        if tensors:
            values = load_file(folder / lora.WEIGHTS_FILE)
            tensors(values)
            save_file(values, folder / lora.WEIGHTS_FILE)
        if config:
            values = json.loads((folder / lora.CONFIG_FILE).read_text())
            config(values)
            (folder / lora.CONFIG_FILE).write_text(json.dumps(values))
        return folder

    return make


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(3, 40)[None]).logits


@pytest.mark.parametrize("rank", [1, 4, 16])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], ["down_proj"], ["self_attn.o_proj"],
                                     ["model.layers.1.mlp.up_proj"]])
def test_trainable_parameters_are_those_that_peft_makes(base, rank, targets):
    method = Lora(rank=rank, targets=targets)
    model = base()
    with torch.device("meta"):
        planned = lora.targets(AutoModelForCausalLM.from_config(model.config), method)
    lora.attach(model, method, "tiny")
    assert lora.trainable_parameters(planned, rank) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    adapted = {n.removeprefix("base_model.model.").removesuffix(".lora_A.default")
               for n, _ in model.named_modules() if n.endswith("lora_A.default")}
    assert {t.name for t in planned} == adapted


def test_all_linear_is_every_linear_layer_but_the_head(base):
    names = [t.name for t in lora.targets(base(), Lora())]
    assert {n.rsplit(".", 1)[-1] for n in names} == ALL_LINEAR
    assert len(names) == 2 * len(ALL_LINEAR)


def test_gpt2_whose_linear_layers_are_transposed_is_counted_too():
    config = CONFIG_MAPPING["gpt2"](n_embd=32, n_layer=2, n_head=2, vocab_size=97)
    method = Lora(rank=3)
    planned = lora.targets(AutoModelForCausalLM.from_config(config), method)
    assert ("transformer.h.0.attn.c_attn", 32, 96) in [(t.name, t.inputs, t.outputs) for t in planned]
    model = lora.attach(AutoModelForCausalLM.from_config(config), method, "tiny")
    assert lora.trainable_parameters(planned, 3) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_target_that_matches_nothing_is_named_with_the_nearest(base):
    with pytest.raises(RecipeError, match="'q_porj' matches no linear layer") as caught:
        lora.attach(base(), Lora(targets=["v_proj", "q_porj"]), "tiny")
    assert "did you mean 'q_proj'?" in str(caught.value)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "norm", "proj"])
def test_what_is_no_inner_linear_layer_is_no_target(base, target):
    with pytest.raises(RecipeError, match=f"{target!r} matches no linear layer"):
        lora.targets(base(), Lora(targets=[target]))


def test_attached_adapter_is_float32_changes_nothing_yet_and_leaves_the_base_frozen(base):
    before = logits(base(torch.bfloat16))
    model = lora.attach(base(torch.bfloat16), Lora(rank=4, alpha=12.0, dropout=0.25), "some/base")
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert all("lora_A" in n or "lora_B" in n for n in trainable)
    assert {p.dtype for p in trainable.values()} == {torch.float32}
    assert torch.equal(logits(model), before)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert (layer.scaling["default"], layer.lora_dropout["default"].p) == (3.0, 0.25)
    assert layer.lora_A["default"].weight.abs().max() <= 1 / math.sqrt(64)  # Kaiming with a = sqrt(5): 1/sqrt(inputs)


def test_adapter_comes_from_the_seed(base):
    def adapter(seed: int) -> dict:
        torch.manual_seed(seed)
        return {n: p for n, p in lora.attach(base(), Lora(rank=2), "tiny").named_parameters() if "lora_A" in n}

    one, same, other = adapter(5), adapter(5), adapter(6)
    assert all(torch.equal(one[n], same[n]) for n in one)
    assert not any(torch.equal(one[n], other[n]) for n in one)


def test_saved_directory_is_plain_peft_and_nothing_else(adapter, base):
    assert sorted(p.name for p in adapter.iterdir()) == [lora.CONFIG_FILE, lora.WEIGHTS_FILE]
    config = json.loads((adapter / lora.CONFIG_FILE).read_text())
    named = [config[k] for k in ("peft_type", "r", "lora_alpha", "base_model_name_or_path")]
    assert named == ["LORA", 4, 8.0, "tiny"]
    assert not any("embed" in n or "lm_head" in n for n in load_file(adapter / lora.WEIGHTS_FILE))
    ours = lora.load(base(), adapter)
    theirs = PeftModel.from_pretrained(base(), str(adapter))
    assert torch.equal(logits(ours), logits(theirs))
    assert (logits(ours) - logits(base())).abs().max() > 1e-3


def test_saved_config_lists_targets_in_order_so_that_the_same_training_has_the_same_digest(adapter):
    targets = json.loads((adapter / lora.CONFIG_FILE).read_text())["target_modules"]
    assert len(targets) == 14
    assert targets == sorted(targets)


def test_loaded_adapter_trains_only_when_asked(base, adapter):
    assert not any(p.requires_grad for p in lora.load(base(), adapter).parameters())
    trainable = [n for n, p in lora.load(base(), adapter, trainable=True).named_parameters() if p.requires_grad]
    assert len(trainable) == 2 * 14


def test_second_adapter_goes_beside_the_first(base, adapter, tmp_path):
    model = lora.load(base(), adapter)
    first = logits(model)
    other = tmp_path / "other"
    other.mkdir()
    torch.manual_seed(1)
    lora.save(lora.attach(base(), Lora(rank=2, targets=["q_proj"]), "tiny"), other)
    lora.load(model, other, name="other")
    assert torch.equal(logits(model), first)
    model.set_adapter("other")
    assert torch.equal(logits(model), logits(base()))  # its B is zero
    model.set_adapter("default")
    assert torch.equal(logits(model), first)


def drop_first(tensors: dict) -> None:
    del tensors[sorted(tensors)[0]]


def add_one(tensors: dict) -> None:
    tensors["base_model.model.model.layers.7.mlp.up_proj.lora_A.weight"] = torch.zeros(4, 64)


WRONG = {
    "a tensor is missing": ({"tensors": drop_first}, "1 tensors .*layers.0.mlp.down_proj.lora_A.weight"),
    "a tensor too many": ({"tensors": add_one}, "1 tensors .*layers.7.mlp.up_proj"),
    "another rank": ({"config": lambda c: c.update(r=8)}, "size mismatch for .*lora_[AB]"),
    "fewer targets": ({"config": lambda c: c.update(target_modules=["q_proj"])}, "24 tensors"),
    "targets of another base": ({"config": lambda c: c.update(target_modules=["query_key_value"])}, "query_key_value"),
    "no type": ({"config": lambda c: c.pop("peft_type")}, "peft_type"),
    "an unknown type": ({"config": lambda c: c.update(peft_type="NONESUCH")}, "NONESUCH"),
    "a rank that is no number": ({"config": lambda c: c.update(r="four")}, "TypeError"),
}


@pytest.mark.parametrize("beside", [False, True], ids=["on a base", "beside another"])
@pytest.mark.parametrize(("change", "why"), WRONG.values(), ids=WRONG)
def test_adapter_that_does_not_fit_is_refused_with_the_reason(base, adapter, broken, change, why, beside):
    model = lora.load(base(), adapter) if beside else base()
    before = logits(model)
    with pytest.raises(AdapterError, match=why) as caught:
        lora.load(model, broken(**change), name="wrong")
    assert caught.value.where.endswith("broken")
    if beside:  # and what was there still answers, alone
        assert list(model.peft_config) == ["default"]
        assert torch.equal(logits(model), before)


def test_adapter_of_a_base_of_another_size_is_refused(adapter):
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 97}
    with pytest.raises(AdapterError, match="size mismatch"):
        lora.load(AutoModelForCausalLM.from_config(CONFIG_MAPPING["llama"](**shape)), adapter)


@pytest.mark.parametrize("name", [lora.CONFIG_FILE, lora.WEIGHTS_FILE])
def test_missing_file_is_named(base, adapter, name):
    (adapter / name).unlink()
    with pytest.raises(AdapterError, match=f"no {name}"):
        lora.load(base(), adapter)


@pytest.mark.parametrize("name", [lora.CONFIG_FILE, lora.WEIGHTS_FILE])
def test_cut_off_file_is_refused(base, adapter, name):
    whole = (adapter / name).read_bytes()
    (adapter / name).write_bytes(whole[:-100])
    with pytest.raises(AdapterError, match="does not fit this base"):
        lora.load(base(), adapter)
