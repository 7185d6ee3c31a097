"""What only some methods have: LoRA's options and their silent failures, QLoRA's two merges, where things may not stand.

python -m pytest tests/methods/test_variants.py
"""

from __future__ import annotations

import json
import math

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tests.methods.reference import METHODS, logits, make_rows, moved, trained

from tunesmith import methods
from tunesmith.engine import plain
from tunesmith.errors import AdapterError, RecipeError
from tunesmith.methods import files, report
from tunesmith.recipe.methods import Bottleneck, Ia3, Lora, Prefix, Prompt, Qlora
from tunesmith.recipe.schema import Train
from tunesmith.training.loop import Training

# ---- LoRA's options ---------------------------------------------------------------------------------------------------


def test_plain_lora_and_dora_are_what_peft_makes_of_the_same_seed(decoder):
    for method, theirs in ((Lora(rank=4, alpha=8.0), {}), (Lora(rank=4, alpha=8.0, dora=True, rslora=True),
                                                          {"use_dora": True, "use_rslora": True})):
        torch.manual_seed(3)
        ours = methods.attach(decoder(), method, "tiny")
        torch.manual_seed(3)
        peft = get_peft_model(decoder(), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM",
                                                    **theirs))
        # the seed decides A; decoder() seeds too, so both draw from the same place
        for (name, a), b in zip(trained(ours).items(), trained(peft).values(), strict=True):
            assert torch.equal(a, b), name
        assert torch.equal(logits(moved(ours)), logits(moved(peft)))


def test_rank_and_alpha_patterns_reach_the_layers_that_they_name(attached):
    model = attached("patterns")
    layers = {n.removeprefix("base_model.model.model."): (m.r["default"], m.scaling["default"]) for n, m in
              model.named_modules() if isinstance(m, lora_layer())}
    assert layers["layers.0.mlp.down_proj"] == layers["layers.1.mlp.down_proj"] == (7, 8 / 7)
    assert layers["layers.0.self_attn.v_proj"] == (1, 8.0)
    assert layers["layers.1.self_attn.v_proj"] == (4, 2.0)
    assert layers["layers.0.self_attn.o_proj"] == (4, 1.5 / 4)


def lora_layer():
    from peft.tuners.lora import LoraLayer

    return LoraLayer


def test_layers_to_transform_takes_those_layers_and_no_others(attached):
    assert {n.split(".layers.")[1].split(".")[0] for n in trained(attached("one layer"))} == {"1"}


@pytest.mark.parametrize(("method", "what", "fix"), [
    (Lora(rank_pattern={"q_porj": 2}), "method.rank_pattern: 'q_porj' matches no adapted layer", "did you mean 'q_proj'?"),
    (Lora(targets=["v_proj"], alpha_pattern={"q_proj": 2.0}), "method.alpha_pattern: 'q_proj' matches no adapted layer",
     "did you mean 'v_proj'?"),
    (Lora(layers_to_transform=[0, 2]), "method.layers_to_transform: there is no layer 2", "the base has 2, from 0 to 1"),
    (Lora(modules_to_save=["nrom"]), "method.modules_to_save: 'nrom' matches no module", "did you mean 'norm'?"),
    (Lora(modules_to_save=["o_proj"]), "method.modules_to_save: o_proj is trained whole and has an adapter",
     "take it out of method.targets or of method.modules_to_save"),
    (Lora(targets=["q_proj"], modules_to_save=["mlp"], rank_pattern={"mlp.up_proj": 3}),
     "method.rank_pattern: 'mlp.up_proj' matches no adapted layer", "it has: q_proj"),
    (Lora(targets=[]), "method.targets: the list is empty", "name at least one"),
    (Ia3(targets=["q_porj"]), "method.targets: 'q_porj' matches no linear layer", "did you mean 'q_proj'?"),
    (Ia3(targets=["k_proj"], feedforward=["down_proj"]), "method.feedforward: model.layers.0.mlp.down_proj is not among "
     "method.targets", "name it in both"),
    (Ia3(targets=["k_proj"], feedforward=["dwon_proj"]), "method.feedforward: 'dwon_proj' matches no linear layer",
     "did you mean 'down_proj'?"),
])
def test_names_that_mean_nothing_are_mistakes_and_not_silence(decoder, method, what, fix):
    for verb in (lambda m: methods.of(method).estimate(m, method), lambda m: methods.attach(m, method, "tiny")):
        with pytest.raises(RecipeError) as caught:
            verb(decoder())
        assert caught.value.what.startswith(what) and caught.value.fix.startswith(fix)


