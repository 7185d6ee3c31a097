"""Every method with small settings, on tiny random decoders, and rows to train it on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.methods.reference import METHODS, VOCABULARY, moved

from tunesmith import methods


@pytest.fixture(autouse=True)
def one_thread():
    """Models this small are faster on one, and other work on the machine does not slow them down."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=METHODS)
def named(request) -> str:
    return request.param


@pytest.fixture
def decoder():
    """A two-layer decoder: `decoder("qwen2", tie_word_embeddings=True)`. The same weights at every call."""

    def make(architecture: str = "llama", dtype: torch.dtype = torch.float32, **changes):
        from transformers import CONFIG_MAPPING, AutoModelForCausalLM

        shape = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
                 "num_key_value_heads": 2, "head_dim": 16, "vocab_size": VOCABULARY, "max_position_embeddings": 256,
                 "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
                 "tie_word_embeddings": False}
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[architecture](**shape | changes))
        for name, p in model.named_parameters():  # biases and norms are born 0 and 1: then a forgotten one goes unseen
            if p.ndim == 1:
                torch.nn.init.normal_(p, mean=1.0 if "norm" in name else 0.0, std=0.1)
        return model.to(dtype).eval().requires_grad_(False)

    return make


@pytest.fixture
def attached(decoder):
    """`attached("lora")`: a method on the decoder; every trained number is moved a little unless `fresh`."""

    def make(name: str, architecture: str = "llama", *, fresh: bool = False, dtype: torch.dtype = torch.float32, **changes):
        base = decoder(architecture, dtype, **changes)
        torch.manual_seed(1)
        model = methods.attach(base, METHODS[name], "tiny")
        return model if fresh else moved(model)

    return make


@pytest.fixture
def saved(attached, tmp_path):
    """`saved("lora")`: a directory of a moved adapter."""

    def make(name: str, model=None) -> Path:
        folder = tmp_path / name.replace(" ", "-")
        folder.mkdir()
        methods.save(model or attached(name), folder)
        return folder

    return make
