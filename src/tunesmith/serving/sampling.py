"""What is asked of one row, and its next token: penalties, biases and a grammar change the logits, and then one is drawn.

    logits ─ repetition ─ frequency, presence ─ bias ─ grammar ─┬─ greedy
                                                                └─ temperature ─ min_p ─ top_k ─ top_p ─ draw

Shapes: V = vocabulary. A row that asks for none of the changes pays for none of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from tunesmith.serving.grammar import Grammar

COLDEST = 1e-6
"""Below this temperature the logits would overflow; the most likely token has all the mass long before."""
BAN = -100.0
BANNED = -1e4
"""What a bias of -100 adds: a probability of exactly 0 in float32, unless nothing that is not banned can follow."""


LIKELIEST = 1024
"""Words that are looked at first for `top_p`; all of them are sorted only if these are not enough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    prompt: list[int]
    max_new_tokens: int
    temperature: float = 0.0
    """0: greedy, always the most likely token."""
    top_p: float = 1.0
    top_k: int = 0
    """Draw from the k likeliest; 0: from all."""
    min_p: float = 0.0
    """Draw from tokens with at least this share of the likeliest one's probability."""
    seed: int | None = None
    frequency_penalty: float = 0.0
    """Taken off a token's logit for every time that the answer has it already."""
    presence_penalty: float = 0.0
    """Taken off once for each token that the answer has."""
    repetition_penalty: float = 1.0
    """Divides positive logits and multiplies negative ones of tokens in the prompt or the answer (arXiv:1909.05858)."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of tokens. -100 bans."""
    min_tokens: int = 0
    """No stop token before the answer has so many."""
    ignore_stop: bool = False
    """A stop token is a token like any other: the answer has `max_new_tokens`."""
    grammar: Grammar | None = None
    """What the answer must be. A stop token may follow only where it is complete."""
    logprobs: int | None = None
    """Score each token, and name this many of the likeliest in its place; None: no scores."""
    echo: bool = False
    """Score the prompt's tokens too. Then `max_new_tokens` may be 0."""


class Sampler:
    """Next token of one row, from its own random stream, so that company in the batch does not change it."""

    def __init__(self, request: Request, device, stop_ids: frozenset[int] | set[int] = frozenset()):
        self.request = request
        self.random = torch.Generator(device=device)
        if request.seed is None:
            self.random.seed()
        else:
            self.random.manual_seed(request.seed)
        self._stops = sorted(stop_ids)
        self._made = 0
        self._counts_V: torch.Tensor | None = None
        self._seen_V: torch.Tensor | None = None
        self._bias_V: torch.Tensor | None = None
        self._state = request.grammar.begin() if request.grammar else None

    @property
    def complete(self) -> bool:
        """The grammar allows nothing more than an end."""
        return self._state is not None and self._state.complete

    @property
    def greedy(self) -> bool:
        """The next token is nothing but the likeliest."""
        r = self.request
        return not (r.temperature or r.frequency_penalty or r.presence_penalty or r.logit_bias or self._state
                    or self._made < r.min_tokens) and r.repetition_penalty == 1.0

    def __call__(self, logits_V: torch.Tensor, likeliest: int | None = None) -> int:
        """Raises GrammarError when the grammar cannot go on. `likeliest`: the logits' argmax, if it is known."""
        if likeliest is not None and self.greedy:
            self._made += 1
            return likeliest
        logits_V = self.adjusted(logits_V)
        token = int(logits_V.argmax()) if self.request.temperature == 0.0 else self._draw(self.distribution(logits_V))
        self._take(token)
        return token

    def adjusted(self, logits_V: torch.Tensor) -> torch.Tensor:
        """The logits after penalties, biases and the grammar; the very same tensor where nothing is asked."""
        r, given = self.request, logits_V
        if r.repetition_penalty != 1.0:
            if self._seen_V is None:
                self._seen_V = torch.zeros(len(logits_V), dtype=torch.bool, device=logits_V.device)
                self._seen_V[torch.tensor(r.prompt, device=logits_V.device)] = True
            penalised_V = torch.where(logits_V > 0, logits_V / r.repetition_penalty, logits_V * r.repetition_penalty)
            logits_V = torch.where(self._seen_V, penalised_V, logits_V)
        if r.frequency_penalty or r.presence_penalty:
            if self._counts_V is None:
                self._counts_V = torch.zeros_like(logits_V)
            logits_V = logits_V - r.frequency_penalty * self._counts_V - r.presence_penalty * (self._counts_V > 0)
        if r.logit_bias:
            if self._bias_V is None:
                self._bias_V = torch.zeros_like(logits_V)
                for token, bias in r.logit_bias.items():
                    if token < len(logits_V):  # what the model cannot say needs no ban
                        self._bias_V[token] = BANNED if bias == BAN else bias
            logits_V = logits_V + self._bias_V
        if self._made < r.min_tokens or self._state:
            logits_V = logits_V.clone() if logits_V is given else logits_V
            if self._state:
                self._state.mask(logits_V)
            else:
                logits_V[[s for s in self._stops if s < len(logits_V)]] = -torch.inf
        return logits_V

    def distribution(self, logits_V: torch.Tensor) -> torch.Tensor:
        """What is drawn from at a temperature above 0."""
        r = self.request
        p_V = (logits_V / max(r.temperature, COLDEST)).softmax(-1)
        if r.min_p:
            p_V = p_V.where(p_V >= r.min_p * p_V.max(), 0.0)
        if 0 < r.top_k < len(p_V):
            best = p_V.topk(r.top_k)
            p_V = torch.zeros_like(p_V).scatter(0, best.indices, best.values)
        if r.top_p < 1.0:
            if r.min_p or r.top_k:
                p_V = p_V / p_V.sum()
            sorted_N, order_N = p_V.topk(min(LIKELIEST, len(p_V)))
            if sorted_N.sum() < r.top_p:
                sorted_N, order_N = p_V.sort(descending=True)
            sorted_N[sorted_N.cumsum(0) - sorted_N >= r.top_p] = 0.0
            p_V = torch.zeros_like(p_V).scatter(0, order_N, sorted_N)
        return p_V

    def _draw(self, p_V: torch.Tensor) -> int:
        """By one uniform number and the sums of the probabilities: torch.multinomial draws a number for every word."""
        sums_V = p_V.cumsum(0, dtype=torch.float64)
        at = torch.rand(1, dtype=torch.float64, generator=self.random, device=p_V.device) * sums_V[-1]
        last = torch.searchsorted(sums_V, sums_V[-1:])  # that has a probability, where `at` is rounded up to the whole sum
        return int(torch.minimum(torch.searchsorted(sums_V, at, right=True), last))

    def _take(self, token: int) -> None:
        self._made += 1
        if self._counts_V is not None:
            self._counts_V[token] += 1
        if self._seen_V is not None:
            self._seen_V[token] = True
        if self._state:
            self._state.take(token)
