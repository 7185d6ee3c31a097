"""Adapters read as data are what PEFT makes of the same files; what is not whole, or not of this base, is refused by name.

pytest tests/serving/test_adapters.py
"""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.methods.reference import METHODS, VOCABULARY, decoder, moved

from tunesmith import methods
from tunesmith.errors import AdapterError, UsageError
from tunesmith.methods.files import CONFIG_FILE, WEIGHTS_FILE
from tunesmith.recipe.methods import Ia3, Lora
from tunesmith.serving.adapters import check_mix, linear_sites, read, why_alone

ALONE = {"full": "every weight", "qlora": "quantised", "qlora single": "quantised", "whole modules": "whole modules"}
BESIDE = [name for name in METHODS if name not in ALONE]
TENSOR = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """`saved("lora", "phi3")`: a directory of an adapter with random numbers, made once."""
    made = {}

    def make(name: str, architecture: str = "llama", method=None):
        if (name, architecture) not in made:
            torch.manual_seed(1)
            model = moved(methods.attach(decoder(architecture), method or METHODS[name], "tiny"))
            folder = made[name, architecture] = tmp_path_factory.mktemp("adapter")
            methods.save(model, folder)
        return made[name, architecture]

    return make


@pytest.fixture
def changed(saved, tmp_path):
    """`changed("lora", tensors=..., config=...)`: a copy, after functions changed its tensors and its config in place."""

    def make(name: str, tensors=lambda _: None, config=lambda _: None):
        stored, settings = load_file(saved(name) / WEIGHTS_FILE), json.loads((saved(name) / CONFIG_FILE).read_text())
        tensors(stored)
        config(settings)
        save_file(stored, tmp_path / WEIGHTS_FILE)
        (tmp_path / CONFIG_FILE).write_text(json.dumps(settings))
        return tmp_path

    return make


@pytest.mark.parametrize("name", ["lora", "rslora", "dora", "pissa", "pissa rslora patterns", "patterns", "one layer"])
def test_factors_and_scales_are_those_of_peft(saved, name):
    from peft.tuners.lora import LoraLayer

    adapter = read(saved(name), decoder())
    peft = methods.load(decoder(), saved(name))
    layers = {n.removeprefix("base_model.model."): m for n, m in peft.named_modules() if isinstance(m, LoraLayer)}
    assert set(adapter.factors) == set(layers) and adapter.kind == "lora"
    for at, layer in layers.items():
        found = adapter.factors[at]
        assert torch.equal(found.a_RC, layer.lora_A["default"].weight)
        assert torch.equal(found.b_NR, layer.lora_B["default"].weight)
        assert found.scale == layer.scaling["default"]
        assert (at in adapter.magnitudes) == (name == "dora")
    assert adapter.adds_up == (name != "dora")
    numbers = sum(p.numel() for n, p in peft.named_parameters() if "lora_" in n)
    assert adapter.nbytes == 4 * numbers


def test_the_lengths_of_dora_are_those_of_the_merged_weight(saved):
    adapter, base = read(saved("dora"), decoder()), decoder()
    stored = load_file(saved("dora") / WEIGHTS_FILE)
    for name, module in linear_sites(base).items():
        a, b = (stored[f"base_model.model.{name}.lora_{x}.weight"].double() for x in "AB")
        merged = module.weight.double() + 8 / 4 * b @ a
        want = stored[f"base_model.model.{name}.lora_magnitude_vector"].double() / merged.norm(dim=1)
        assert torch.allclose(adapter.magnitudes[name].double(), want, rtol=1e-6)


@pytest.mark.parametrize("name", ["ia3", "ia3 named"])
def test_factors_of_ia3_stand_on_the_side_that_peft_puts_them(saved, name):
    from peft.tuners.ia3 import IA3Layer

    adapter, peft = read(saved(name), decoder()), methods.load(decoder(), saved(name))
    layers = {n.removeprefix("base_model.model."): m for n, m in peft.named_modules() if isinstance(m, IA3Layer)}
    assert set(adapter.inputs) == {n for n, m in layers.items() if m.is_feedforward} and adapter.inputs
    assert set(adapter.outputs) == set(layers) - set(adapter.inputs)
    for at, layer in layers.items():
        assert torch.equal((adapter.inputs | adapter.outputs)[at], layer.ia3_l["default"].flatten())


