"""What holds for every method: counts, gradients, files, merging, switching off, resuming, refusing.

python -m pytest tests/methods/test_all.py
"""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tests.methods import reference
from tests.methods.reference import METHODS, NO_BASE_START, NOT_PEFT, PLAIN_PATH, UNMERGED, logits, make_rows, moved, trained
from transformers import AutoModelForCausalLM

from tunesmith import methods
from tunesmith.engine import fast, plain
from tunesmith.errors import AdapterError
from tunesmith.methods import files
from tunesmith.objectives.sft import Sft
from tunesmith.recipe.schema import Train
from tunesmith.training import checkpoint
from tunesmith.training.loop import Training

ROWS = make_rows([9, 14, 5])


# ---- what is trained --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_trainable_parameters_are_those_of_the_formula_and_of_no_weights(named, attached, decoder, architecture):
    with torch.device("meta"):
        shape_only = AutoModelForCausalLM.from_config(decoder(architecture).config)
    found = methods.of(METHODS[named]).estimate(shape_only, METHODS[named])
    model = attached(named, architecture, fresh=True)
    assert found.trainable == sum(p.numel() for p in trained(model).values())
    assert {p.dtype for p in trained(model).values()} == {torch.float32}


def test_adapter_takes_the_bytes_that_were_estimated(named, decoder, saved):
    found = methods.of(METHODS[named]).estimate(decoder(), METHODS[named])
    file = (saved(named) / files.WEIGHTS_FILE).read_bytes()
    assert len(file) - 8 - int.from_bytes(file[:8], "little") == found.adapter_bytes


def test_before_the_first_step_it_is_the_base(named, attached, decoder):
    model = attached(named, fresh=True)
    with torch.no_grad():
        base = decoder()
        if named.startswith("qlora"):
            settings = METHODS[named]
            for name, p in base.named_parameters():
                if p.ndim == 2 and "embed" not in name and "lm_head" not in name:
                    p.copy_(reference.Packed.of(p, settings.block_size, settings.double_quant).dequantise(torch.float32))
    gap = (logits(model) - logits(base)).abs().max()
    if named in NO_BASE_START:
        assert gap > 0.01  # a prompt, from the first step on
    else:
        assert gap < 2e-5


# ---- loss and gradients -----------------------------------------------------------------------------------------------


def losses(model, forward_loss, rows) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    value, _hits = forward_loss(model, rows)
    value.backward()
    return value.item(), {reference.saved_name(model, n): p.grad.double() for n, p in trained(model).items()
                          if p.grad is not None}


def of_the_formula(base, folder, rows):
    config = json.loads((folder / files.CONFIG_FILE).read_text())
    file = folder / methods.QUANTISATION_FILE
    quantised = json.loads(file.read_text()) if file.is_file() else None
    tensors = {n: t.double().requires_grad_() for n, t in load_file(folder / files.WEIGHTS_FILE).items()}
    value = reference.loss(base.double(), config, tensors, rows, quantised)
    value.backward()
    return value.item(), {n: t.grad for n, t in tensors.items() if t.grad is not None}


def assert_same(ours, theirs, within: float) -> None:
    """Losses and gradients; of PiSSA's saved halves the first is what is trained."""
    assert ours[0] == pytest.approx(theirs[0], rel=within)
    assert ours[1] and set(ours[1]) <= set(theirs[1])
    for name, gradient in ours[1].items():
        want = theirs[1][name][tuple(slice(0, n) for n in gradient.shape)]
        assert (gradient - want).norm() <= within * want.norm() + 1e-7, name


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_loss_and_gradients_are_those_of_the_formula_in_float64(named, attached, decoder, saved, architecture):
    model = attached(named, architecture)
    want = of_the_formula(decoder(architecture), saved(named, model), ROWS)
    assert_same(losses(model.train(), plain.forward_loss, ROWS), want, 2e-4)
    assert any(g.norm() > 0.01 for g in want[1].values())


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_the_fast_path_trains_the_same_or_says_why_it_does_not(named, attached, architecture):
    model = attached(named, architecture).train()
    reason = fast.why_not(model, 64)
    if named in PLAIN_PATH:
        assert reason and ("virtual tokens" in reason or "whole copy" in reason)
        return
    assert reason is None
    want = losses(model, plain.forward_loss, ROWS)
    fast.accelerate(model)
    assert_same(losses(model, fast.forward_loss, ROWS), want, 2e-4)


