"""Load a base's model and tokenizer, quietly, with remote code off."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.errors import BaseModelError
from tunesmith.models.base import Base

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no advice from the libraries below us: our stdout is a JSON document."""
    from transformers.utils import logging as hf_logging

    verbosity, bar = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    logging.getLogger("peft").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bar:
            hf_logging.enable_progress_bar()


def tokenizer_of(base: Base, template: Path | None = None) -> PreTrainedTokenizerBase:
    """The base's tokenizer, with its own chat template or the one in the file `template`.

    Raises:
        BaseModelError: it has no tokenizer, or there is no such template.
    """
    from transformers import AutoTokenizer

    with quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(base.path, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise BaseModelError(f"base {base.ref!r} has no usable tokenizer", where=str(base.path),
                                 why=str(error).splitlines()[0]) from error
    if template is not None:
        try:
            tokenizer.chat_template = template.read_text(encoding="utf-8")
        except OSError as error:
            raise BaseModelError("no such chat template", where=str(template), why=error.strerror) from error
    return tokenizer


def model_of(base: Base, dtype: torch.dtype, device: str = "cpu") -> PreTrainedModel:
    """The frozen base in evaluation mode.

    Raises:
        BaseModelError: its architecture needs remote code, or is no causal language model.
    """
    from transformers import AutoModelForCausalLM

    with quiet_transformers():
        try:
            model = AutoModelForCausalLM.from_pretrained(base.path, dtype=dtype, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise BaseModelError(f"base {base.ref!r} cannot be loaded as a causal language model",
                                 where=str(base.path), why=str(error).splitlines()[0]) from error
    return model.to(device).eval().requires_grad_(False)


def parameter_count(base: Base) -> int:
    """Parameters in the checkpoint's files, read from the safetensors headers alone. Tied copies count once."""
    from math import prod

    from safetensors import safe_open

    total = 0
    for path in sorted(base.path.glob("*.safetensors")):
        with safe_open(path, framework="pt") as f:
            total += sum(prod(f.get_slice(name).get_shape()) for name in f.keys())  # noqa: SIM118 - not a dict
    return total
