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
from tunesmith.engine.native import build
from tunesmith.engine.native.replace import replace
from tunesmith.engine.nf4 import Nf4Linear
from tunesmith.engine.packing import layout
from tunesmith.engine.token_losses import labelled_losses

KNOWN_ARCHITECTURES = frozenset({"gemma3_text", "llama", "mistral", "phi", "phi3", "qwen2", "qwen3"})
"""Decoders whose attention is causal softmax and whose logits are head(hidden). Tested one by one."""
DROPOUTS = ("attention_dropout", "resid_pdrop", "embd_pdrop")
CHANGES = ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention")
"""Settings of a config that make it another model than the one described above."""


def why_not(model, max_tokens: int) -> str | None:
    """The reason this PEFT model has to take the plain path, or None when the fast path is exact for it."""
    if reason := why_not_base(model.get_base_model().config, max_tokens) or getattr(model, "needs_plain", None):
        return reason
    for name, layer in _lora_layers(model):
        if not (_is_plain(layer) or _is_dora(layer)):
            return f"{name} has dropout, a bias or a LoRA variant"
    if whole := next((n for n, m in model.named_modules() if isinstance(m, _copies())), None):
        return f"{whole} is trained as a whole copy (modules_to_save)"
    return None


def why_not_base(config, max_tokens: int) -> str | None:
    """The same of a base, whatever trains it, from its transformers config."""
    if config.model_type not in KNOWN_ARCHITECTURES:
        return f"architecture {config.model_type!r} is not one of {', '.join(sorted(KNOWN_ARCHITECTURES))}"
    for name in (*DROPOUTS, *CHANGES):
        if getattr(config, name, None):
            return f"the base is set to {name} = {getattr(config, name)}"
    for rope in _ropes(config):
        if reason := _depends_on_other_rows(rope, config, max_tokens):
            return reason
    return None


def _ropes(config) -> list[dict]:
    """Parameters of the rotary embeddings: one, or one for each kind of layer."""
    found = config.rope_parameters
    return [found] if "rope_type" in found else list(found.values())


def _depends_on_other_rows(rope: dict, config, max_tokens: int) -> str | None:
    """Dynamic and long encodings change with the longest row that they see, if it is longer than what was pretrained."""
    kind = rope["rope_type"]
    if kind not in ("dynamic", "longrope"):
        return None
    usual = rope.get("original_max_position_embeddings") or config.max_position_embeddings
    if max_tokens <= usual:
        return None
    return f"its {kind} position encoding of one row depends on the longest row of the pack beyond {usual} tokens"


def accelerate(model) -> str | None:
    """Switch a PEFT model, in place, to packed attention, fused LoRA linears and, on a CPU, kernels in C.

    Returns the reason why there are no kernels and torch's own operations do their work, or None.
    """
    reason = build.start() if next(model.parameters()).device.type == "cpu" else None
    if not reason:
        replace(model.get_base_model())
    attention.register()
    model.get_base_model().set_attn_implementation(attention.NAME)
    fuse(model)
    return reason


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
    with build.used():
        return chunked_loss(hidden_TD, model.get_base_model().get_output_embeddings(), labels_T)


def answer_logps(model, families: list[list[tuple[list[int], list[int]]]]) -> torch.Tensor:
    """Log p of the labels of each row, in nats, [R], with gradients, of one pack of families of rows.

    All rows of a family see its first one (`packing`), which has no labels of its own: a prompt, computed once.
    """
    hidden_TD, labels_T = _hidden(model, [row for family in families for row in family], [len(f) for f in families])
    with build.used():
        losses_N = labelled_losses(hidden_TD, model.get_base_model().get_output_embeddings(), labels_T)
    counts = [sum(label != IGNORE for label in labels) for family in families for _, labels in family]
    return -torch.stack([part.sum() for part in losses_N.split([*counts, len(losses_N) - sum(counts)])[:-1]])


def token_losses(model, rows: list[tuple[list[int], list[int]]]) -> list[torch.Tensor]:
    """What each labelled token costs, in nats: one tensor for each row of one pack."""
    with torch.inference_mode():
        hidden_TD, labels_T = _hidden(model, rows)
        where, head = labelled_positions(labels_T), model.get_base_model().get_output_embeddings()
        losses_N = loss.token_losses(hidden_TD.index_select(0, where), head, labels_T[where])
    return list(losses_N.split([sum(label != IGNORE for label in labels) for _, labels in rows]))


def answer_logits(model, rows: list[tuple[list[int], list[int]]]) -> list[torch.Tensor]:
    """Logits at each labelled token, [labels, vocabulary], of each row of one pack."""
    with torch.inference_mode():
        hidden_TD, labels_T = _hidden(model, rows)
        head = model.get_base_model().get_output_embeddings()
        logits_NV = head(hidden_TD.index_select(0, labelled_positions(labels_T)))
    counts = [sum(label != IGNORE for label in labels) for _, labels in rows]
    return list(logits_NV[: sum(counts)].split(counts))


def _hidden(model, rows: list[tuple[list[int], list[int]]],
            families: list[int] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """(last hidden states, shifted labels) of all tokens of a pack and of what it is filled up with."""
    causal_lm, families = model.get_base_model(), families or [1] * len(rows)
    if short := -sum(len(tokens) for tokens, _ in rows) % GRAIN:
        rows, families = [*rows, ([0] * short, [IGNORE] * short)], [*families, 1]
    device = next(causal_lm.parameters()).device
    plan = layout([len(tokens) for tokens, _ in rows], device, families)
    tokens_1T = torch.tensor([t for tokens, _ in rows for t in tokens], device=device).unsqueeze(0)
    labels_T = torch.tensor([t for _, labels in rows for t in labels], device=device)
    decoder = getattr(causal_lm, causal_lm.base_model_prefix)
    with build.used():
        hidden_1TD = decoder(input_ids=tokens_1T, position_ids=plan.positions_T.unsqueeze(0), use_cache=False,
                             packing=plan).last_hidden_state
    return hidden_1TD.squeeze(0), labels_T


def _is_plain(layer) -> bool:
    return type(layer.base_layer) in (torch.nn.Linear, Nf4Linear) and not (_varies(layer) or layer.lora_variant)


def _is_dora(layer) -> bool:
    """PEFT's own forward, which sees a token at a time: packed rows stay apart in it, only nothing is fused."""
    return not _varies(layer) and all(layer.use_dora.get(name) for name in layer.lora_variant)


def _varies(layer) -> bool:
    return any(getattr(d, "p", 0.0) for d in layer.lora_dropout.values()) or any(layer.lora_bias.values())


def _copies() -> type:
    from peft.utils.other import AuxiliaryTrainingWrapper

    return AuxiliaryTrainingWrapper


def _lora_layers(model):
    from peft.tuners.lora import LoraLayer

    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
