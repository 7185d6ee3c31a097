"""Equal for tokenizers that talk alike, different for every way in which they can differ.

    python -m pytest tests/template/test_fingerprint.py
"""

from __future__ import annotations

import json

import pytest

from tunesmith.template.fingerprint import fingerprint


def test_same_tokenizer_loaded_saved_and_used_has_the_same_fingerprint(speaking, tiny_tokenizer, tmp_path):
    from transformers import AutoTokenizer

    first = fingerprint(tiny_tokenizer)
    tiny_tokenizer(["a", "long row"], padding=True)  # sets state inside of the tokenizer
    tiny_tokenizer.save_pretrained(tmp_path)
    assert first == fingerprint(tiny_tokenizer) == fingerprint(speaking(tiny_tokenizer.chat_template))
    assert first == fingerprint(AutoTokenizer.from_pretrained(tmp_path))


@pytest.mark.parametrize("old, new", [
    ("'<|im_end|>\n'", "'<|im_end|>'"),
    ("'<|im_start|>' + message", "'<|im_start|> ' + message"),
    ("<|im_end|>", "<|endoftext|>"),
    ("{% for", "{% if messages[0]['role'] == 'tool' %}!{% endif %}{% for"),
], ids=["line feed", "space", "stop token", "a role that no probe uses"])
def test_changed_template_changes_the_fingerprint(speaking, tiny_tokenizer, old, new):
    changed = tiny_tokenizer.chat_template.replace(old, new)
    assert changed != tiny_tokenizer.chat_template
    assert fingerprint(speaking(changed)) != fingerprint(tiny_tokenizer)


def test_added_special_token_changes_the_fingerprint(speaking, tiny_tokenizer):
    tokenizer = speaking(tiny_tokenizer.chat_template)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
    assert fingerprint(tokenizer) != fingerprint(tiny_tokenizer)


def test_other_vocabulary_of_the_same_size_changes_the_fingerprint(tiny_tokenizer):
    """Also where no probe can tell: the two encode all of them alike."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = json.loads(tiny_tokenizer.backend_tokenizer.to_str())
    vocabulary = backend["model"]["vocab"]
    vocabulary["ĠOak"], vocabulary["ĠElm"] = vocabulary["ĠElm"], vocabulary["ĠOak"]
    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(backend)), chat_template=tiny_tokenizer.chat_template,
        bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>", unk_token="<|endoftext|>")
    assert other("What is 2+2?")["input_ids"] == tiny_tokenizer("What is 2+2?")["input_ids"]
    assert other(" Oak")["input_ids"] != tiny_tokenizer(" Oak")["input_ids"]
    assert fingerprint(other) != fingerprint(tiny_tokenizer)


def test_base_without_a_template_has_a_fingerprint(speaking, tiny_tokenizer):
    assert fingerprint(speaking(None)) == fingerprint(speaking(None)) != fingerprint(tiny_tokenizer)


def test_template_that_takes_no_system_message_has_a_fingerprint(speaking, tiny_tokenizer):
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('none') }}{% endif %}" + tiny_tokenizer.chat_template
    assert fingerprint(speaking(refusing)) != fingerprint(tiny_tokenizer)
