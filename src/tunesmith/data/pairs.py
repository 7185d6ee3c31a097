"""Rows with more than one answer, or with labels, as training takes them: what each says, and how many tokens it takes.

The prompt is counted once, whatever number of answers it has (`objectives.families`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from tunesmith.data.dataset import Dataset, Tokens

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
        return [sum(row) for row in zip(*self._trained, strict=True)]

    @cached_property
    def _trained(self) -> list[list[int]]:
        return [source.trained_lengths() for source in self.sources]