# ---- files ------------------------------------------------------------------------------------------------------------


def test_saved_and_loaded_it_answers_bit_for_bit(named, attached, decoder, saved):
    model = attached(named)
    folder = saved(named, model)
    again = methods.load(decoder(), folder)
    if named.startswith("pissa"):  # one product of twice the rank instead of two: another order of the sums
        torch.testing.assert_close(logits(again), logits(model), rtol=1e-4, atol=1e-5)
    else:
        assert torch.equal(logits(again), logits(model))
    assert (logits(again) - logits(decoder())).abs().max() > 0.01
    assert not any(p.requires_grad for p in again.parameters())
    assert methods._module_of(again) is methods.of(METHODS[named])


@pytest.mark.parametrize("named", sorted(METHODS.keys() - NOT_PEFT))
def test_plain_peft_loads_it_with_the_same_answers(named, decoder, saved):
    folder = saved(named)
    ours, base = methods.load(decoder(), folder), decoder()
    if named.startswith("qlora"):
        from tunesmith.methods.qlora import quantise

        quantise(base, METHODS[named].block_size, METHODS[named].double_quant)
    theirs = PeftModel.from_pretrained(base, str(folder))
    with torch.no_grad():
        want = theirs.eval()(input_ids=torch.arange(3, 40)[None]).logits
    assert torch.equal(logits(ours), want[:, -37:])  # PEFT's prompt tuning answers for its virtual tokens too


def test_files_are_the_two_of_peft_and_their_config_names_base_and_type(named, saved):
    folder = saved(named)
    extra = {methods.QUANTISATION_FILE} if named.startswith("qlora") else set()
    assert {p.name for p in folder.iterdir()} == {files.CONFIG_FILE, files.WEIGHTS_FILE} | extra
    config = json.loads((folder / files.CONFIG_FILE).read_text())
    assert config["base_model_name_or_path"] == "tiny"
    assert methods.kind(folder) == METHODS[named].type


def drop(tensors: dict) -> None:
    del tensors[sorted(tensors)[0]]


def add(tensors: dict) -> None:
    tensors["nobody.asked.for"] = torch.zeros(3)


def cut(tensors: dict) -> None:
    name = sorted(tensors)[-1]
    tensors[name] = tensors[name][..., :-1].contiguous()


@pytest.mark.parametrize("change", [drop, add, cut])
def test_tensors_that_are_not_exactly_those_of_the_base_are_refused(named, decoder, saved, change):
    folder = saved(named)
    tensors = load_file(folder / files.WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, folder / files.WEIGHTS_FILE, metadata={"format": "pt"})
    with pytest.raises(AdapterError, match="does not fit this base") as caught:
        methods.load(decoder(), folder)
    assert caught.value.where == str(folder)


def test_another_base_is_refused(named, decoder, saved):
    with pytest.raises(AdapterError, match="does not fit this base"):
        methods.load(decoder(hidden_size=32, head_dim=8, intermediate_size=64), saved(named))


def test_an_unknown_type_is_refused_by_its_name(decoder, saved):
    folder = saved("lora")
    (folder / files.CONFIG_FILE).write_text('{"peft_type": "VERA"}')
    with pytest.raises(AdapterError, match="type VERA is not known here"):
        methods.load(decoder(), folder)


# ---- on and off, merged -----------------------------------------------------------------------------------------------


def test_switched_off_it_is_the_base_and_on_again_itself(named, attached, decoder, saved):
    base = decoder()
    model = methods.load(base, saved(named))
    on = logits(model)
    want = decoder()
    if named.startswith("qlora"):
        from tunesmith.methods.qlora import quantise

        quantise(want, METHODS[named].block_size, METHODS[named].double_quant)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(want))
    assert torch.equal(logits(model), on)


