"""A merge on files gives what a merge in memory gives, keeps what it should keep, and refuses what it cannot do.

pytest tests/exports/test_merge.py
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.methods.reference import METHODS, UNMERGED, logits, moved

from tunesmith import methods
from tunesmith.errors import AdapterError, BaseModelError, UsageError
from tunesmith.exports import merge as module
from tunesmith.exports.merge import merge
from tunesmith.methods import files

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi", "phi3")
MERGED = sorted(METHODS.keys() - UNMERGED)
NAMED = {"one layer", "patterns", "whole modules", "ia3 named", "pissa rslora patterns"}
"""Methods whose settings name layers that not every family has."""


@pytest.fixture
def made(decoder, tmp_path):
    """`made("lora", "llama")`: (base directory, adapter directory) with every trained number moved."""

    def make(name: str, architecture: str = "llama", dtype: torch.dtype = torch.float32, **options) -> tuple[Path, Path]:
        base, adapter = tmp_path / "base", tmp_path / "adapter"
        for folder in (base, adapter):
            shutil.rmtree(folder, ignore_errors=True)
        shards = {k: options.pop(k) for k in ("max_shard_size",) if k in options}
        decoder(architecture, dtype, **options).save_pretrained(base, **shards)
        torch.manual_seed(1)
        adapter.mkdir()
        methods.save(moved(methods.attach(loaded(base, torch.float32), METHODS[name], "tiny")), adapter)
        return base, adapter

    return make


def loaded(path: Path, dtype: torch.dtype):
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    return model.eval().requires_grad_(False)


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    return {n: t for file in sorted(path.glob("*.safetensors")) for n, t in load_file(file).items()}


def in_memory(base: Path, adapter: Path, onto: str | None = None) -> dict[str, torch.Tensor]:
    """The reference: loaded, merged by PEFT or by `methods`, in float32."""
    model = methods.load(loaded(base, torch.float32), adapter)
    options = {"onto": onto, "original": loaded(base, torch.float32)} if onto else {}
    return dict(methods.merge(model, **options).state_dict())


def assert_equal(path: Path, want: dict[str, torch.Tensor]) -> None:
    found = loaded(path, torch.float32).state_dict()
    assert found.keys() == want.keys()
    for name, tensor in want.items():
        assert torch.equal(found[name], tensor), f"{name} differs by up to {(found[name] - tensor).abs().max():.1e}"


# ---- the same as in memory -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize("named", [n for n in MERGED if n not in NAMED])
def test_in_float32_it_is_the_merge_in_memory_bit_for_bit(named, architecture, made, tmp_path):
    base, adapter = made(named, architecture)
    facts = merge(base, adapter, tmp_path / "out")
    assert facts["changed"] > 0 and facts["path"] == str(tmp_path / "out")
    assert_equal(tmp_path / "out", in_memory(base, adapter))


@pytest.mark.parametrize("named", sorted(NAMED))
def test_settings_that_name_layers_too(named, made, tmp_path):
    base, adapter = made(named, "qwen2")
    merge(base, adapter, tmp_path / "out")
    assert_equal(tmp_path / "out", in_memory(base, adapter))


@pytest.mark.parametrize("onto", ["dequantised", "original"])
def test_qlora_has_two_bases(onto, made, tmp_path):
    base, adapter = made("qlora")
    facts = merge(base, adapter, tmp_path / onto, onto=onto)
    assert facts["onto"] == onto
    assert_equal(tmp_path / onto, in_memory(base, adapter, onto))


def test_the_two_bases_of_qlora_differ_and_the_quantised_one_is_the_default(made, tmp_path):
    base, adapter = made("qlora")
    for onto in (None, "dequantised", "original"):
        merge(base, adapter, tmp_path / str(onto), onto=onto)
    default, dequantised, original = (tensors_of(tmp_path / str(o)) for o in (None, "dequantised", "original"))
    key = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(default[key], dequantised[key]) and not torch.equal(default[key], original[key])


def test_qlora_is_quantised_from_the_dtype_that_it_was_trained_in(made, tmp_path):
    """bfloat16 weights have other scales, and sometimes other codes, than the float32 ones of the same files."""
    base, adapter = made("qlora")
    (adapter / "tunesmith.json").write_text(json.dumps({"dtype": "bfloat16"}))
    merge(base, adapter, tmp_path / "out", dtype="float32")
    model = methods.load(loaded(base, torch.bfloat16), adapter)
    weight = model.get_submodule("base_model.model.model.layers.0.mlp.up_proj").get_base_layer().weight.float()
    tensors = load_file(adapter / files.WEIGHTS_FILE)
    key = "base_model.model.model.layers.0.mlp.up_proj.lora_{}.weight"
    want = weight + (tensors[key.format("B")] @ tensors[key.format("A")]) * 2.0
    assert torch.equal(tensors_of(tmp_path / "out")["model.layers.0.mlp.up_proj.weight"], want)


@pytest.mark.parametrize("named", ["lora", "dora", "ia3"])
def test_what_is_merged_into_bfloat16_is_the_exact_sum_rounded_once(named, made, tmp_path):
    """PEFT rounds LoRA's delta, and then the sum: up to one unit in the last place from this."""
    base, adapter = made(named, dtype=torch.bfloat16)
    merge(base, adapter, tmp_path / "out")
    want = in_memory(base, adapter)
    found = tensors_of(tmp_path / "out")
    assert {t.dtype for t in found.values()} == {torch.bfloat16}
    assert all(torch.equal(t, want[n].to(torch.bfloat16)) for n, t in found.items())
    twice = dict(methods.merge(methods.load(loaded(base, torch.bfloat16), adapter)).state_dict())
    for name, t in found.items():
        unit = torch.finfo(torch.bfloat16).eps * want[name].abs().clamp(min=1e-6).float()
        other = (twice[name].float() - t.float()).abs()
        assert bool((other <= 2 * unit + 2e-3).all()), name


