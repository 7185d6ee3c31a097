"""A base is loaded whole, frozen and quietly, or refused with a reason.

    python -m pytest tests/models/test_load.py
"""

from __future__ import annotations

import json
import shutil
import time

import pytest
import torch

from tunesmith.errors import BaseModelError
from tunesmith.models.base import Base, resolve
from tunesmith.models.load import model_of, parameter_count, quiet_transformers, tokenizer_of


@pytest.fixture
def base(tiny_base, tmp_path):
    return Base("tiny", "sha256:0", shutil.copytree(tiny_base, tmp_path / "base"))


def change_weights(base, change):
    from safetensors.torch import load_file, save_file

    path = base.path / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def test_model_is_frozen_in_evaluation_mode_and_of_the_asked_type(base):
    model = model_of(base, torch.bfloat16)
    assert not model.training and {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in model.parameters())


def test_parameters_are_counted_without_loading_and_tied_ones_once(base):
    model = model_of(base, torch.float32)
    assert model.config.tie_word_embeddings
    assert parameter_count(base) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "model.embed_tokens.weight"])
def test_checkpoint_that_lacks_a_weight_is_refused(base, name):
    """transformers fills it with random numbers and goes on."""
    change_weights(base, lambda w: {k: v for k, v in w.items() if k != name})
    with pytest.raises(BaseModelError, match="weights of the base are missing") as error:
        model_of(base, torch.float32)
    assert "would be random" in error.value.why


@pytest.mark.parametrize("spoil", [
    lambda b: change_weights(b, lambda w: w | {"model.norm.weight": torch.zeros(3)}),
    lambda b: (b.path / "model.safetensors").write_bytes((b.path / "model.safetensors").read_bytes()[:5000]),
    lambda b: (b.path / "model.safetensors").write_bytes(b"not a checkpoint"),
    lambda b: (b.path / "config.json").write_text(json.dumps({"model_type": "never-heard-of"})),
    lambda b: (b.path / "config.json").write_text(json.dumps({"model_type": "vit"})),
    lambda b: (b.path / "config.json").write_text("{"),
], ids=["another shape", "cut off", "no checkpoint", "unknown architecture", "not a language model", "no JSON"])
def test_checkpoint_that_is_no_causal_language_model_is_refused(base, spoil):
    spoil(base)
    with pytest.raises(BaseModelError, match="cannot be loaded as a causal language model") as error:
        model_of(base, torch.float32)
    assert error.value.where == str(base.path) and error.value.why


@pytest.mark.parametrize("spoil", [lambda p: p.unlink(), lambda p: p.write_text("{"), lambda p: p.write_text('{"model": {}}')],
                         ids=["missing", "no JSON", "no tokenizer"])
def test_directory_without_a_usable_tokenizer_is_refused(base, spoil):
    spoil(base.path / "tokenizer.json")
    with pytest.raises(BaseModelError, match="has no usable tokenizer"):
        tokenizer_of(base)


def test_template_file_takes_the_place_of_the_bases_own(base, tmp_path):
    (tmp_path / "t.jinja").write_text("{{ messages[0].content }}é", encoding="utf-8")
    assert tokenizer_of(base, tmp_path / "t.jinja").chat_template == "{{ messages[0].content }}é"
    assert "im_start" in tokenizer_of(base).chat_template


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.write_bytes(b"caf\xe9"), lambda p: p.mkdir()],
                         ids=["missing", "not UTF-8", "a directory"])
def test_template_file_that_cannot_be_read_is_refused(base, tmp_path, make):
    make(tmp_path / "t.jinja")
    with pytest.raises(BaseModelError, match="the chat template cannot be read") as error:
        tokenizer_of(base, tmp_path / "t.jinja")
    assert error.value.where == str(tmp_path / "t.jinja")


@pytest.mark.parametrize("asks", [
    "{{ strftime_now('%d %b %Y, %A %H:%M') }}",
    "{%- if strftime_now is defined %}\n{%- set date = strftime_now('%d %b %Y, %A %H:%M') %}\n{%- endif %}\n{{- date }}",
    "{%- macro head(d) -%}{{ strftime_now(d) }}{%- endmacro -%}{{ head('%d %b %Y, %A %H:%M') }}",
])
def test_template_that_prints_the_date_prints_the_same_one_tomorrow(base, tmp_path, asks):
    (tmp_path / "t.jinja").write_text("{{ messages[0].content }}|" + asks)
    tokenizer = tokenizer_of(base, tmp_path / "t.jinja")
    tokenizer.save_pretrained(tmp_path / "saved")
    again = tokenizer_of(Base("saved", "", tmp_path / "saved"))
    assert again.chat_template == tokenizer.chat_template
    for t in (tokenizer, again):
        text = t.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False)
        assert text == "Hello|26 Jul 2024, Friday 00:00" != time.strftime("Hello|%d %b %Y, %A 00:00")


def test_loading_is_quiet_and_leaves_the_libraries_as_loud_as_they_were(base, capfd):
    from transformers.utils import logging as hf_logging

    before = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    model_of(base, torch.float32)
    tokenizer_of(base)
    assert (hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")
    with pytest.raises(KeyError), quiet_transformers():
        raise KeyError
    assert (hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()) == before


def test_code_that_comes_with_a_model_is_not_run(base, tmp_path):
    config = json.loads((base.path / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "mine.Model", "AutoConfig": "mine.Config"}}
    (base.path / "config.json").write_text(json.dumps(config))
    (base.path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(BaseModelError):
        model_of(resolve(str(base.path)), torch.float32)
    assert not (tmp_path / "ran").exists()
