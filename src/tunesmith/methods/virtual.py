"""Virtual tokens before every row: what prompt tuning and prefix tuning have in common. PEFT owns parameters and files.

    prompt tuning   n trained input vectors, [n, d]
    prefix tuning   n trained keys and values in every layer, [n, layers * 2 * key/value heads * head size]

PEFT's model puts virtual tokens before *every* call, so that generation with a cache only works inside of transformers'
`generate`, and prompt tuning answers with n logits too many. `Prompted` puts them before the first call, and its logits
are those of the real tokens: training, evaluation and serving use it like a base. Left-padded rows are fine, since the
mask and the positions of the real tokens are moved on by n.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from tunesmith.errors import AdapterError, RecipeError
from tunesmith.methods import files
from tunesmith.methods.adapted import Adapted, alone, copy_into
from tunesmith.models.load import quiet_transformers

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

TENSOR = "prompt_embeddings"
"""The one tensor of the file, as PEFT names it."""


class Prompted(Adapted):
    """Call it like the base. `needs_plain`: why rows cannot be packed."""

    needs_plain = "virtual tokens stand before every row, and packed rows have no room for them"

    def __init__(self, peft: PeftModel):
        super().__init__(peft.base_model, {})
        self.__dict__["_peft"] = peft  # beside the modules: the base is in it a second time
        self.encoder = peft.prompt_encoder["default"]

    @property
    def peft_config(self) -> dict[str, PeftConfig]:
        return self._peft.peft_config

    @property
    def virtual_tokens(self) -> int:
        return self.peft_config["default"].num_virtual_tokens

    def trained(self) -> dict[str, nn.Parameter]:
        return {TENSOR: self.encoder.embedding.weight}

    def generate(self, *args, **kwargs):
        return self._peft.generate(*args, **kwargs) if self.enabled else self.base.generate(*args, **kwargs)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None,
                position_ids: torch.Tensor | None = None, past_key_values=None, **kwargs):
        """input_ids, attention_mask (also of what is cached) and position_ids as if there were no virtual tokens."""
        if self.enabled:
            if attention_mask is not None:
                before = attention_mask.new_ones(len(attention_mask), self.virtual_tokens)
                attention_mask = torch.cat([before, attention_mask], 1)
            if position_ids is not None:
                position_ids = position_ids + self.virtual_tokens
            if past_key_values is None or not past_key_values.get_seq_length():
                return self._first(input_ids, attention_mask, position_ids, past_key_values, kwargs)
        return self.base(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
                         past_key_values=past_key_values, **kwargs)

    def _first(self, input_ids, attention_mask, position_ids, past_key_values, kwargs):
        """The call that nothing is cached before."""
        raise NotImplementedError


def attach(kind: type[Prompted], model: PreTrainedModel, settings: PeftConfig, base_ref: str) -> Prompted:
    from peft import get_peft_model

    with quiet_transformers():
        peft = get_peft_model(model, settings)
    peft.peft_config["default"].base_model_name_or_path = base_ref
    made = kind(peft)
    made.encoder.float()
    return made


def first_words(model: PreTrainedModel, method) -> torch.Tensor | None:
    """[n] token ids that the virtual tokens start as, or None for noise. Draws from torch's global generator.

    Raises:
        RecipeError: the base's tokenizer cannot be loaded, or makes no token of the text.
    """
    if method.init_text is None:
        if method.init == "random":
            return None
        return torch.randint(0, model.get_input_embeddings().weight.shape[0], (method.tokens,)).to(model.device)
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(model.config._name_or_path, trust_remote_code=False)
            ids = tokenizer(method.init_text, add_special_tokens=False)["input_ids"]
    except (OSError, ValueError) as error:
        raise RecipeError("method.init_text: the base has no usable tokenizer", why=str(error).splitlines()[0]) from error
    if not ids:
        raise RecipeError("method.init_text: the tokenizer makes no token of it", fix="leave it out")
    return torch.tensor((ids * -(-method.tokens // len(ids)))[: method.tokens], device=model.device)


def save(model: Prompted, directory: Path) -> None:
    """Write a plain PEFT directory. Raises StoreError: a full disk."""
    files.save_peft(model._peft, directory)


def load(kind: type[Prompted], model: PreTrainedModel, directory: Path, trainable: bool) -> Prompted:
    """Raises AdapterError: no adapter there, it does not fit, or the base carries another adapter."""
    from peft import PeftConfig, get_peft_model

    files.read_config(directory)
    base = alone(model, directory)
    tensors = files.read_tensors(directory)
    with files.fitting(directory):
        settings = PeftConfig.from_pretrained(str(directory))
        settings.inference_mode = False  # PEFT refuses to train a loaded one; the weights decide, not this
        settings.token_dim = settings.num_layers = settings.num_attention_heads = None  # of this base, to compare the file with
        ref = settings.base_model_name_or_path
        with quiet_transformers():
            made = kind(get_peft_model(base, settings))
        made.peft_config["default"].base_model_name_or_path = ref
        made.encoder.float()
        copy_into(made.trained(), tensors)
    made.encoder.requires_grad_(trainable)
    if trainable:
        made.remember_start()
    return made.train(trainable)


def restore(model: Prompted, tensors: dict[str, torch.Tensor]) -> None:
    """Put the tensors of a checkpoint back, in place. Raises ValueError when they do not fit."""
    copy_into(model.trained(), tensors)


def merge(model: Prompted) -> PreTrainedModel:
    """Raises AdapterError: there is no such model."""
    raise AdapterError("virtual tokens cannot be merged", why="they are input, and no weight of the base holds them",
                       fix="serve them as an adapter, or train LoRA, which merges")


def unmoved(model: Prompted) -> str | None:
    """Why training changed nothing, or None."""
    return "every virtual token is what it began as" if model.unmoved() else None
