"""Prompt tuning through PEFT: n trained input vectors before every row (Lester et al. 2021, arXiv 2104.08691).

    n d parameters. The start is n words of the vocabulary, or of a text: already a prompt, so not the base.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tunesmith.methods import virtual
from tunesmith.methods.targets import Estimate, Part
from tunesmith.methods.virtual import merge, restore, save, unmoved  # noqa: F401 - verbs of this method too

if TYPE_CHECKING:
    from peft import PromptTuningConfig
    from transformers import PreTrainedModel

    from tunesmith.recipe.methods import Prompt

USUAL_RATES = (3e-3, 0.3)


class SoftPrompt(virtual.Prompted):
    adapted_by = "prompt"

    def _first(self, input_ids, attention_mask, position_ids, past_key_values, kwargs):
        words_BLD = self.base.get_input_embeddings()(input_ids)
        prompt_BND = self._peft.get_prompt(len(input_ids)).to(words_BLD.dtype)
        if position_ids is not None:
            before = torch.arange(self.virtual_tokens, device=position_ids.device).expand(len(input_ids), -1)
            position_ids = torch.cat([before, position_ids], 1)
        out = self.base(inputs_embeds=torch.cat([prompt_BND, words_BLD], 1), attention_mask=attention_mask,
                        position_ids=position_ids, past_key_values=past_key_values, **kwargs)
        if out.logits.shape[1] == self.virtual_tokens + input_ids.shape[1]:  # not if only the last are kept
            out.logits = out.logits[:, self.virtual_tokens :]
        return out


def attach(model: PreTrainedModel, method: Prompt, base_ref: str) -> SoftPrompt:
    """Make the virtual tokens, float32. Draws from torch's global generator.

    Raises:
        RecipeError: init_text, and the base has no usable tokenizer.
    """
    made = virtual.attach(SoftPrompt, model, config(method, base_ref), base_ref)
    ids = virtual.first_words(model, method)
    if ids is not None:
        with torch.no_grad():
            made.encoder.embedding.weight.copy_(model.get_input_embeddings()(ids))
    made.remember_start()
    return made


def config(method: Prompt, base_ref: str) -> PromptTuningConfig:
    from peft import PromptTuningConfig, TaskType

    return PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=method.tokens, base_model_name_or_path=base_ref)


def estimate(model: PreTrainedModel, method: Prompt) -> Estimate:
    """n d. Every row is n tokens longer."""
    width = model.get_input_embeddings().weight.shape[1]
    count = method.tokens * width
    return Estimate(parts=[Part("virtual tokens", method.tokens, width, count)], adapter_bytes=4 * count,
                    tokens_per_row=method.tokens, adapts_linear=False)


def load(model: PreTrainedModel, directory: Path, *, name: str = "default", trainable: bool = False) -> SoftPrompt:
    """Raises AdapterError: no adapter there, it does not fit, or the base carries another adapter."""
    return virtual.load(SoftPrompt, model, directory, trainable)
