"""Files asked by llama.cpp: what was written rightly passes, and each way of writing it wrongly is refused.

pytest tests/exports/gguf/test_probe.py
"""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.exports.gguf.conftest import FAMILIES, TEMPLATES

import tunesmith
from tunesmith.errors import UsageError
from tunesmith.exports import gguf, merged
from tunesmith.exports.gguf import families
from tunesmith.exports.gguf.file import write
from tunesmith.exports.gguf.plain import matched
from tunesmith.exports.gguf.runtime import beside
from tunesmith.exports.probe import Said

pytest.importorskip("xllamacpp")
LATER = pytest.mark.slow
CASES = [("llama", "f16"), ("qwen3", "q8_0"), *(pytest.param(f, "f16", marks=LATER) for f in FAMILIES if f != "llama"),
         *(pytest.param("phi3", q, marks=LATER) for q in ("f32", "bf16", "q8_0"))]


@pytest.fixture
def probed(asked_of, tmp_path):
    """The verdict on what `write_it(checkpoint, path, job)` writes, or on what the format does."""

    def make(job, write_it=None):
        asked, reference, job = asked_of(job)
        out = tmp_path / "out"
        out.mkdir()
        if write_it is None:
            gguf.write(job, out)
        else:
            merged.write_weights(replace(job, dtype="float32"), tmp_path / "merged")
            write_it(tmp_path / "merged", out / gguf.file_name(job), job)
        return gguf.probe(job, out, asked, reference)

    return make


@pytest.mark.parametrize("family,quant", CASES)
def test_llama_cpp_answers_as_the_adapter_on_its_base(family, quant, job_of, probed):
    found = probed(job_of(family, quant))
    assert found["verdict"] == "pass", found["message"]
    assert found["runtime"].startswith("llama.cpp") and found["same_prompts"] == found["prompts"]
    assert found["llama_cpp"]["tokens"] > 20 and found["top1_agreement"] > 0.9 and found["failed"] == []
    assert all(p["margin"] <= found["allowed"]["margin"] for p in found["parted"])


def test_a_release_is_exported_with_its_card(project, tmp_path):
    done = tunesmith.export(project.done["release_id"], "gguf", tmp_path / "out", quant="q8_0")
    assert done["verdict"] == "pass" and set(done["files"]) == {"tiny-q8_0.gguf", "README.md"}
    assert 0.9 < done["top1_agreement"] <= 1 and done["max_abs_logit_diff"] is None
    assert "llama-server" in (tmp_path / "out" / "README.md").read_text()


def test_another_template_in_the_file_is_refused(job_of, probed):
    def otherwise(checkpoint, path, job):
        tokenizer = copy.deepcopy(job.tokenizer)
        tokenizer.chat_template = TEMPLATES["chatml"].replace("<|im_end|>\n", "<|im_end|>")
        write(checkpoint, tokenizer, job.stops, path, name="tiny")

    found = probed(job_of("qwen3"), otherwise)
    assert found["verdict"] == "fail" and found["failed"][0] == "template" and "token" in found["message"]


@LATER
def test_another_pattern_to_cut_texts_is_refused(job_of, probed, monkeypatch):
    from tunesmith.exports.gguf import vocabulary

    monkeypatch.setitem(vocabulary.PATTERNS, (("byte_level",), False), "smollm")
    found = probed(job_of("phi3"))
    assert found["verdict"] == "fail" and found["failed"][0] == "template"


def test_a_stop_token_that_the_file_does_not_name_is_refused(job_of, probed):
    def without(checkpoint, path, job):
        write(checkpoint, job.tokenizer, [job.tokenizer.convert_tokens_to_ids("<unk>")], path, name="tiny")

    job = job_of("qwen3")
    tokenizer = copy.deepcopy(job.tokenizer)  # its end is a token that llama.cpp does not take for one by its name
    tokenizer.chat_template, tokenizer.eos_token = TEMPLATES["chatml"].replace("<|im_end|>", "<|user|>"), "<|user|>"
    found = probed(replace(job, tokenizer=tokenizer), without)
    assert found["verdict"] == "fail" and "stops" in found["failed"] and "'<|user|>'" in found["message"]


