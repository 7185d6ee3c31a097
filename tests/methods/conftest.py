"""Every method with small settings, on tiny random decoders, and rows to train it on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.methods import reference
from tests.methods.reference import METHODS, moved

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
    return reference.decoder


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