@pytest.mark.parametrize("name", ["bottleneck", "bottleneck both"])
def test_blocks_compute_what_they_computed_in_training(saved, name):
    base = decoder()
    adapter, trained = read(saved(name), base), methods.load(decoder(), saved(name))
    assert len(adapter.blocks) == len(trained.blocks)
    h = torch.randn(5, 48)
    for at, block in trained.blocks.items():
        assert torch.equal(adapter.blocks[f"model.layers.{at.replace('-', '.')}"](h), block(h))


@pytest.mark.parametrize("architecture", ["llama", "phi3", "gemma3_text", "qwen2"])
@pytest.mark.parametrize("name", ["prompt", "prompt noise", "prefix", "prefix noise"])
def test_virtual_tokens_are_as_peft_gives_them_to_the_model(saved, name, architecture):
    adapter = read(saved(name, architecture), decoder(architecture))
    peft = methods.load(decoder(architecture), saved(name, architecture))._peft
    assert adapter.virtual_tokens == METHODS[name].tokens
    given = peft.get_prompt(1)
    if "prompt" in name:
        assert torch.equal(adapter.words, given[0]) and adapter.keys_values is None
        return
    assert adapter.words is None and len(adapter.keys_values) == len(given.layers) == 2
    for (keys, values), layer in zip(adapter.keys_values, given.layers, strict=True):
        assert torch.equal(keys, layer.keys[0]) and torch.equal(values, layer.values[0])


def test_a_prefix_that_was_trained_behind_a_projection_is_what_the_projection_made(tmp_path):
    from peft import PrefixTuningConfig, get_peft_model

    torch.manual_seed(3)
    peft = get_peft_model(decoder(), PrefixTuningConfig(num_virtual_tokens=4, prefix_projection=True, encoder_hidden_size=24,
                                                        task_type="CAUSAL_LM"))
    peft.save_pretrained(tmp_path)
    adapter = read(tmp_path, decoder())
    for (keys, values), layer in zip(adapter.keys_values, peft.get_prompt(1).layers, strict=True):
        assert torch.equal(keys, layer.keys[0]) and torch.equal(values, layer.values[0])


@pytest.mark.parametrize("name", BESIDE)
def test_reading_changes_no_module_and_draws_nothing(saved, name):
    base, folder = decoder(), saved(name)
    before, random = {n: t.clone() for n, t in base.state_dict().items()}, torch.get_rng_state()
    modules = [(n, type(m)) for n, m in base.named_modules()]
    read(folder, base)
    assert torch.equal(torch.get_rng_state(), random)
    assert [(n, type(m)) for n, m in base.named_modules()] == modules
    assert all(torch.equal(t, before[n]) for n, t in base.state_dict().items())


@pytest.mark.parametrize("name", BESIDE)
def test_numbers_are_in_the_dtype_of_the_base(saved, name):
    adapter = read(saved(name), decoder(dtype=torch.bfloat16))
    used = [t for f in adapter.factors.values() for t in (f.a_RC, f.b_NR)]
    used += [p for b in adapter.blocks.values() for p in b.parameters()]
    used += [t for pair in adapter.keys_values or [] for t in pair] + [t for t in [adapter.words] if t is not None]
    assert {t.dtype for t in used} <= {torch.bfloat16}
    assert {t.dtype for of in (adapter.magnitudes, adapter.inputs, adapter.outputs) for t in of.values()} <= {torch.float32}
    assert used or adapter.inputs


def test_a_digest_is_of_config_and_weights(saved, changed):
    base, first = decoder(), read(saved("lora"), decoder())
    assert read(saved("lora"), base).digest == first.digest
    digests = {first.digest, read(saved("rslora"), base).digest,
               read(changed("lora", config=lambda c: c.update(lora_alpha=9.0)), base).digest,
               read(changed("lora", tensors=lambda t: t[TENSOR].mul_(2)), base).digest}
    assert len(digests) == 4