@pytest.mark.parametrize("module", ["lm_head", "embed_tokens"])
def test_a_tied_weight_is_not_trained_apart_from_the_other(decoder, module):
    method = Lora(targets=["q_proj"], modules_to_save=[module])
    with pytest.raises(RecipeError, match="is tied to another module of this base"):
        methods.attach(decoder(tie_word_embeddings=True), method, "tiny")
    model = methods.attach(decoder(), method, "tiny")  # untied, it is a weight of its own
    assert any(module in n for n in trained(model))


def test_modules_to_save_means_a_name_and_not_an_ending(decoder):
    """PEFT alone takes every module whose name ends with the word: `norm` is three kinds of them."""
    model = methods.attach(decoder(), Lora(targets=["q_proj"], modules_to_save=["norm"]), "tiny")
    whole = [n for n in trained(model) if "modules_to_save" in n]
    assert whole == ["base_model.model.model.norm.modules_to_save.default.weight"]
    theirs = get_peft_model(decoder(), LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["norm"]))
    assert len([n for n in trained(theirs) if "modules_to_save" in n]) > 1


def test_whole_modules_are_not_trained_in_bfloat16(decoder):
    with pytest.raises(RecipeError, match="need float32"):
        methods.attach(decoder(dtype=torch.bfloat16), Lora(modules_to_save=["norm"]), "tiny")


def test_whole_modules_alone_count_as_a_change(attached):
    model = attached("whole modules", fresh=True)
    assert methods.unmoved(model)
    with torch.no_grad():
        next(p for n, p in trained(model).items() if "lm_head" in n).add_(0.1)
    assert methods.unmoved(model) is None


@pytest.mark.parametrize("name", ["lora", "dora", "qlora"])
def test_lora_plus_lets_b_learn_faster_and_nothing_else(attached, tmp_path, name):
    method = METHODS[name].model_copy(update={"lora_plus_ratio": 16.0})
    assert methods.learning_rate_ratios(METHODS[name]) == {}

    def first_step(ratio: float, fresh: bool = False) -> tuple[dict, dict]:
        model = attached(name, fresh=True)
        t = Training(tmp_path, Train(learning_rate=1e-3, schedule="constant", warmup=0.0), model, plain.forward_loss,
                     [None] * 4, lambda _r: None, [],
                     learning_rate_ratios=methods.learning_rate_ratios(method) if ratio > 1 else {})
        before = {n: p.detach().clone() for n, p in trained(moved(model)).items()}
        plain.forward_loss(model, make_rows([6, 11]))[0].backward()
        t.optimizer.step()
        return {n: (p.detach() - before[n]) for n, p in trained(model).items()}, t.optimizer.state_dict()

    slow, _ = first_step(1.0)
    fast, state = first_step(16.0)
    for part, ratio in (("lora_A", 1.0), ("lora_B", 16.0), ("magnitude", 1.0)):
        for n in (n for n in slow if part in n):
            torch.testing.assert_close(fast[n], ratio * slow[n], rtol=1e-3, atol=1e-6)
    assert [g["lr"] for g in state["param_groups"]] == [1e-3, 16e-3]


# ---- PiSSA ------------------------------------------------------------------------------------------------------------


def test_pissa_starts_at_the_largest_singular_values(attached, decoder):
    model, base = attached("pissa", fresh=True), decoder()
    for name, layer in model.named_modules():
        if isinstance(layer, lora_layer()):
            product = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            weight = base.get_submodule(name.removeprefix("base_model.model.")).weight
            u, s, vt = torch.linalg.svd(weight.double())
            torch.testing.assert_close(product.double(), (u[:, :4] * s[:4]) @ vt[:4], rtol=1e-3, atol=1e-4)
            assert torch.linalg.matrix_norm(weight - product, 2) < s[4] + 1e-4  # what is left begins at the fifth


