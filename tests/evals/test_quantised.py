"""QLoRA's way from training to both merged models is followed, and a merge into the wrong base is found.

pytest tests/evals/test_quantised.py
"""

from __future__ import annotations

import pytest
import torch

import tunesmith
from tunesmith.errors import UsageError
from tunesmith.evals.quantised import difference
from tunesmith.methods import qlora
from tunesmith.training.run import all_runs

QLORA = {"type": "qlora", "rank": 4, "alpha": 8}
merge = qlora.merge


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    torch.use_deterministic_algorithms(False)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"train.engine": "plain"}, {"train.dtype": "bfloat16"},
                                     {"method": QLORA | {"double_quant": False, "block_size": 128}}],
                         ids=["fast", "plain", "bfloat16", "single quantisation"])
def test_every_stage_answers_as_the_one_before_as_far_as_it_should(make_recipe, changes):
    proof = tunesmith.verify_quantised(make_recipe(**{"method": QLORA} | changes), steps=3)
    assert proof["ok"] is True, proof
    assert [(s["stage"], s["against"]) for s in proof["stages"]] == [("loaded", "trained"), ("merged", "loaded"),
                                                                     ("original", "merged")]
    loaded, merged, original = proof["stages"]
    assert max(loaded["largest_difference"], merged["largest_difference"]) < proof["quantisation_difference"]
    assert 0 < original["largest_difference"] <= original["tolerance"] == 3 * proof["quantisation_difference"]
    assert original["weight_difference"] <= 1
    assert all(s["why"] and s["tokens"] > 0 and s["same_tokens"] == (s["other_tokens"] == 0) for s in proof["stages"])
    assert all_runs() == []


def onto_the_original_without_telling(model, onto="dequantised", original=None):
    """The adapter that is asked to go into the dequantised weights goes into those from before quantisation."""
    if onto == "original":
        return merge(model, onto, original)
    base = model.get_base_model()
    kept = [(n, m, m.weight) for n, m in base.named_modules() if isinstance(m, qlora.Nf4Linear)]
    merged = merge(model)
    for name, _, weight in kept:
        place = merged.get_submodule(name.replace(".base_layer", ""))
        place.weight.data += ORIGINAL[name.replace(".base_layer", "")] - weight
    return merged


def onto_the_dequantised_without_telling(model, onto="dequantised", original=None):
    return merge(model)


ORIGINAL: dict[str, torch.Tensor] = {}


@pytest.mark.slow
@pytest.mark.parametrize(("wrong", "stage"), [(onto_the_original_without_telling, "merged"),
                                              (onto_the_dequantised_without_telling, "original")])
def test_control_a_merge_into_the_wrong_base_is_found(make_recipe, tiny_base, monkeypatch, wrong, stage, capsys):
    from transformers import AutoModelForCausalLM

    ORIGINAL.update({n: m.weight.detach() for n, m in AutoModelForCausalLM.from_pretrained(tiny_base).named_modules()
                     if isinstance(m, torch.nn.Linear)})
    monkeypatch.setattr(qlora, "merge", wrong)
    proof = tunesmith.verify_quantised(make_recipe(method=QLORA), steps=2)
    assert proof["ok"] is False
    failed = [s["stage"] for s in proof["stages"] if not s["ok"]]
    assert stage in failed and "loaded" not in failed
    assert proof["stages"][-1]["weight_difference"] > 10
    assert stage in proof["message"]


def test_control_an_adapter_that_is_not_what_was_trained_is_found(make_recipe, monkeypatch):
    save = qlora.save

    def halved(model, directory):
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_B" in name:
                    p.mul_(0.5)
        save(model, directory)

    monkeypatch.setattr(qlora, "save", halved)
    proof = tunesmith.verify_quantised(make_recipe(method=QLORA), steps=3)
    assert [s["stage"] for s in proof["stages"] if not s["ok"]][0] == "loaded"


def test_a_recipe_without_a_quantised_base_is_refused(make_recipe):
    with pytest.raises(UsageError, match="there is no quantised base"):
        tunesmith.verify_quantised(make_recipe())


def test_a_difference_knows_no_constant_and_is_relative():
    x = [torch.tensor([[1.0, 2.0, 4.0]])]
    assert difference(x, [x[0] + 7]) < 1e-12
    assert difference(x, [1.5 * x[0]]) == pytest.approx(0.5)
    assert difference(x, x) == 0


@pytest.mark.slow
def test_at_the_command_line(make_recipe, command, monkeypatch):
    recipe = make_recipe(method=QLORA)
    said = command("verify", "quantised", recipe, "--steps", 2, check=0).stdout
    assert said.splitlines()[0].split() == ["stage", "against", "difference", "allowed", "same", "tokens"]
    assert said.splitlines()[-1].startswith("ok: 2 steps of QLoRA in float32")
    monkeypatch.setattr(qlora, "merge", onto_the_dequantised_without_telling)
    wrong = command("verify", "quantised", recipe, "--steps", 2, "--json", check=1).json
    assert wrong["ok"] is False
    assert command("verify", "quantised", make_recipe(), check=2).stdout == ""
