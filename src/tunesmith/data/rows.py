"""What flows through the data room."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation. Assistant messages may carry `weight` 0: shown, not trained."""

    messages: list[Message]
    where: str
    """`file:line`, or `file: passage N` for text."""
    tools: list[dict] | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    """What else the record says of itself (source, author, time, language, licence, label, ...): never rendered."""

    @property
    def prompt(self) -> str:
        """What the user asked last."""
        return next((m["content"] for m in reversed(self.messages) if m["role"] == "user"), "")

    @property
    def answer(self) -> str:
        """The last answer: the reference when the row is a test row."""
        return next((m["content"] for m in reversed(self.messages) if m["role"] == "assistant"), "")

    @property
    def question(self) -> list[Message]:
        """Everything before the last answer."""
        last = max(i for i, m in enumerate(self.messages) if m["role"] == "assistant")
        return self.messages[:last]

    def as_record(self) -> dict:
        record: dict = {"where": self.where, "messages": self.messages}
        return record | ({"tools": self.tools} if self.tools else {}) | ({"meta": self.meta} if self.meta else {})