def test_pissa_gives_the_gradients_of_pefts_pissa(decoder):
    """Which trains on a changed base, and cannot switch its adapter off."""
    torch.manual_seed(3)
    ours = methods.attach(decoder(), METHODS["pissa"], "tiny")
    theirs = get_peft_model(decoder(), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM",
                                                  init_lora_weights="pissa"))
    for model in (ours, theirs):
        plain.forward_loss(model, make_rows([9, 14]))[0].backward()
    for (name, a), b in zip(trained(ours).items(), trained(theirs).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert (a.grad - b.grad).norm() < 1e-3 * b.grad.norm(), name
    with ours.disable_adapter(), theirs.disable_adapter():
        assert torch.equal(logits(ours), logits(decoder()))
        assert (logits(theirs) - logits(decoder())).abs().max() > 0.1


def test_pissa_is_saved_as_a_plain_lora_of_twice_the_rank(saved, decoder):
    folder = saved("pissa rslora patterns")
    config = json.loads((folder / files.CONFIG_FILE).read_text())
    assert (config["r"], config["init_lora_weights"], config["rank_pattern"]) == (8, True, {"q_proj": 4})
    assert config["lora_alpha"] == pytest.approx(8 * math.sqrt(2))
    tensors = load_file(folder / files.WEIGHTS_FILE)
    assert {len(t) for n, t in tensors.items() if "lora_A" in n} == {4, 8}
    assert report.vllm(config)["loads"]
    beside = methods.load(decoder(), folder)  # and goes beside another, which PiSSA in PEFT does not
    first = logits(beside)
    methods.load(beside, saved("lora"), name="other")
    assert torch.equal(logits(beside), first)


def test_pissa_of_a_rank_above_the_layers_own_still_starts_as_the_base(decoder):
    model = methods.attach(decoder(), Lora(rank=60, alpha=60.0, init="pissa"), "tiny")
    torch.testing.assert_close(logits(model), logits(decoder()), rtol=1e-3, atol=1e-3)


def test_check_judges_the_adapter_that_pissa_saves():
    assert methods.saved_config(METHODS["pissa"], "tiny")["r"] == 8
    assert report.vllm(methods.saved_config(Lora(rank=40, init="pissa"), "tiny"))["max_lora_rank"] == 128


# ---- QLoRA ------------------------------------------------------------------------------------------------------------


def test_qlora_keeps_the_head_the_embedding_and_the_norms(attached, decoder):
    model, base = attached("qlora").get_base_model(), decoder()
    assert torch.equal(model.lm_head.weight, base.lm_head.weight)
    assert torch.equal(model.get_input_embeddings().weight, base.get_input_embeddings().weight)
    held = sum(b.numel() * b.element_size() for b in model.model.layers.buffers())
    weights = sum(m.weight.numel() for m in base.model.layers.modules() if isinstance(m, torch.nn.Linear))
    assert 4.0 <= 8 * held / weights < 4.6


def test_the_two_merges_of_qlora_differ_and_each_says_its_base(attached, decoder):
    model, base = attached("qlora"), decoder()
    adapter = {n: m for n, m in model.named_modules() if isinstance(m, lora_layer())}
    name, layer = next(iter(adapter.items()))
    delta = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    quantised, place = layer.base_layer.weight, name.removeprefix("base_model.model.")
    want = logits(model)
    onto_original = methods.merge(model, onto="original", original=decoder())
    onto_quantised = methods.merge(model)
    torch.testing.assert_close(onto_quantised.get_submodule(place).weight, quantised + delta, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(onto_original.get_submodule(place).weight, base.get_submodule(place).weight + delta, rtol=1e-5,
                               atol=1e-6)
    near, far = ((logits(m) - want).abs().max() for m in (onto_quantised, onto_original))
    assert near < 1e-3 < 0.1 < far


def test_qlora_onto_the_original_needs_it(attached):
    with pytest.raises(AdapterError, match="needs it"):
        methods.merge(attached("qlora"), onto="original")


def test_qlora_adapter_loads_on_the_original_base_in_plain_peft(saved, decoder):
    theirs = PeftModel.from_pretrained(decoder(), str(saved("qlora")))
    assert (logits(theirs) - logits(decoder())).abs().max() > 0.01


def test_qlora_does_not_go_on_a_base_that_is_quantised_otherwise(saved, decoder):
    model = methods.load(decoder(), saved("qlora"))
    with pytest.raises(AdapterError, match="quantised in another way"):
        methods.load(model, saved("qlora single"), name="other")
    assert list(model.peft_config) == ["default"]


def test_qlora_without_its_file_is_plain_lora_and_a_wrong_file_is_refused(saved, decoder):
    folder = saved("qlora")
    (folder / methods.QUANTISATION_FILE).write_text('{"quant_type": "fp4", "block_size": 64, "double_quant": true}')
    with pytest.raises(AdapterError, match="says fp4"):
        methods.load(decoder(), folder)
    (folder / methods.QUANTISATION_FILE).unlink()
    assert methods.kind(folder) == "lora"


def test_a_layer_that_cannot_be_quantised_is_named():
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    gpt2 = AutoModelForCausalLM.from_config(CONFIG_MAPPING["gpt2"](n_embd=32, n_layer=2, n_head=2, vocab_size=97))
    with pytest.raises(RecipeError, match="cannot quantise transformer.h.0.attn.c_attn, a Conv1D"):
        methods.attach(gpt2, Qlora(), "tiny")


# ---- other architectures, other dtypes --------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["gpt2", "gemma3_text", "phi", "phi3", "mistral", "qwen2"])
@pytest.mark.parametrize("method", [Ia3(), Prompt(tokens=4), Prefix(tokens=4), Bottleneck(size=5, after=["mlp", "attention"]),
                                    Lora(rank=3, init="pissa")], ids=lambda m: m.type)
def test_other_decoders_count_train_save_and_load(architecture, method, decoder, tmp_path):
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    def fresh():
        if architecture != "gpt2":
            return decoder(architecture)
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(CONFIG_MAPPING["gpt2"](n_embd=32, n_layer=2, n_head=2, vocab_size=97)).eval()

    model = methods.attach(fresh(), method, "tiny")
    assert methods.of(method).estimate(fresh(), method).trainable == sum(p.numel() for p in trained(model).values())
    moved(model, std=0.2)
    plain.forward_loss(model, make_rows([9, 14]))[0].backward()
    assert all(p.grad is not None and p.grad.any() for p in trained(model).values())
    methods.save(model, tmp_path)
    assert torch.allclose(logits(methods.load(fresh(), tmp_path)), logits(model), atol=1e-4)


@pytest.mark.parametrize("name", ["lora", "dora", "pissa", "qlora", "prompt", "prefix", "ia3", "bottleneck"])
def test_on_a_bfloat16_base_what_is_trained_stays_float32_and_comes_back_bit_for_bit(attached, decoder, saved, name):
    model = attached(name, dtype=torch.bfloat16)
    assert {p.dtype for p in trained(model).values()} == {torch.float32}
    value, _ = plain.forward_loss(model.train(), make_rows([9, 14]))
    value.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in trained(model).values())
    again = methods.load(decoder(dtype=torch.bfloat16), saved(name, model))
    gap = (logits(again).float() - logits(model).float()).abs().max()
    assert gap == 0 or (name == "pissa" and gap < 0.2)


def test_full_on_a_bfloat16_base_is_float32_from_start_to_answer(attached, decoder, saved):
    model = attached("full", dtype=torch.bfloat16)
    assert model.dtype == torch.float32
    again = methods.load(decoder(dtype=torch.bfloat16), saved("full", model))
    assert torch.equal(logits(again), logits(model)) and logits(again).dtype == torch.float32


def test_full_trains_a_tied_head_once(attached, decoder, saved):
    model = attached("full", tie_word_embeddings=True)
    folder = saved("full", model)
    assert not any("lm_head" in n for n in load_file(folder / files.WEIGHTS_FILE))
    again = methods.load(decoder(tie_word_embeddings=True), folder).get_base_model()
    assert again.lm_head.weight is again.get_input_embeddings().weight
    assert torch.equal(logits(again), logits(model))


def test_full_cannot_go_back_to_a_base_that_it_overwrote(attached):
    with pytest.raises(AdapterError, match="own weights are gone"):
        with attached("full").disable_adapter():
            pass


def test_base_digest_stands_in_the_configs_that_are_ours(decoder, tmp_path):
    for method in (METHODS["full"], METHODS["bottleneck"]):
        methods.save(methods.attach(decoder(), method, "tiny", "sha256:abc"), tmp_path)
        assert json.loads((tmp_path / files.CONFIG_FILE).read_text())["base_digest"] == "sha256:abc"


# ---- virtual tokens ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Prompt, Prefix])
def test_virtual_tokens_that_start_as_words_answer_as_those_words_would(kind, tiny_base):
    from tunesmith.models.base import resolve
    from tunesmith.models.load import model_of, tokenizer_of

    base = resolve(str(tiny_base))
    words = tokenizer_of(base)("Oak Street", add_special_tokens=False)["input_ids"]
    model = methods.attach(model_of(base, torch.float32), kind(tokens=len(words), init_text="Oak Street"), "tiny")
    ids = torch.arange(3, 12)[None]
    said = logits(model_of(base, torch.float32), torch.cat([torch.tensor([words]), ids], 1))[:, len(words) :]
    torch.testing.assert_close(logits(model, ids), said, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [Prompt, Prefix])
def test_text_is_repeated_or_cut_to_the_number_of_tokens(kind, tiny_base):
    from tunesmith.models.base import resolve
    from tunesmith.models.load import model_of

    for tokens in (1, 50):
        base = model_of(resolve(str(tiny_base)), torch.float32)
        model = methods.attach(base, kind(tokens=tokens, init_text="Oak Street"), "tiny")
        assert model.virtual_tokens == tokens == len(model.encoder.embedding.weight)


def test_a_base_without_a_tokenizer_has_no_words_to_start_from(decoder):
    with pytest.raises(RecipeError, match="method.init_text: the base has no usable tokenizer"):
        methods.attach(decoder(), Prompt(init_text="x"), "tiny")