@LATER
def test_a_layer_in_another_place_is_refused(job_of, probed):
    def scrambled(checkpoint, path, job):
        from safetensors.torch import load_file, save_file

        file = checkpoint / "model.safetensors"
        tensors = load_file(file)
        places = {".layers.0.": ".layers.1.", ".layers.1.": ".layers.0."}
        swapped = {next((n.replace(a, b) for a, b in places.items() if a in n), n): t for n, t in tensors.items()}
        save_file(swapped, file, metadata={"format": "pt"})
        write(checkpoint, job.tokenizer, job.stops, path, name="tiny")

    found = probed(job_of("qwen3"), scrambled)
    assert found["verdict"] == "fail" and {"file", "answers"} <= set(found["failed"])


def test_rows_of_q_and_k_in_the_wrong_order_are_refused(job_of, probed, monkeypatch):
    """Our own reader undoes what our writer did: only llama.cpp sees this."""
    monkeypatch.setitem(families.FAMILIES, "llama", replace(families.FAMILIES["llama"], permuted=False))
    found = probed(job_of("llama"))
    assert found["verdict"] == "fail" and found["failed"] == ["answers"]


def test_a_file_that_llama_cpp_cannot_load_is_refused_with_its_reason(job_of, asked_of, tmp_path):
    asked, reference, job = asked_of(job_of("qwen3"))
    (tmp_path / gguf.file_name(job)).write_bytes(b"GGUF" + bytes(64))
    found = gguf.probe(job, tmp_path, asked, reference)
    assert found["verdict"] == "fail" and found["failed"] == ["load"]


def test_a_method_without_weights_of_the_base_has_no_file(job_of, tmp_path):
    job = job_of("qwen3")
    shutil.copytree(job.adapter, tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace('"LORA"', '"PREFIX_TUNING"'))
    with pytest.raises(UsageError, match="no merged form"):
        gguf.write(replace(job, adapter=tmp_path / "adapter"), tmp_path)


def test_kl_over_some_tokens_is_never_more_than_over_all():
    torch.manual_seed(0)
    x, y = torch.randn(6, 40).double(), torch.randn(6, 40).double()
    full = torch.nn.functional.kl_div(y.log_softmax(-1), x.log_softmax(-1), log_target=True, reduction="none").sum(-1).mean()
    said = [Said("", [1] * 6, False, x)]
    whole = beside(said, [[dict(enumerate(r.tolist())) for r in y.log_softmax(-1)]])
    assert whole["mean_kl"] == pytest.approx(float(full))
    some = beside(said, [[{i: float(r[i]) for i in r.topk(8).indices.tolist()} for r in y.log_softmax(-1)]])
    assert 0 < some["mean_kl"] < whole["mean_kl"] and some["tokens"] == 6
    same = beside(said, [[{i: float(r[i]) for i in r.topk(8).indices.tolist()} for r in x.log_softmax(-1)]])
    assert same["mean_kl"] == pytest.approx(0, abs=1e-9) and same["top1_agreement"] == 1
    assert beside(said, [[None] * 6])["mean_kl"] is None


@given(tokens=st.lists(st.integers(0, 3), max_size=12), data=st.data())
def test_probabilities_of_tokens_are_given_to_no_other_token(tokens, data):
    """The server leaves out some of them and does not say which."""
    kept = [i for i in range(len(tokens)) if data.draw(st.booleans())]
    places = matched(tokens, [tokens[i] for i in kept])
    assert all(place is None or kept[place] == i for i, place in enumerate(places))
    assert matched(tokens, tokens) == list(range(len(tokens)))
