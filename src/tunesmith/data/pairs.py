"""Rows with more than one answer, or with labels, as training takes them: what each says, and how many tokens it takes.

The prompt is counted once, whatever number of answers it has (`objectives.families`).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from tunesmith.data.dataset import Dataset, Tokens
from tunesmith.errors import DataError

Conversation = tuple[list[int], list[bool]]
"""(ids, trained)."""


@dataclass(frozen=True)
class Answers:
    """Conversations that share a prompt: `answers[i]` is one of each source, with the same prompt."""

    sources: Sequence[Tokens]

    @classmethod
    def of_pairs(cls, dataset: Dataset, part: str) -> Answers:
        """(with the preferred answer, with the rejected one)."""
        return cls((dataset.tokens(part), dataset.rejected(part)))

    def __len__(self) -> int:
        return len(self.sources[0])

    def __getitem__(self, i: int) -> tuple[Conversation, ...]:
        return tuple(source[i] for source in self.sources)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row in a pack: its prompt once, and each answer without what follows its last trained token."""
        spans = [source.trained_spans() for source in self.sources]
        return [row[0][0] - 1 + sum(end - begin for begin, end in row) for row in zip(*spans, strict=True)]

    def trained_lengths(self) -> list[int]:
        """Trained tokens of all answers of each row."""
        return [sum(row) for row in zip(*(source.trained_lengths() for source in self.sources), strict=True)]


@dataclass(frozen=True)
class Labelled(Answers):
    """Labelled answers: `labelled[i]` is one conversation; `others[i]` a row with another prompt, drawn once with the seed."""

    desirable: Sequence[bool]
    seed: int

    @classmethod
    def of(cls, dataset: Dataset, part: str, seed: int) -> Labelled:
        return cls((dataset.tokens(part),), [bool(row.desirable) for row in dataset.rows(part)], seed)

    def mismatched(self, i: int) -> Conversation:
        """The prompt of row i with the answer of its partner."""
        (ids, trained), (others, marks) = self[i][0], self[self.others[i]][0]
        begin, after = trained.index(True), marks.index(True)
        return ids[:begin] + others[after:], [False] * begin + marks[after:]

    @cached_property
    def others(self) -> list[int]:
        """Raises DataError when all rows have one prompt."""
        rows = (self[i][0] for i in range(len(self)))
        prompts = [hashlib.sha256(repr(ids[: trained.index(True)]).encode()).digest() for ids, trained in rows]
        if len(set(prompts)) < 2:
            raise DataError("all rows have the same prompt", why="objective kto compares answers with those to other prompts",
                            fix="give rows with several prompts, or pairs of answers for objective.type: dpo")
        order = list(range(len(self)))
        random.Random(f"{self.seed}/others").shuffle(order)
        found = [0] * len(order)
        for place, i in enumerate(order):
            after = (order[(place + step) % len(order)] for step in range(1, len(order)))
            found[i] = next(j for j in after if prompts[j] != prompts[i])
        return found
