"""Batched generation: one loop for evaluation and serving, so that what was measured is what is served.

Shapes: B = rows of the batch (a finished row leaves it), L = longest prompt, V = vocabulary.
Prompts are padded on the left and positions count real tokens only, so a row's logits do not depend on its company
beyond rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from tunesmith.serving.grammar import GrammarError
from tunesmith.serving.logprobs import Scored, read_prompts, score
from tunesmith.serving.sampling import Request, Sampler
from tunesmith.serving.text import decode

WORTH_SHARING = 512
"""A prefix that all prompts of a batch share (a system prompt, few-shot examples) is read once when it saves so many tokens."""


@dataclass(frozen=True, slots=True)
class Token:
    row: int
    """Which request."""
    id: int | None
    """None when the row ends without a further token: its stop token is not part of the answer."""
    finish: Literal["stop", "length"] | None = None
    scores: tuple[Scored, ...] = ()
    """With logprobs: this token's, and before it those of an echoed prompt. A stop token has its score, too."""
    error: GrammarError | None = None
    """Why the row ends here without a `finish`."""


def generate(model, requests: list[Request], stop_ids: set[int],
             cancelled: Callable[[int], bool] = lambda _row: False) -> Iterator[Token]:
    """Tokens of all requests as they come, rows interleaved. `cancelled(row)` ends a row between two tokens.

    The log-probabilities are the model's own: temperature, penalties, biases and a grammar decide what is drawn, not what is
    reported.
    """
    device = next(model.parameters()).device
    samplers = [Sampler(r, device, stop_ids) for r in requests]
    rows = list(range(len(requests)))
    made = [0] * len(requests)
    last = torch.tensor([-1], device=device)  # a slice would be strided, and matmul would copy the head once a row
    with torch.inference_mode():
        echoes = [r.logprobs if r.echo else None for r in requests]
        scores: list[list[Scored]] = [[] for _ in requests]
        shared = 0 if any(e is not None for e in echoes) else _shared_prefix([r.prompt for r in requests])
        cache = _prefill(model, requests[0].prompt[:shared], len(requests), last) if shared else None
        ids_BL, mask_BL = _left_padded([r.prompt[shared:] for r in requests], device)
        mask_BL = torch.cat([mask_BL.new_ones(len(rows), shared), mask_BL], 1)
        positions = (mask_BL.cumsum(1) - 1).clamp(min=0)[:, shared:]
        if any(e is not None for e in echoes):
            cache, scores = read_prompts(model, [r.prompt for r in requests], echoes, ids_BL, mask_BL, positions)
            ids_BL, positions = ids_BL[:, -1:], positions[:, -1:]
        while rows:
            out = model(input_ids=ids_BL, attention_mask=mask_BL, position_ids=positions, past_key_values=cache,
                        use_cache=True, logits_to_keep=last)
            cache = out.past_key_values
            logits_BV = out.logits[:, -1].float()
            chosen_B = [_choose(samplers[row], logits_V) for row, logits_V in zip(rows, logits_BV, strict=True)]
            stay = []
            for at, (row, token) in enumerate(zip(rows, chosen_B, strict=True)):
                request, said = requests[row], scores[row]
                scores[row] = []
                if not request.max_new_tokens:
                    yield Token(row, None, "length", tuple(said))
                    continue
                if isinstance(token, GrammarError):
                    yield Token(row, None, error=token)
                    continue
                if request.logprobs is not None:
                    said = said + score(logits_BV[at : at + 1], [token], request.logprobs)
                made[row] += 1
                if cancelled(row) or (token in stop_ids and not request.ignore_stop):
                    yield Token(row, None, "stop", tuple(said))
                elif samplers[row].complete:  # the stop token would be all that may follow
                    yield Token(row, token, "stop", tuple(said))
                elif made[row] == request.max_new_tokens:
                    yield Token(row, token, "length", tuple(said))
                else:
                    yield Token(row, token, None, tuple(said))
                    stay.append(at)
            if not stay:
                return
            if len(stay) < len(rows):
                keep = torch.tensor(stay, device=device)
                cache.batch_select_indices(keep)
                mask_BL, positions = mask_BL[keep], positions[keep]
                rows = [rows[i] for i in stay]
            ids_BL = torch.tensor([[chosen_B[i]] for i in stay], device=device)
            mask_BL = torch.cat([mask_BL, mask_BL.new_ones(len(rows), 1)], 1)
            positions = positions[:, -1:] + 1


def _choose(sampler: Sampler, logits_V: torch.Tensor) -> int | GrammarError:
    try:
        return sampler(logits_V)
    except GrammarError as error:  # this row's trouble alone
        return error


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
