"""The reference path: PEFT and transformers as they come, right-padded rows, the whole logits at once.

Slow and simple on purpose. Tests hold the fast path against it, and architectures that the fast path does not
know train on it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tunesmith.engine.loss import IGNORE
from tunesmith.engine.memory import return_large, trim

_training = False


def prepare() -> None:
    """Before a training on this path."""
    global _training
    return_large()
    _training = True


def forward_loss(model, rows: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed loss and hit count of `(tokens, shifted labels)` rows, one row of the batch each."""
    if _training:  # batches differ in length, and what one leaves is in pieces that the next does not fit into
        trim()
    logits_BLV, labels_BL = _logits(model, rows)
    logits_BLV = logits_BLV.float()
    loss = F.cross_entropy(logits_BLV.flatten(0, 1), labels_BL.flatten(), ignore_index=IGNORE, reduction="sum")
    hits = (logits_BLV.argmax(-1) == labels_BL).sum()
    return loss, hits


def answer_logps(model, families: list[list[tuple[list[int], list[int]]]]) -> torch.Tensor:
    """Log p of the labels of each row, in nats, [R], each row of a family after a copy of its first one."""
    whole = [(family[0][0] + tokens, [IGNORE] * len(family[0][0]) + labels) if i else (tokens, labels)
             for family in families for i, (tokens, labels) in enumerate(family)]
    answers = [i for i, (_, labels) in enumerate(whole) if any(label != IGNORE for label in labels)]
    logits_BLV, labels_BL = _logits(model, [whole[i] for i in answers])
    logp_BL = -F.cross_entropy(logits_BLV.float().transpose(1, 2), labels_BL, ignore_index=IGNORE, reduction="none")
    return logp_BL.new_zeros(len(whole)).index_add(0, torch.tensor(answers, device=logp_BL.device), logp_BL.sum(1))


def token_losses(model, rows: list[tuple[list[int], list[int]]]) -> list[torch.Tensor]:
    """What each labelled token costs, in nats: one tensor for each row."""
    with torch.inference_mode():
        logits_BLV, labels_BL = _logits(model, rows)
        losses_BL = F.cross_entropy(logits_BLV.float().transpose(1, 2), labels_BL, ignore_index=IGNORE, reduction="none")
    return [losses_L[labels_L != IGNORE] for losses_L, labels_L in zip(losses_BL, labels_BL, strict=True)]


def answer_logits(model, rows: list[tuple[list[int], list[int]]]) -> list[torch.Tensor]:
    """Logits at each labelled token, [labels, vocabulary], of each row."""
    with torch.inference_mode():
        logits_BLV, labels_BL = _logits(model, rows)
    return [logits_LV[labels_L != IGNORE] for logits_LV, labels_L in zip(logits_BLV, labels_BL, strict=True)]


def _logits(model, rows: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits, shifted labels), rows padded on the right to the longest."""
    device = next(model.parameters()).device
    longest = max(len(tokens) for tokens, _ in rows)
    tokens_BL = torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens, _ in rows], device=device)
    labels_BL = torch.tensor([labels + [IGNORE] * (longest - len(labels)) for _, labels in rows], device=device)
    mask_BL = torch.tensor([[1] * len(t) + [0] * (longest - len(t)) for t, _ in rows], device=device)
    return model(input_ids=tokens_BL, attention_mask=mask_BL, use_cache=False).logits, labels_BL
