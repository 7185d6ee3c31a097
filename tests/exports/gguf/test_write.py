"""A checkpoint as a GGUF and back: by our reader and by transformers' own, without llama.cpp.

pytest tests/exports/gguf/test_write.py
"""

from __future__ import annotations

import shutil
from collections import Counter
from types import SimpleNamespace

import gguf
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.exports.gguf.conftest import FAMILIES
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tunesmith.errors import AdapterError, BaseModelError, UsageError
from tunesmith.exports.gguf.families import FAMILIES as WRITTEN
from tunesmith.exports.gguf.families import restored, rewritten
from tunesmith.exports.gguf.file import load, write
from tunesmith.exports.gguf.vocabulary import vocabulary
from tunesmith.models.base import resolve

IDS = torch.arange(20, 60)[None]
READ_BY_TRANSFORMERS = {
    "llama": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}, "mistral": {}, "qwen2": {}, "phi3": {},
    "qwen3": {"head_dim": 128}, "gemma3_text": {"head_dim": 256, "query_pre_attn_scalar": 256},
    "gemma2": {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
               "query_pre_attn_scalar": 256, "head_dim": 256}}
"""Families that its GGUF reader has, with what it takes as given. It knows no rope scaling."""


@pytest.fixture
def written(base_of, tmp_path):
    def make(family: str, quant: str = "f32", *, checkpoint=None, tokenizer=None, stops=None):
        checkpoint = checkpoint or base_of(family)
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(checkpoint)
        out = tmp_path / f"{family}-{quant}.gguf"
        facts = write(checkpoint, tokenizer, stops or [tokenizer.eos_token_id], out, name="tiny", quant=quant)
        return out, facts

    return make


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits[0].double()


def test_every_family_that_is_written_is_tested():
    assert set(FAMILIES) == set(WRITTEN)


@pytest.mark.parametrize("family", FAMILIES)
def test_written_and_read_again_every_weight_is_the_same(family, base_of, written):
    path, facts = written(family)
    model = AutoModelForCausalLM.from_pretrained(base_of(family))
    weights = {n: p.clone() for n, p in model.state_dict().items()}
    blank = AutoModelForCausalLM.from_config(model.config)
    found = load(path, blank).state_dict()
    assert set(found) == set(weights)
    for name, weight in weights.items():
        assert torch.allclose(found[name], weight, atol=1e-6, rtol=0), name  # norms of Gemma: (w + 1) - 1
    assert facts["quant"] == "f32" and facts["bytes"] == path.stat().st_size


@pytest.mark.parametrize("family", sorted(READ_BY_TRANSFORMERS))
@pytest.mark.parametrize("quant", ["f32", "f16"])
def test_the_loader_of_bases_gets_the_same_logits(family, quant, base_of, written, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    checkpoint = base_of(family, **READ_BY_TRANSFORMERS[family])
    path, _ = written(family, quant, checkpoint=checkpoint)
    expected = logits(AutoModelForCausalLM.from_pretrained(checkpoint))
    found = logits(AutoModelForCausalLM.from_pretrained(resolve(str(path)).path))
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < (1e-4 if quant == "f32" else 0.02) * expected.abs().max()


@pytest.mark.parametrize("quant,expected", [("f16", 1e-3), ("bf16", 8e-3), ("q8_0", 5e-3)])
def test_each_matrix_is_rounded_as_its_type_is(quant, expected, base_of, written):
    path, _ = written("qwen2", quant)
    before = AutoModelForCausalLM.from_pretrained(base_of("qwen2")).state_dict()
    after = load(path, AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base_of("qwen2")))).state_dict()
    matrices = [n for n, w in before.items() if w.ndim == 2]
    worst = max(float((after[n] - before[n]).abs().max() / before[n].abs().max()) for n in matrices)
    assert 0 < worst < expected
    assert all(torch.equal(after[n], before[n]) for n in before if n not in matrices)


def test_a_tied_head_is_not_written_and_another_is(written):
    def names(family):
        return {t.name for t in gguf.GGUFReader(written(family)[0]).tensors}

    assert "output.weight" not in names("qwen3") and "output.weight" in names("qwen2")


def test_rows_without_a_token_are_padded(written, base_of):
    path, _ = written("qwen2")
    reader = gguf.GGUFReader(path)
    rows = next(int(t.shape[1]) for t in reader.tensors if t.name == "token_embd.weight")
    field = reader.get_field("tokenizer.ggml.tokens")
    tokens = field.contents()
    count = len(AutoTokenizer.from_pretrained(base_of("qwen2")))
    assert len(tokens) == rows == count + 6 and tokens[count:] == [f"[PAD{i}]" for i in range(count, rows)]


