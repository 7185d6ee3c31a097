"""Load a base's model and tokenizer, quietly, with remote code off."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.errors import BaseModelError, out_of_memory
from tunesmith.models.base import Base

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DAY = time.strptime("2024-07-26", "%Y-%m-%d")
STOPPED_CLOCK = "{%- macro strftime_now(format) -%}{{- format" + "".join(
    f" | replace('%{c}', '{time.strftime(f'%{c}', DAY)}')" for c in "YymBbdjAaHMS") + " -}}{%- endmacro -%}"
"""Put before a template that asks for the date. The day is the one that Llama's templates fall back to."""


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no advice from the libraries below us: our stdout is a JSON document."""
    from transformers.utils import logging as hf_logging

    verbosity, bar = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    for library in ("peft", "bitsandbytes"):  # the second, which the first loads, misses a package that we do not need
        logging.getLogger(library).setLevel(logging.ERROR)
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

    A template that prints today's date gets one that stands still: the same row gives the same tokens tomorrow, and
    the release prompts as its adapter was trained.

    Raises:
        BaseModelError: it has no tokenizer, or there is no such template.
    """
    from transformers import AutoTokenizer

    with quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(base.path, trust_remote_code=False)
        except Exception as error:  # tokenizers raises it bare for a damaged file
            raise BaseModelError(f"base {base.ref!r} has no usable tokenizer", where=str(base.path),
                                 why=str(error).splitlines()[0]) from error
    if template is not None:
        try:
            tokenizer.chat_template = template.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BaseModelError("the chat template cannot be read", where=str(template), why=str(error)) from error
    if "strftime_now" in (tokenizer.chat_template or "") and not tokenizer.chat_template.startswith(STOPPED_CLOCK):
        tokenizer.chat_template = STOPPED_CLOCK + tokenizer.chat_template
    return tokenizer


def model_of(base: Base, dtype: torch.dtype, device: str = "cpu") -> PreTrainedModel:
    """The frozen base in evaluation mode.

    Raises:
        BaseModelError: its architecture needs remote code or is no causal language model, or weights are missing.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    with quiet_transformers():
        try:
            model, loaded = AutoModelForCausalLM.from_pretrained(base.path, dtype=dtype, trust_remote_code=False,
                                                                 output_loading_info=True)
        except (OSError, ValueError, KeyError, RuntimeError, MemoryError, SafetensorError) as error:
            if known := out_of_memory(error):
                raise known from error
            raise BaseModelError(f"base {base.ref!r} cannot be loaded as a causal language model",
                                 where=str(base.path), why=str(error).splitlines()[0]) from error
    refuse_missing_weights(loaded, base.path)
    return model.to(device).eval().requires_grad_(False)


def refuse_missing_weights(loaded: dict, where: Path) -> None:
    """transformers gives a weight that no file holds random numbers and goes on. `loaded` is its loading info."""
    if missing := sorted(loaded["missing_keys"]):
        raise BaseModelError(f"{len(missing)} weights of the base are missing", where=str(where),
                             why=f"{missing[0]} would be random", fix="fetch or save the checkpoint again")


def file_bytes(base: Base) -> int:
    """Of the checkpoint's weights on disk."""
    return sum(path.stat().st_size for path in base.path.glob("*.safetensors"))


def parameter_count(base: Base) -> int:
    """Parameters in the checkpoint's files, read from the safetensors headers alone. Tied copies count once."""
    from math import prod

    from safetensors import safe_open

    total = 0
    for path in sorted(base.path.glob("*.safetensors")):
        with safe_open(path, framework="pt") as f:
            total += sum(prod(f.get_slice(name).get_shape()) for name in f.keys())  # noqa: SIM118 - not a dict
    return total
