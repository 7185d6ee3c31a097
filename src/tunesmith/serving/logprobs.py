"""How likely each token was, and which others were likely in its place.

Shapes: B = rows, L = columns of a padded rectangle, C = columns read at once, V = vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

CHUNK_LOGITS = 1 << 25
"""Logits of a prompt that are made at once (128 MB): a long prompt is read in pieces, and each goes on from the cache."""


@dataclass(frozen=True, slots=True)
class Scored:
    id: int
    logprob: float | None
    """Natural logarithm of its probability; None for a prompt's first token, which nothing predicts."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens in its place, likeliest first."""


def score(logits_NV: torch.Tensor, ids: list[int], top: int) -> list[Scored]:
    """Each of `ids` under the logits that predict it."""
    logp_NV = logits_NV.float().log_softmax(-1)
    logp = logp_NV.gather(1, torch.tensor(ids, device=logp_NV.device)[:, None]).squeeze(1).tolist()
    if not top:
        return [Scored(i, p) for i, p in zip(ids, logp, strict=True)]
    best = logp_NV.topk(min(top, logp_NV.shape[1]))
    return [Scored(i, p, tuple(zip(others, theirs, strict=True)))
            for i, p, others, theirs in zip(ids, logp, best.indices.tolist(), best.values.tolist(), strict=True)]


def read_prompts(model, prompts: list[list[int]], tops: list[int | None], ids_BL: torch.Tensor, mask_BL: torch.Tensor,
                 positions_BL: torch.Tensor):
    """(cache of all columns but the last, scores of each prompt that asks for them, else an empty list).

    `ids_BL` holds the prompts padded on the left; `tops[row]` is how many likely tokens to name, None for a row that asks
    for nothing.
    """
    rows, length = ids_BL.shape
    scores = [[Scored(p[0], None)] if top is not None else [] for p, top in zip(prompts, tops, strict=True)]
    chunk = max(1, CHUNK_LOGITS // (rows * model.config.vocab_size))
    cache = None
    for begin in range(0, length - 1, chunk):
        end = min(begin + chunk, length - 1)
        out = model(input_ids=ids_BL[:, begin:end], attention_mask=mask_BL[:, :end], position_ids=positions_BL[:, begin:end],
                    past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        for row, (prompt, top) in enumerate(zip(prompts, tops, strict=True)):
            pad = length - len(prompt)
            first = max(begin, pad)  # this column and those up to `end` predict the prompt's tokens one further on
            if top is not None and first < end:
                scores[row] += score(out.logits[row, first - begin :], prompt[first - pad + 1 : end - pad + 1], top)
    return cache, scores
