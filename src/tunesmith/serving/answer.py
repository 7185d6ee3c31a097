"""One request's answer in the making: logits go in, a token comes out, and what ends it is decided here alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from tunesmith.serving.grammar import GrammarError
from tunesmith.serving.logprobs import Scored, score
from tunesmith.serving.sampling import Request, Sampler


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
    known: int = 0
    """With the first one: tokens of the prompt that did not have to be read."""


class Answer:
    """The log-probabilities are the model's own: temperature, penalties, biases and a grammar decide what is drawn, not what
    is reported."""

    def __init__(self, row: int, request: Request, device, stop_ids: frozenset[int] | set[int]):
        self.row, self.request = row, request
        self.said: list[Scored] = []
        """Scores that the next token takes along."""
        self._sampler = Sampler(request, device, stop_ids)
        self._stops = stop_ids
        self._made = 0

    @property
    def greedy(self) -> bool:
        """Whether its next token is nothing but the likeliest."""
        return self._sampler.greedy

    def next(self, logits_V: torch.Tensor, likeliest: int | None = None, cancelled: bool = False) -> Token:
        """The token after those logits, float32. `likeliest`: their argmax, if it is known."""
        scores, self.said = self.said, []
        if not self.request.max_new_tokens:
            return Token(self.row, None, "length", tuple(scores))
        try:
            token = self._sampler(logits_V, likeliest)
        except GrammarError as error:  # this row's trouble alone
            return Token(self.row, None, error=error)
        if self.request.logprobs is not None:
            scores = scores + score(logits_V[None], [token], self.request.logprobs)
        self._made += 1
        if cancelled or (token in self._stops and not self.request.ignore_stop):
            return Token(self.row, None, "stop", tuple(scores))
        if self._sampler.complete:  # the stop token would be all that may follow
            return Token(self.row, token, "stop", tuple(scores))
        return Token(self.row, token, "length" if self._made == self.request.max_new_tokens else None, tuple(scores))