@pytest.mark.parametrize("to", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("come", [torch.float32, torch.bfloat16])
def test_every_tensor_gets_the_dtype_that_was_asked_for_and_the_config_says_so(made, tmp_path, come, to):
    base, adapter = made("lora", dtype=come)
    merge(base, adapter, tmp_path / "out", dtype=to)
    found = tensors_of(tmp_path / "out")
    assert {t.dtype for t in found.values()} == {getattr(torch, to)}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == to
    exact = in_memory(base, adapter)
    assert all(torch.equal(t, exact[n].to(t.dtype)) for n, t in found.items())


def test_what_is_not_adapted_keeps_its_bytes_and_its_dtype(made, tmp_path):
    base, adapter = made("one layer", dtype=torch.bfloat16)
    merge(base, adapter, tmp_path / "out")
    before, after = tensors_of(base), tensors_of(tmp_path / "out")
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed == {"model.layers.1.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"}


@pytest.mark.parametrize("values", [64, 1000])
def test_rows_at_a_time_give_the_same_up_to_the_order_of_sums(made, tmp_path, monkeypatch, values):
    base, adapter = made("dora", "qwen2")
    want = in_memory(base, adapter)
    monkeypatch.setattr(module, "CHUNK", values)
    merge(base, adapter, tmp_path / "out")
    for name, tensor in tensors_of(tmp_path / "out").items():
        torch.testing.assert_close(tensor, want[name], rtol=1e-6, atol=1e-7)


def test_shards_stay_shards_and_the_index_is_true(made, tmp_path):
    base, adapter = made("lora", max_shard_size="40KB")
    assert len(list(base.glob("*.safetensors"))) > 2
    merge(base, adapter, tmp_path / "out", dtype="bfloat16")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    found = {n: f.name for f in (tmp_path / "out").glob("*.safetensors") for n in safe_open(f, "pt").keys()}  # noqa: SIM118
    assert index["weight_map"] == found
    assert index["metadata"]["total_size"] == sum(t.numel() * 2 for t in tensors_of(tmp_path / "out").values())
    assert (tmp_path / "out" / "generation_config.json").is_file() == (base / "generation_config.json").is_file()


def test_gpt2s_transposed_layers(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=97, n_positions=64)).save_pretrained(base)
    for name in ("lora", "dora", "ia3"):
        shutil.rmtree(adapter, ignore_errors=True)
        adapter.mkdir()
        methods.save(moved(methods.attach(loaded(base, torch.float32), METHODS[name], "tiny")), adapter)
        merge(base, adapter, tmp_path / name)
        assert_equal(tmp_path / name, in_memory(base, adapter))


# ---- names and ties --------------------------------------------------------------------------------------------------


def rename(base: Path, how) -> None:
    file = base / "model.safetensors"
    save_file({how(n): t for n, t in load_file(file).items()}, file, metadata={"format": "pt"})


