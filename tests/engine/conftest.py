"""Tiny random decoders with an adapter that is not zero, and rows of random tokens."""

from __future__ import annotations

import random

import pytest
import torch

from tunesmith.engine.loss import IGNORE
from tunesmith.methods import lora
from tunesmith.recipe.methods import Lora

VOCABULARY = 97


@pytest.fixture(autouse=True)
def one_thread():
    """Models this small are faster on one, and other work on the machine does not slow them down."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_base():
    """A two-layer decoder: `make_base("qwen2", sliding_window=8)`."""

    def make(architecture: str = "llama", **changes):
        from transformers import CONFIG_MAPPING, AutoModelForCausalLM

        shape = {"hidden_size": 96, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 6,
                 "num_key_value_heads": 2, "head_dim": 16, "vocab_size": VOCABULARY, "max_position_embeddings": 256,
                 "initializer_range": 0.15, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[architecture](**shape | changes))
        for name, p in model.named_parameters():  # biases and norms are born 0 and 1: then a forgotten one goes unseen
            if p.ndim == 1:
                torch.nn.init.normal_(p, mean=1.0 if "norm" in name else 0.0, std=0.1)
        return model.eval().requires_grad_(False)

    return make


@pytest.fixture
def make_model(make_base):
    """The same with LoRA on every linear layer, B not zero."""

    def make(architecture: str = "llama", *, dtype=torch.float32, dropout: float = 0.0, **changes):
        model = lora.attach(make_base(architecture, **changes).to(dtype), Lora(rank=4, alpha=8.0, dropout=dropout), "tiny")
        for name, p in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.1)
        return model.train()

    return make


@pytest.fixture
def make_rows():
    """Rows of these lengths: random tokens, about three fifths of them labelled."""

    def make(lengths: list[int], seed: int = 0) -> list[tuple[list[int], list[int]]]:
        draw = random.Random(seed)
        rows = []
        for n in lengths:
            ids = [draw.randrange(VOCABULARY) for _ in range(n)]
            rows.append((ids, [t if draw.random() < 0.6 else IGNORE for t in ids[1:]] + [IGNORE]))
        return rows

    return make


@pytest.fixture
def without_kernels():
    """Call it, and torch's own operations do the kernels' work until the test is over."""
    from tunesmith.engine.native import build

    yield build.stop
    build.start()