# ---- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_what_needs_a_model_of_its_own_says_why_and_the_others_do_not(saved, name):
    reason = why_alone(saved(name))
    if name not in ALONE:
        assert reason is None
        return
    assert ALONE[name] in reason
    with pytest.raises(AdapterError, match="cannot share the base") as refused:
        read(saved(name), decoder())
    assert ALONE[name] in str(refused.value)


@pytest.mark.parametrize(("settings", "words"), [
    ({"bias": "lora_only"}, "biases"), ({"target_modules": ["q_proj", "lm_head"]}, "lm_head.lora_A.weight is of no decoder"),
    ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens.lora_embedding_A is of no decoder"),
    ({"target_modules": ["q_proj"], "lora_bias": True}, "biases"),
    ({"trainable_token_indices": [3, 5]}, "rows of the embedding"),
    ({"modules_to_save": ["norm"], "target_modules": ["q_proj"]}, "whole modules"),
])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_lora_that_is_more_than_a_and_b_of_linear_layers_needs_one_too(tmp_path, settings, words):
    from peft import LoraConfig, get_peft_model

    made = get_peft_model(decoder(), LoraConfig(**{"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | settings))
    made.save_pretrained(tmp_path, save_embedding_layers=False)
    assert words in why_alone(tmp_path)
    with pytest.raises(AdapterError, match="cannot share the base"):
        read(tmp_path, decoder())


@pytest.mark.parametrize("setting", [{"init_lora_weights": "pissa"}, {"alora_invocation_tokens": [1]}, {"use_qalora": True},
                                     {"a_setting_of_next_year": 3}, {"layer_replication": [[0, 2], [0, 2]]}])
def test_a_setting_that_is_not_known_is_not_taken_for_plain_lora(changed, setting):
    folder = changed("lora", config=lambda c: c.update(setting))
    assert why_alone(folder) and next(iter(setting.values())) is not None
    with pytest.raises(AdapterError):
        read(folder, decoder())


@pytest.mark.parametrize("setting", [{"init_lora_weights": "gaussian"}, {"lora_dropout": 0.1}, {"inference_mode": False},
                                     {"a_setting_of_next_year": None}])
def test_a_setting_of_training_alone_does_not_matter(changed, setting):
    folder = changed("lora", config=lambda c: c.update(setting))
    assert why_alone(folder) is None and len(read(folder, decoder()).factors) == 14


def _nan(value):
    def spoil(tensors):
        tensors[TENSOR][1, 2] = value

    return spoil


@pytest.mark.parametrize(("spoil", "named"), [
    (_nan(math.nan), TENSOR), (_nan(math.inf), TENSOR), (_nan(-math.inf), TENSOR),
    (lambda t: t.pop(TENSOR), TENSOR),
    (lambda t: t.update({"base_model.model.model.layers.7.mlp.up_proj.lora_A.weight": torch.ones(4, 48)}), "layers.7.mlp"),
    (lambda t: t.update({TENSOR: torch.ones(5, 48)}), TENSOR),
    (lambda t: t.update({TENSOR: torch.ones(4, 47)}), TENSOR),
    (lambda t: t.update({TENSOR: torch.ones(4, 48, dtype=torch.int32)}), TENSOR),
    (lambda t: t.update({TENSOR.replace("lora_A", "lora_C"): torch.ones(4, 48)}), "lora_C"),
    (lambda t: t.update({TENSOR.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(64)}), "magnitude"),
])
def test_tensors_that_are_not_exactly_those_of_the_config_are_named(changed, spoil, named):
    with pytest.raises(AdapterError) as refused:
        read(changed("lora", tensors=spoil), decoder())
    assert named in str(refused.value)


@pytest.mark.parametrize("name", BESIDE)
def test_a_number_that_is_not_finite_is_found_in_every_kind(changed, name):
    def spoil(tensors):
        first = tensors[sorted(tensors)[-1]]
        first.view(-1)[-1] = math.nan

    with pytest.raises(AdapterError, match="not finite") as refused:
        read(changed(name, tensors=spoil), decoder())
    assert WEIGHTS_FILE in str(refused.value)


@pytest.mark.parametrize("name", BESIDE)
def test_an_adapter_of_another_base_is_refused(saved, name):
    for other in ({"hidden_size": 64, "head_dim": 8}, {"num_hidden_layers": 1}):
        if name.startswith("prompt") and "hidden_size" not in other:
            continue
        with pytest.raises(AdapterError, match="does not fit this base"):
            read(saved(name), decoder(**other))
    if not name.startswith("prompt"):
        with pytest.raises(AdapterError):
            read(saved(name), decoder("llama", intermediate_size=96, num_key_value_heads=1, hidden_size=32))


def test_a_layer_that_is_no_decoder_layer_is_no_site():
    sites = linear_sites(decoder())
    assert len(sites) == 14 and "lm_head" not in sites and all(n.startswith("model.layers.") for n in sites)


def test_a_pattern_or_a_target_that_the_file_does_not_have_is_refused(changed):
    for setting in ({"rank_pattern": {"q_proj": 2}}, {"target_modules": ["q_proj"]}, {"target_modules": ["nothing"]},
                    {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]}, {"use_dora": True}):
        with pytest.raises(AdapterError):
            read(changed("lora", config=lambda c, s=setting: c.update(s)), decoder())


def test_targets_are_understood_as_peft_understands_them(saved, tmp_path):
    """A regular expression, excluded names, all-linear."""
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    for at, settings in enumerate((
            {"target_modules": r".*\.1\.mlp\.(up|down)_proj"}, {"target_modules": "all-linear"},
            {"target_modules": ["q_proj", "mlp.up_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]},
            {"target_modules": ["q_proj"], "layers_to_transform": 1, "layers_pattern": "layers"})):
        model = get_peft_model(decoder(), LoraConfig(r=2, task_type="CAUSAL_LM", **settings))
        folder = tmp_path / str(at)
        model.save_pretrained(folder)
        config = json.loads((folder / CONFIG_FILE).read_text())
        (folder / CONFIG_FILE).write_text(json.dumps(config | settings))
        want = {n.removeprefix("base_model.model.") for n, m in model.named_modules() if isinstance(m, LoraLayer)}
        assert set(read(folder, decoder()).factors) == want and want


def test_damaged_and_missing_files_are_refused(changed, tmp_path):
    folder = changed("lora")
    whole = (folder / WEIGHTS_FILE).read_bytes()
    for data in (whole[:-9], whole[:40], b""):
        (folder / WEIGHTS_FILE).write_bytes(data)
        for asked in (why_alone, lambda f: read(f, decoder())):
            with pytest.raises(AdapterError):
                asked(folder)
    (folder / WEIGHTS_FILE).unlink()
    with pytest.raises(AdapterError, match=f"no {WEIGHTS_FILE}"):
        read(folder, decoder())


def test_only_plain_lora_is_weighed_or_mixed(saved):
    base = decoder()
    lora, rslora = read(saved("lora"), base), read(saved("rslora"), base)
    for mix in ((), ((lora, 1.0),), ((lora, -0.5),), ((lora, 0.3), (rslora, 2.0))):
        check_mix(mix)
    with pytest.raises(UsageError, match="nan"):
        check_mix(((lora, math.nan),))
    for name in ("dora", "ia3", "bottleneck", "prompt", "prefix"):
        other = read(saved(name), base)
        check_mix(((other, 1.0),))
        for mix in (((other, 0.5),), ((other, 1.0), (lora, 1.0)), ((lora, 1.0), (other, 1.0))):
            with pytest.raises(UsageError, match="goes alone"):
                check_mix(mix)


@pytest.mark.parametrize("architecture", ["phi", "phi3", "gemma3_text", "qwen2", "qwen3", "mistral"])
def test_every_family_of_the_fast_path_has_its_sites(saved, architecture):
    method = {"lora": Lora(rank=2), "ia3": Ia3() if architecture != "phi" else Ia3(targets=["v_proj", "fc2"])}
    base = decoder(architecture)
    for name, settings in method.items():
        adapter = read(saved(f"{name} of families", architecture, settings), base)
        assert adapter.factors or (adapter.inputs and adapter.outputs)
    assert set(linear_sites(base)) == set(read(saved("lora of families", architecture), base).factors)
    assert base.config.vocab_size == VOCABULARY