@given(heads=st.integers(1, 4), half=st.integers(1, 5), wide=st.integers(1, 3), kv=st.booleans())
def test_what_is_rewritten_for_rope_is_restored_and_only_q_and_k_are(heads, half, wide, kv):
    config = SimpleNamespace(num_attention_heads=heads, num_key_value_heads=heads)
    weight = torch.randn(heads * 2 * half, wide).numpy()
    name = f"model.layers.0.self_attn.{'k' if kv else 'q'}_proj.weight"
    there = rewritten(WRITTEN["llama"], config, name, weight)
    assert (restored(WRITTEN["llama"], config, name, there) == weight).all()
    assert Counter(map(tuple, there.tolist())) == Counter(map(tuple, weight.tolist()))
    assert (there[1] == weight[half]).all()  # the second half's first row stands second
    assert (rewritten(WRITTEN["llama"], config, "model.layers.0.self_attn.v_proj.weight", weight) == weight).all()
    assert (rewritten(WRITTEN["qwen2"], config, name, weight) == weight).all()


@pytest.mark.parametrize("cut", ["gpt-2", "smollm", "qwen2", "llama-bpe"])
def test_the_pattern_is_told_by_what_the_tokenizer_does(cut, tokenizer_like):
    tokenizer = tokenizer_like(cut, "chatml")
    found = vocabulary(tokenizer, [tokenizer.eos_token_id], len(tokenizer))
    assert (found.model, found.pre, found.add_bos) == ("gpt2", cut, False)
    assert [found.tokens[i] for i in range(3)] == ["<unk>", "<s>", "</s>"] and set(found.types[:3]) == {3}


def test_a_pattern_that_nobody_knows_is_refused(tokenizer_like):
    from tokenizers import pre_tokenizers

    tokenizer = tokenizer_like("gpt-2", "chatml")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split("-", "isolated"), pre_tokenizers.ByteLevel(False)])
    with pytest.raises(UsageError, match="cuts texts by Split"):
        vocabulary(tokenizer, [4], len(tokenizer))


def test_what_cannot_be_said_is_refused(base_of, written, tokenizer_like, tmp_path):
    with pytest.raises(UsageError, match="no quantisation"):
        written("qwen2", "q3_k")
    with pytest.raises(UsageError, match="rows"):
        vocabulary(tokenizer_like("gpt-2", "chatml"), [4], 10)
    with pytest.raises(UsageError, match="answers end at 3 tokens"):
        written("qwen2", stops=[1, 2, 3])
    with pytest.raises(UsageError, match="activation relu"):
        written("qwen2", checkpoint=base_of("qwen2", hidden_act="relu"))
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    with pytest.raises(UsageError, match="rope scaling dynamic"):
        written("qwen2", checkpoint=base_of("qwen2", rope_parameters=dynamic))
    with pytest.raises(UsageError, match="query_pre_attn_scalar"):
        written("gemma3_text", checkpoint=base_of("gemma3_text", query_pre_attn_scalar=7))


def test_a_window_shortens_the_context_that_is_promised(base_of, written):
    path, facts = written("mistral", checkpoint=base_of("mistral", sliding_window=64))
    assert facts["context"] == 64 and "sliding window" in facts["notes"][0]
    assert gguf.GGUFReader(path).get_field("llama.context_length").contents() == 64
    assert written("mistral")[1]["context"] == 512


def spoilt(base, folder, change):
    shutil.copytree(base, folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def test_missing_unknown_and_too_large_weights_are_refused(base_of, written, tmp_path):
    gone = spoilt(base_of("qwen2"), tmp_path / "gone", lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(BaseModelError, match="are missing"):
        written("qwen2", checkpoint=gone)
    more = spoilt(base_of("qwen2"), tmp_path / "more", lambda t: t.update({"model.layers.1.extra.weight": torch.ones(2)}))
    with pytest.raises(BaseModelError, match="are not known"):
        written("qwen2", checkpoint=more)
    large = spoilt(base_of("qwen2"), tmp_path / "large", lambda t: t["model.layers.0.mlp.up_proj.weight"].mul_(1e6))
    with pytest.raises(AdapterError, match="does not fit float16"):
        written("qwen2", "f16", checkpoint=large)
    assert written("qwen2", "bf16", checkpoint=large)[1]["quant"] == "bf16"
