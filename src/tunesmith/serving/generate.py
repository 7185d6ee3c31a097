"""Batched generation: one loop for evaluation and serving, so that what was measured is what is served.

Shapes: B = rows of the batch (a finished row leaves it), L = longest prompt, V = vocabulary.
Prompts are padded on the left and positions count real tokens only, so a row's logits do not depend on its company
beyond rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch

from tunesmith.serving.answer import Answer, Token
from tunesmith.serving.logprobs import read_prompts
from tunesmith.serving.sampling import Request
from tunesmith.serving.text import decode

WORTH_SHARING = 512
"""A prefix that all prompts of a batch share (a system prompt, few-shot examples) is read once when it saves so many tokens."""


def generate(model, requests: list[Request], stop_ids: set[int],
             cancelled: Callable[[int], bool] = lambda _row: False) -> Iterator[Token]:
    """Tokens of all requests as they come, rows interleaved. `cancelled(row)` ends a row between two tokens."""
    device = next(model.parameters()).device
    answers = [Answer(row, request, device, stop_ids) for row, request in enumerate(requests)]
    last = torch.tensor([-1], device=device)  # a slice would be strided, and matmul would copy the head once a row
    with torch.inference_mode():
        echoes = [r.logprobs if r.echo else None for r in requests]
        shared = 0 if any(e is not None for e in echoes) else _shared_prefix([r.prompt for r in requests])
        cache = _prefill(model, requests[0].prompt[:shared], len(requests), last) if shared else None
        ids_BL, mask_BL = _left_padded([r.prompt[shared:] for r in requests], device)
        mask_BL = torch.cat([mask_BL.new_ones(len(answers), shared), mask_BL], 1)
        positions = (mask_BL.cumsum(1) - 1).clamp(min=0)[:, shared:]
        if any(e is not None for e in echoes):
            cache, scores = read_prompts(model, [r.prompt for r in requests], echoes, ids_BL, mask_BL, positions)
            ids_BL, positions = ids_BL[:, -1:], positions[:, -1:]
            for answer, said in zip(answers, scores, strict=True):
                answer.said = said
        while answers:
            out = model(input_ids=ids_BL, attention_mask=mask_BL, position_ids=positions, past_key_values=cache,
                        use_cache=True, logits_to_keep=last)
            cache = out.past_key_values
            logits_BV = out.logits[:, -1].float()
            likeliest = logits_BV.argmax(-1).tolist() if any(a.greedy for a in answers) else [None] * len(answers)
            stay, chosen = [], []
            for at, (answer, best) in enumerate(zip(answers, likeliest, strict=True)):
                token = answer.next(logits_BV[at], best, cancelled(answer.row))
                yield token
                if not (token.finish or token.error):
                    stay.append(at)
                    chosen.append([token.id])
            if not stay:
                return
            if len(stay) < len(answers):
                keep = torch.tensor(stay, device=device)
                cache.batch_select_indices(keep)
                mask_BL, positions = mask_BL[keep], positions[keep]
                answers = [answers[i] for i in stay]
            ids_BL = torch.tensor(chosen, device=device)
            mask_BL = torch.cat([mask_BL, mask_BL.new_ones(len(answers), 1)], 1)
            positions = positions[:, -1:] + 1


def _shared_prefix(prompts: list[list[int]]) -> int:
    """How many first tokens all prompts have in common, if reading them once is worth a second forward pass; else 0.

    Every prompt keeps at least its last token.
    """
    first, last = min(prompts), max(prompts)  # of sorted lists, the two that differ first
    longest = min(len(p) for p in prompts) - 1
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), longest)
    shared = min(shared, longest)
    return shared if shared * (len(prompts) - 1) >= WORTH_SHARING else 0


def _prefill(model, prefix: list[int], rows: int, last: torch.Tensor):
    """The key-value cache of a prefix, read once, for this many rows."""
    ids = torch.tensor([prefix], device=last.device)
    cache = model(input_ids=ids, use_cache=True, logits_to_keep=last).past_key_values
    cache.batch_repeat_interleave(rows)
    return cache


def _left_padded(prompts: list[list[int]], device) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(p) for p in prompts)
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask


def answers(model, tokenizer, prompts: list[list[int]], stop_ids: set[int], *, max_new_tokens: int,
            batch_size: int, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0) -> list[tuple[str, bool]]:
    """Answers, each with whether it ended by its stop token: greedy, or sampled at a temperature, prompt i with seed + i.

    Prompts of like length share a batch.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    result: list[tuple[str, bool]] = [("", False)] * len(prompts)
    for batch in range(math.ceil(len(order) / batch_size)):
        part = order[batch * batch_size : (batch + 1) * batch_size]
        tokens: list[list[int]] = [[] for _ in part]
        stopped = [False] * len(part)
        requests = [Request(prompt=prompts[i], max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p,
                            seed=seed + i) for i in part]
        for t in generate(model, requests, stop_ids):
            if t.id is not None:
                tokens[t.row].append(t.id)
            stopped[t.row] = t.finish == "stop"
        for row, i in enumerate(part):
            result[i] = (decode(tokenizer, tokens[row]), stopped[row])
    return result