def test_a_checkpoint_whose_names_lack_the_models_prefix(made, tmp_path):
    """Saved from the bare decoder: transformers puts `model.` before its names, and so does the merge."""
    base, adapter = made("lora")
    want = in_memory(base, adapter)
    rename(base, lambda n: n.removeprefix("model."))
    merge(base, adapter, tmp_path / "out")
    assert "layers.0.mlp.up_proj.weight" in tensors_of(tmp_path / "out")
    assert_equal(tmp_path / "out", want)


def test_a_weight_that_transformers_makes_of_several_is_refused_where_it_is_adapted(tmp_path):
    """Mixtral's experts are files' tensors each, and one parameter in the model. Attention beside them is merged."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    MixtralForCausalLM(MixtralConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
                                     num_key_value_heads=1, num_local_experts=2, vocab_size=97)).save_pretrained(base)
    assert any("experts.1" in n for n in tensors_of(base))
    adapter.mkdir()
    methods.save(moved(methods.attach(loaded(base, torch.float32), METHODS["one layer"].model_copy(
        update={"targets": ["q_proj"], "layers_to_transform": None}), "tiny")), adapter)
    merge(base, adapter, tmp_path / "out")
    assert_equal(tmp_path / "out", in_memory(base, adapter))
    shutil.rmtree(adapter)
    adapter.mkdir()
    methods.save(moved(methods.attach(loaded(base, torch.float32), METHODS["full"], "tiny")), adapter)
    with pytest.raises(AdapterError, match="hold it in another form") as caught:
        merge(base, adapter, tmp_path / "full")
    assert "methods.merge" in caught.value.fix and not (tmp_path / "full").exists()


@pytest.mark.parametrize("named", ["lora", "full", "qlora"])
def test_a_tied_head_stays_tied(named, made, tmp_path):
    base, adapter = made(named, tie_word_embeddings=True)
    facts = merge(base, adapter, tmp_path / "out")
    assert facts["tied"] == {"lm_head.weight": "model.embed_tokens.weight"} and facts["untied"] == []
    assert "lm_head.weight" not in tensors_of(tmp_path / "out")
    model = loaded(tmp_path / "out", torch.float32)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert_equal(tmp_path / "out", in_memory(base, adapter))


@pytest.mark.parametrize("twice", [False, True], ids=["once in the file", "twice in the file"])
@pytest.mark.parametrize("settings", [{"target_modules": ["lm_head", "q_proj"]},
                                      {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
                                      {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}],
                         ids=["adapter on the head", "head trained whole", "embedding trained whole"])
def test_a_tied_head_that_is_adapted_by_itself_is_untied(decoder, tmp_path, settings, twice):
    """The adapter on its base changes one of the two; so the merged model has two."""
    from peft import LoraConfig, PeftModel, get_peft_model

    base, adapter = tmp_path / "base", tmp_path / "adapter"
    decoder(tie_word_embeddings=True).save_pretrained(base)
    if twice:
        tensors = load_file(base / "model.safetensors")
        save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, base / "model.safetensors",
                  metadata={"format": "pt"})
    torch.manual_seed(1)
    model = moved(get_peft_model(loaded(base, torch.float32), LoraConfig(r=4, task_type="CAUSAL_LM", **settings)))
    model.save_pretrained(adapter, save_embedding_layers=False)
    want = logits(PeftModel.from_pretrained(loaded(base, torch.float32), str(adapter)))
    facts = merge(base, adapter, tmp_path / "out")
    assert facts["untied"] == ["lm_head.weight", "model.embed_tokens.weight"] and facts["tied"] == {}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    merged = loaded(tmp_path / "out", torch.float32)
    assert merged.lm_head.weight is not merged.model.embed_tokens.weight
    torch.testing.assert_close(logits(merged), want, rtol=1e-4, atol=1e-4)
    assert (logits(loaded(base, torch.float32)) - want).abs().max() > 0.05


def test_biases_that_were_trained_are_merged(decoder, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    base = tmp_path / "base"
    decoder("qwen2").save_pretrained(base)
    for settings in ({"bias": "all"}, {"lora_bias": True, "target_modules": ["q_proj", "v_proj"]}):
        adapter, out = tmp_path / "a" / str(len(settings)), tmp_path / "o" / str(len(settings))
        torch.manual_seed(1)
        config = LoraConfig(r=4, task_type="CAUSAL_LM", **({"target_modules": ["q_proj", "up_proj"]} | settings))
        moved(get_peft_model(loaded(base, torch.float32), config)).save_pretrained(adapter)
        want = logits(PeftModel.from_pretrained(loaded(base, torch.float32), str(adapter)))
        merge(base, adapter, out)
        torch.testing.assert_close(logits(loaded(out, torch.float32)), want, rtol=1e-4, atol=1e-4)
        changed = {n for n, t in tensors_of(out).items() if not torch.equal(t, tensors_of(base)[n])}
        assert any(n.endswith("bias") for n in changed)


# ---- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", sorted(UNMERGED))
def test_what_has_no_merged_form_says_so(named, made, tmp_path):
    base, adapter = made(named)
    with pytest.raises(AdapterError, match="cannot be merged") as caught:
        merge(base, adapter, tmp_path / "out")
    assert caught.value.fix and not (tmp_path / "out").exists()


def add_one(tensors: dict) -> None:
    tensors["base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"] = torch.zeros(4, 48)


def lose_one(tensors: dict) -> None:
    del tensors[sorted(tensors)[0]]


def cut_one(tensors: dict) -> None:
    name = sorted(tensors)[-1]
    tensors[name] = tensors[name][..., :-1].contiguous()


@pytest.mark.parametrize("named", ["lora", "dora", "ia3", "full", "qlora", "whole modules"])
@pytest.mark.parametrize("spoil", [add_one, lose_one, cut_one])
def test_an_adapter_with_a_tensor_too_many_too_few_or_of_another_shape(named, spoil, made, tmp_path):
    base, adapter = made(named)
    tensors = load_file(adapter / files.WEIGHTS_FILE)
    spoil(tensors)
    save_file(tensors, adapter / files.WEIGHTS_FILE)
    with pytest.raises(AdapterError, match="does not fit this base"):
        merge(base, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_numbers_that_are_not_finite_or_too_large_for_the_dtype(made, tmp_path):
    base, adapter = made("lora")
    tensors = load_file(adapter / files.WEIGHTS_FILE)
    name = next(n for n in tensors if "lora_B" in n)
    tensors[name] = tensors[name] * 0 + 1e6
    save_file(tensors, adapter / files.WEIGHTS_FILE)
    with pytest.raises(AdapterError, match="not finite") as caught:
        merge(base, adapter, tmp_path / "out", dtype="float16")
    assert "bfloat16" in caught.value.fix
    merge(base, adapter, tmp_path / "wide", dtype="bfloat16")
    tensors[name][0, 0] = float("nan")
    save_file(tensors, adapter / files.WEIGHTS_FILE)
    with pytest.raises(AdapterError, match="not finite"):
        merge(base, adapter, tmp_path / "out")
    assert {p.name for p in tmp_path.iterdir()} == {"base", "adapter", "wide"}


@pytest.mark.parametrize("change, words", [({"layer_replication": [[0, 2]]}, "layer_replication"),
                                           ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
                                           ({"init_lora_weights": "pissa"}, "starts as pissa"),
                                           ({"target_parameters": ["mlp.up_proj.weight"]}, "target_parameters")])
def test_what_peft_can_and_the_merge_cannot_is_named(made, tmp_path, change, words):
    base, adapter = made("lora")
    path = adapter / files.CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(AdapterError, match=words):
        merge(base, adapter, tmp_path / "out")


def test_another_base_a_damaged_one_and_one_of_codes(made, tmp_path, decoder):
    base, adapter = made("lora")
    other = tmp_path / "other"
    decoder(hidden_size=32, head_dim=8, intermediate_size=64).save_pretrained(other)
    with pytest.raises(AdapterError, match="does not fit this base"):
        merge(other, adapter, tmp_path / "out")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(BaseModelError, match="quantised in its files"):
        merge(base, adapter, tmp_path / "out")
    (base / "config.json").write_text(json.dumps(config))
    whole = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(BaseModelError, match="cannot be read"):
        merge(base, adapter, tmp_path / "out")
    (base / "model.safetensors").unlink()
    with pytest.raises(BaseModelError, match="no model.safetensors"):
        merge(base, adapter, tmp_path / "out")


def test_nothing_is_overwritten_and_wrong_options_are_refused(made, tmp_path):
    base, adapter = made("lora")
    with pytest.raises(UsageError, match="there already"):
        merge(base, adapter, base)
    with pytest.raises(UsageError, match="no dtype"):
        merge(base, adapter, tmp_path / "out", dtype="int8")
    with pytest.raises(AdapterError, match="one base to be merged onto"):
        merge(base, adapter, tmp_path / "out", onto="original")
    assert not (tmp_path / "out").exists()