@pytest.mark.parametrize("named", sorted(UNMERGED))
def test_what_has_no_merged_form_says_so(named, attached):
    with pytest.raises(AdapterError, match="cannot be merged") as caught:
        methods.merge(attached(named))
    assert caught.value.fix


@pytest.mark.parametrize("named", sorted(METHODS.keys() - UNMERGED))
def test_merged_it_answers_the_same_without_an_adapter(named, attached, decoder):
    model = attached(named)
    want = logits(model)
    merged = methods.merge(model)
    assert type(merged) is type(decoder()) and not [n for n, _ in merged.named_modules() if "lora" in n or "ia3" in n]
    torch.testing.assert_close(logits(merged), want, rtol=1e-3, atol=1e-3)
    assert (logits(merged) - logits(decoder())).abs().max() > 0.05  # and the base would not pass for it


@pytest.mark.parametrize("named", sorted(METHODS.keys() - UNMERGED))
def test_merged_checkpoint_loads_without_us(named, attached, tmp_path):
    merged = methods.merge(attached(named))
    merged.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)), logits(merged))


# ---- training goes on -------------------------------------------------------------------------------------------------


def training(model, tmp_path, named) -> Training:
    config = Train(learning_rate=1e-2, weight_decay=0.01)
    return Training(tmp_path, config, model, Sft(plain.forward_loss), [None] * 4, lambda _r: None, [],
                    learning_rate_ratios=methods.learning_rate_ratios(METHODS[named]))


def step(t: Training, number: int) -> None:
    value, _hits = plain.forward_loss(t.model, make_rows([6, 11], seed=number))
    value.backward()
    t.optimizer.step()
    t.scheduler.step()
    t.optimizer.zero_grad(set_to_none=True)


def test_resumed_training_is_the_uninterrupted_one_bit_for_bit(named, attached, tmp_path):
    straight = training(attached(named, fresh=True).train(), tmp_path, named)
    for number in range(4):
        step(straight, number)
        if number == 1:
            saved = checkpoint.save(tmp_path, 2, straight.model, straight.optimizer, straight.scheduler, {}, keep=1)
    again = training(moved(attached(named, fresh=True), seed=9).train(), tmp_path, named)
    assert checkpoint.restore(saved, again.model, again.optimizer, again.scheduler)["global_step"] == 2
    for number in (2, 3):
        step(again, number)
    for (name, ours), theirs in zip(trained(again.model).items(), trained(straight.model).values(), strict=True):
        assert torch.equal(ours, theirs), name
    ours, theirs = again.optimizer.state_dict(), straight.optimizer.state_dict()
    assert ours["param_groups"] == theirs["param_groups"] and ours["state"].keys() == theirs["state"].keys()
    for index, values in theirs["state"].items():
        assert all(torch.equal(v, ours["state"][index][k]) for k, v in values.items())


def test_a_checkpoint_of_another_shape_is_not_restored(named, attached, saved):
    folder = saved(named)
    tensors = load_file(folder / files.WEIGHTS_FILE)
    drop(tensors)
    save_file(tensors, folder / files.WEIGHTS_FILE)
    with pytest.raises(ValueError):
        methods.restore(attached(named), folder)


def test_an_adapter_that_changes_nothing_is_told_from_one_that_does(named, attached):
    model = attached(named, fresh=True)
    assert methods.unmoved(model)
    assert methods.unmoved(moved(model)) is None


@pytest.mark.parametrize("named", sorted(METHODS.keys() - {"full"}))
def test_training_leaves_the_base_as_it_is(named, attached, tmp_path):
    t = training(attached(named, fresh=True).train(), tmp_path, named)
    before = {n: p.detach().clone() for n, p in t.model.named_parameters() if not p.requires_grad}
    buffers = {n: b.clone() for n, b in t.model.named_buffers()}
    step(t, 0)
    assert all(torch.equal(p, before[n]) for n, p in t.model.named_parameters() if n in before)
    assert all(torch.equal(b, buffers[n]) for n, b in t.model.named_buffers())
