"""What is asked, and what was said: one shape for test rows, suites of users, regression and safety (ADR 12)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from tunesmith.data.rows import Message, Row

Kind = Literal["test", "suite", "regression", "safety", "style"]
"""Which gate reads a suite: test rows the target gate, and so on."""


@dataclass(frozen=True, slots=True)
class Item:
    """One question, and what it takes to judge an answer."""

    id: str
    """Where it stands: `file:line`, or `suite/name`."""
    messages: list[Message]
    """Up to the answer."""
    references: tuple[str, ...] = ()
    """Answers that are right, the first being the one that readers are shown."""
    choices: tuple[str, ...] = ()
    """Multiple choice: the answers to compare by their likelihood."""
    correct: int | None = None
    """Which of `choices`."""
    check: dict[str, Any] = field(default_factory=dict)
    """What a checker needs: {"regex": ...}, {"json_schema": {...}}, ..."""
    tags: tuple[str, ...] = ()
    """Categories, reported each by itself."""
    source: str = ""
    """Where the question is from, with its licence."""
    tools: list[dict] | None = None
    tokens: tuple[list[int], list[bool]] | None = None
    """Question and reference as a dataset has rendered them: ids, and whether each is of the answer."""
    begun: list[int] | None = None
    """Ids of the question and of the beginning of its answer, to go on from; the reference is the rest."""

    @property
    def prompt(self) -> str:
        """What the user asked last."""
        return next((m["content"] for m in reversed(self.messages) if m["role"] == "user"), "")

    @property
    def reference(self) -> str:
        if self.references:
            return self.references[0]
        return "" if self.correct is None else self.choices[self.correct]


@dataclass(slots=True)
class Outcome:
    """What one system said of one item. Only what the suite's metrics need is there."""

    text: str | None = None
    stopped: bool | None = None
    """Whether the answer ended by its stop token rather than at the limit."""
    nats: float | None = None
    """Negative log-likelihood of the reference, its stop token included."""
    tokens: int = 0
    """Labelled tokens of the reference."""
    choices: tuple[float, ...] = ()
    """Log-likelihood of each choice, in nats."""
    extra: dict[str, float] = field(default_factory=dict)
    """What a metric fetched for this answer before it was asked for parts (`Metric.prepare`), by the metric's name."""


@dataclass(frozen=True, slots=True)
class Suite:
    """Items that are measured by the same metrics."""

    name: str
    kind: Kind
    items: list[Item]
    metrics: tuple[str, ...]
    source: str
    """Files, or what ships with the package, for readers."""
    max_new_tokens: int


def of_rows(rows: Iterable[tuple[Row, tuple[list[int], list[bool]]]], check: dict[str, Any] | None = None) -> list[Item]:
    """Test rows of a dataset with their tokens, as items: the last answer is the reference. `check` holds for all of them."""
    return [Item(id=row.where, messages=row.question, references=(row.answer,), check=check or {}, tools=row.tools,
                 tokens=tokens) for row, tokens in rows]
