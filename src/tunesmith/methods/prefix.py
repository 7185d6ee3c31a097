"""Prefix tuning through PEFT: n trained keys and values in every layer, before those of the row (Li and Liang 2021, arXiv
2101.00190).

    n * layers * 2 * key/value heads * head size parameters

They start as the keys and values that the base itself computes for n words of the vocabulary, or of a text: the same as a
prompt of those words. Noise, PEFT's start, trains slower; its reparametrisation by an MLP is not offered, since PEFT
saves only what the MLP makes, and training could not go on from a checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tunesmith.errors import RecipeError
from tunesmith.methods import virtual
from tunesmith.methods.targets import Estimate, Part
from tunesmith.methods.virtual import merge, restore, save, unmoved  # noqa: F401 - verbs of this method too

if TYPE_CHECKING:
    from peft import PrefixTuningConfig
    from transformers import PreTrainedModel

    from tunesmith.recipe.methods import Prefix

USUAL_RATES = (2e-3, 0.1)


class Prefixed(virtual.Prompted):
    adapted_by = "prefix"

    def _first(self, input_ids, attention_mask, position_ids, past_key_values, kwargs):
        return self.base(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
                         past_key_values=self._peft.get_prompt(len(input_ids)), **kwargs)


def attach(model: PreTrainedModel, method: Prefix, base_ref: str) -> Prefixed:
    """Make the virtual tokens, float32. Draws from torch's global generator.

    Raises:
        RecipeError: init_text, and the base has no usable tokenizer; or its cache is not one of keys and values.
    """
    ids = virtual.first_words(model, method)
    start = None if ids is None else _keys_and_values(model, ids)
    made = virtual.attach(Prefixed, model, config(method, base_ref), base_ref)
    if start is not None:
        with torch.no_grad():
            made.encoder.embedding.weight.copy_(start)
    made.remember_start()
    return made


@torch.no_grad()
def _keys_and_values(model: PreTrainedModel, ids_N: torch.Tensor) -> torch.Tensor:
    """[n, layers * 2 * heads * size], as PEFT lays them out, of a row of these tokens."""
    cache = model(input_ids=ids_N[None], use_cache=True).past_key_values
    rows = [states.squeeze(0).transpose(0, 1).flatten(1) for layer in cache.layers for states in (layer.keys, layer.values)]
    if any(len(row) != len(ids_N) for row in rows):
        raise RecipeError(f"method.tokens: {len(ids_N)} virtual tokens are more than a layer of this base looks back",
                          fix="take fewer, or set method.init: random")
    return torch.cat(rows, 1).float()


def config(method: Prefix, base_ref: str) -> PrefixTuningConfig:
    from peft import PrefixTuningConfig, TaskType

    return PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=method.tokens, base_model_name_or_path=base_ref)


def estimate(model: PreTrainedModel, method: Prefix) -> Estimate:
    """n * layers * 2 * key/value heads * head size. Every row looks back on n tokens more."""
    layers, heads, size = cached(model)
    width = 2 * heads * size
    parts = [Part("virtual tokens", method.tokens, width, method.tokens * width) for _ in range(layers)]
    return Estimate(parts=parts, adapter_bytes=4 * sum(p.parameters for p in parts), tokens_per_row=method.tokens,
                    adapts_linear=False)


def cached(model: PreTrainedModel) -> tuple[int, int, int]:
    """(layers, key/value heads, head size) of what a base keeps of a token."""
    shape = model.config.get_text_config()
    heads = shape.num_attention_heads
    size = getattr(shape, "head_dim", None) or shape.hidden_size // heads
    return shape.num_hidden_layers, getattr(shape, "num_key_value_heads", None) or heads, size


def load(model: PreTrainedModel, directory: Path, *, name: str = "default", trainable: bool = False) -> Prefixed:
    """Raises AdapterError: no adapter there, it does not fit, or the base carries another adapter."""
    return virtual.load(Prefixed, model, directory, trainable)
