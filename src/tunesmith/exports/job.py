"""What every format is made from: an adapter, its base, and how it is prompted."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tunesmith.models.base import Base

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tunesmith.exports.probe import Difference


@dataclass(frozen=True, kw_only=True)
class Job:
    name: str
    """What the adapter goes by in a server: letters, digits, `-`, `_` and `.`."""
    base: Base
    adapter: Path
    """A directory as `methods.save` writes it."""
    tokenizer: PreTrainedTokenizerBase
    """With the chat template that was trained."""
    trained_dtype: str
    """float32, bfloat16 or float16: what it was trained and evaluated in, and the reference of every probe."""
    dtype: str
    """What weights are written in, or computed in by whoever loads the adapter."""
    base_path: str | None = None
    """What the export is to call its base (--base-path), where that is not the place it was found at."""
    quant: str | None = None
    """--quant, for formats that quantise."""
    rounding: Difference | None = None
    """How far the reference is from itself computed in another order, and in `dtype` if that is another: what rounding does."""
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """lora, qlora, full, ...: as in `methods`."""
        from tunesmith import methods

        return methods.kind(self.adapter)

    @property
    def template(self) -> str | None:
        """Source of the chat template that was trained (Jinja), or None where prompts are plain text."""
        return self.tokenizer.chat_template

    @property
    def stops(self) -> list[int]:
        """Tokens that end an answer, the template's own first. Raises TemplateError: there is none."""
        from tunesmith.template.render import stop_ids, stop_token

        first = stop_token(self.tokenizer)
        return [first, *sorted(stop_ids(self.tokenizer) - {first})]

    def adapted(self, dtype: str | None = None, *, onto: Literal["trained", "original"] = "trained"):
        """The adapter on its base, in evaluation mode; of QLoRA, on the 4-bit base it was trained on or on the original one.

        Raises BaseModelError or AdapterError.
        """
        import torch

        from tunesmith import methods
        from tunesmith.methods import lora
        from tunesmith.models.load import model_of

        load = lora.load if onto == "original" and self.method == "qlora" else methods.load
        return load(model_of(self.base, getattr(torch, dtype or self.trained_dtype)), self.adapter).eval()
