"""How likely a model finds the reference answers: negative log-likelihood of each row's trained tokens."""

from __future__ import annotations

import torch

from tunesmith.engine.loss import IGNORE
from tunesmith.objectives.sft import Sample

BATCH_ROWS = 8
"""Whole logits are made here, because that is right for every architecture; few rows keep them small."""


def row_losses(model, samples: list[Sample]) -> tuple[list[float], list[int]]:
    """(summed loss in nats, labelled tokens) of each row, on the model as it is, adapter on or off."""
    device = next(model.parameters()).device
    order = sorted(range(len(samples)), key=lambda i: len(samples[i][0]))
    sums, counts = [0.0] * len(samples), [0] * len(samples)
    with torch.inference_mode():
        for begin in range(0, len(order), BATCH_ROWS):
            part = order[begin : begin + BATCH_ROWS]
            longest = max(len(samples[i][0]) for i in part)
            pads = [longest - len(samples[i][0]) for i in part]
            ids_BL = torch.tensor([samples[i][0] + [0] * p for i, p in zip(part, pads, strict=True)], device=device)
            mask_BL = torch.tensor([[1] * (longest - p) + [0] * p for p in pads], device=device)
            logits_BLV = model(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False).logits
            for row, i in enumerate(part):
                labels_L = torch.tensor(samples[i][1], device=device)
                where_N = (labels_L != IGNORE).nonzero().squeeze(1)
                logp_NV = logits_BLV[row, where_N].float().log_softmax(-1)
                sums[i] = -logp_NV.gather(1, labels_L[where_N, None]).sum().item()
                counts[i] = len(where_N)
    return sums, counts
