"""Accelerate a Hugging Face + PEFT model in place, or say why not.

Nothing is reimplemented: the model's own modules run, with three replacements that are proven equal to the
originals (tests/engine): attention over packed rows, the LoRA linear, and the loss. An architecture that is not
listed here trains on the plain path (`engine.plain`), which is PEFT and transformers with no tricks.
"""

from __future__ import annotations

import torch

from tunesmith.engine import attention, loss
from tunesmith.engine.lora_linear import fused_forward
from tunesmith.engine.loss import GRAIN, IGNORE, chunked_loss, labelled_positions
from tunesmith.engine.packing import layout

KNOWN_ARCHITECTURES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Decoders whose attention is plain causal softmax and whose logits are head(hidden). Tested one by one."""


def why_not(model, max_tokens: int) -> str | None:
    """The reason this PEFT model has to take the plain path, or None when the fast path is exact for it."""
    config = model.get_base_model().config
    if config.model_type not in KNOWN_ARCHITECTURES:
        return f"architecture {config.model_type!r} is not one of {', '.join(sorted(KNOWN_ARCHITECTURES))}"
    window = getattr(config, "sliding_window", None)
    if window and max_tokens > window:
        return f"rows of up to {max_tokens} tokens are longer than the sliding attention window of {window}"
    if (rope := config.rope_parameters["rope_type"]) in ("dynamic", "longrope"):
        return f"its {rope} position encoding of one row depends on the longest row of the pack"
    if getattr(config, "attention_dropout", 0.0):
        return "the base trains with attention dropout"
    for name, layer in _lora_layers(model):
        if not _is_plain(layer):
            return f"{name} has dropout, a bias or a LoRA variant"
    return None


def accelerate(model) -> None:
    """Switch a PEFT model, in place, to packed attention and fused LoRA linears."""
    attention.register()
    model.get_base_model().set_attn_implementation(attention.NAME)
    fuse(model)


def fuse(model) -> None:
    """Only the LoRA linears, for generation: plain layers without dropout get the fused forward."""
    for _name, layer in _lora_layers(model):
        if _is_plain(layer):
            layer.forward = fused_forward(layer)


def forward_loss(model, rows: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed loss and hit count of one pack of `(tokens, shifted labels)` rows on the fast path.

    The pack is filled up to a round number of tokens with one more row, which no row sees and nothing is learned from.
    """
    hidden_TD, labels_T = _hidden(model, rows)
    return chunked_loss(hidden_TD, model.get_base_model().get_output_embeddings(), labels_T)


def token_losses(model, rows: list[tuple[list[int], list[int]]]) -> list[torch.Tensor]:
    """What each labelled token costs, in nats: one tensor for each row of one pack."""
    with torch.inference_mode():
        hidden_TD, labels_T = _hidden(model, rows)
        where, head = labelled_positions(labels_T), model.get_base_model().get_output_embeddings()
        losses_N = loss.token_losses(hidden_TD.index_select(0, where), head, labels_T[where])
    return list(losses_N.split([sum(label != IGNORE for label in labels) for _, labels in rows]))


def _hidden(model, rows: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(last hidden states, shifted labels) of all tokens of a pack and of what it is filled up with."""
    causal_lm = model.get_base_model()
    if short := -sum(len(tokens) for tokens, _ in rows) % GRAIN:
        rows = [*rows, ([0] * short, [IGNORE] * short)]
    device = next(causal_lm.parameters()).device
    plan = layout([len(tokens) for tokens, _ in rows], device)
    tokens_1T = torch.tensor([t for tokens, _ in rows for t in tokens], device=device).unsqueeze(0)
    labels_T = torch.tensor([t for _, labels in rows for t in labels], device=device)
    decoder = getattr(causal_lm, causal_lm.base_model_prefix)
    hidden_1TD = decoder(input_ids=tokens_1T, position_ids=plan.positions_T.unsqueeze(0), use_cache=False,
                         packing=plan).last_hidden_state
    return hidden_1TD.squeeze(0), labels_T


def _is_plain(layer) -> bool:
    dropout = any(getattr(d, "p", 0.0) for d in layer.lora_dropout.values())
    return type(layer.base_layer) is torch.nn.Linear and not (dropout or layer.lora_variant or any(layer.lora_bias.values()))


def _lora_layers(model):
    from peft.tuners.lora import LoraLayer

    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
