"""How likely a model finds given answers: negative log-likelihood of each row's trained tokens.

Shapes: B = rows of a forward pass, L = longest of them, V = vocabulary, C = all choices of a batch of items.
"""

from __future__ import annotations

import torch

from tunesmith.engine.loss import IGNORE
from tunesmith.objectives.families import Family
from tunesmith.objectives.sft import Sample

BATCH_ROWS = 8
"""Whole logits are made here, because that is right for every architecture; few rows keep them small."""
BATCH_CHOICES = 32
"""Choices of a forward pass. They are short, and logits are made for them alone, not for their questions."""


def row_losses(model, samples: list[Sample]) -> tuple[list[float], list[int]]:
    """(summed loss in nats, labelled tokens) of each row, on the model as it is, adapter on or off."""
    device = next(model.parameters()).device
    order = sorted(range(len(samples)), key=lambda i: len(samples[i][0]))
    sums, counts = [0.0] * len(samples), [0] * len(samples)
    with torch.inference_mode():
        for begin in range(0, len(order), BATCH_ROWS):
            part = order[begin : begin + BATCH_ROWS]
            ids_BL, mask_BL = _right_padded([samples[i][0] for i in part], device)
            logits_BLV = model(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False).logits
            for row, i in enumerate(part):
                sums[i], counts[i] = _loss(logits_BLV[row], samples[i][1])
    return sums, counts


def choice_losses(model, families: list[Family]) -> list[list[float]]:
    """Summed loss in nats of each answer of each family, whose first row is what they all go on from (`objectives.families`).

        questions   . . q q q q       read once, padded on the left; the cache holds their keys and values
                    q q q q q q
        choices     q c c e           each goes on from a copy of its question's cache, padded on the right
                    q c e .           its first token is the question's last one, which predicts the choice's first

    The numbers are those of `row_losses` on whole rows, up to rounding; a question of four choices is read once instead of
    four times (benchmarks/choices.py).
    """
    found: list[list[float]] = [[] for _ in families]
    for part in _batches(families):
        rows = [answer for i in part for answer in families[i][1:]]
        losses = iter(_choice_batch(model, [families[i][0][0] for i in part], rows, [len(families[i]) - 1 for i in part]))
        for i in part:
            found[i] = [next(losses) for _ in families[i][1:]]
    return found


def _batches(families: list[Family]) -> list[list[int]]:
    """Families with questions of similar length, at most BATCH_CHOICES answers together, or one family."""
    batches: list[list[int]] = []
    size = 0
    for i in sorted(range(len(families)), key=lambda i: len(families[i][0][0])):
        answers = len(families[i]) - 1
        if not batches or size + answers > BATCH_CHOICES:
            batches.append([])
            size = 0
        batches[-1].append(i)
        size += answers
    return batches


def _choice_batch(model, questions: list[list[int]], rows: list[Sample], counts: list[int]) -> list[float]:
    device = next(model.parameters()).device
    longest = max(len(q) for q in questions)
    owner_C = torch.tensor([i for i, n in enumerate(counts) for _ in range(n)], device=device)
    lengths_C = torch.tensor([len(q) for q in questions], device=device)[owner_C]
    with torch.inference_mode():
        cache, before_CL = None, torch.zeros(len(rows), 0, dtype=torch.long, device=device)
        if longest:
            asked_BL = torch.tensor([[0] * (longest - len(q)) + q for q in questions], device=device)
            mask_BL = torch.tensor([[0] * (longest - len(q)) + [1] * len(q) for q in questions], device=device)
            positions_BL = (mask_BL.cumsum(1) - 1).clamp(min=0)
            cache = model(input_ids=asked_BL, attention_mask=mask_BL, position_ids=positions_BL, use_cache=True,
                          logits_to_keep=torch.tensor([-1], device=device)).past_key_values
            cache.batch_select_indices(owner_C)
            before_CL = mask_BL[owner_C]
        ids_CL, mask_CL = _right_padded([ids for ids, _ in rows], device)
        positions_CL = lengths_C[:, None] + torch.arange(ids_CL.shape[1], device=device)
        logits_CLV = model(input_ids=ids_CL, attention_mask=torch.cat([before_CL, mask_CL], 1), position_ids=positions_CL,
                           past_key_values=cache, use_cache=cache is not None).logits
        return [_loss(logits_CLV[row], labels)[0] for row, (_, labels) in enumerate(rows)]


def _loss(logits_LV: torch.Tensor, labels: list[int]) -> tuple[float, int]:
    """Summed loss in nats and number of the labels of one row; the logits may go on behind them."""
    labels_L = torch.tensor(labels, device=logits_LV.device)
    where_N = (labels_L != IGNORE).nonzero().squeeze(1)
    logp_NV = logits_LV[where_N].float().log_softmax(-1)
    return -logp_NV.gather(1, labels_L[where_N, None]).sum().item(), len(where_N)


def _right_padded(rows: list[list[int]], device) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(ids) for ids in rows)
    ids_BL = torch.tensor([ids + [0] * (longest - len(ids)) for ids in rows], device=device)
    return ids_BL, torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in rows], device=device)
