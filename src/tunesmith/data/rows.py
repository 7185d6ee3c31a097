"""What flows through the data room."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tunesmith.errors import DataError

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation. Assistant messages may carry `weight` 0: shown, not trained."""

    messages: list[Message]
    where: str
    """`file:line`, `file:row N` in Parquet, or `file: passage N` for text."""
    tools: list[dict] | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    """What else the record says of itself (source, author, time, language, licence, label, ...): never rendered."""
    rejected: list[Message] | None = None
    """The dispreferred continuation that replaces the last answer, in preference data."""
    desirable: bool | None = None
    """Whether the answer is one to learn or one to avoid, in KTO data."""

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
        record |= ({"tools": self.tools} if self.tools else {}) | ({"meta": self.meta} if self.meta else {})
        record |= {"rejected": self.rejected} if self.rejected is not None else {}
        return record | ({"desirable": self.desirable} if self.desirable is not None else {})

    @classmethod
    def from_record(cls, record: dict) -> Row:
        """The row that `as_record` wrote."""
        return cls(**record)


def require_sft(rows: Iterable[Row]) -> None:
    """Rows that supervised fine-tuning can learn from: one answer each, and none to be avoided.

    Raises:
        DataError: a row holds a second, dispreferred answer, or a label that says whether its answer is good.
    """
    first = next((r for r in rows if r.rejected is not None or r.desirable is not None), None)
    if first is None:
        return
    pair = first.rejected is not None
    what = "preference rows (a preferred and a rejected answer)" if pair else "KTO rows (an answer and whether it is desirable)"
    kept = "the preferred answers" if pair else "the desirable answers"
    raise DataError(f"{what} cannot be trained with objective sft", where=first.where,
                    why="sft learns every answer it is shown: it cannot learn which of them to avoid",
                    fix=f"convert them to chat, which keeps {kept}: tunesmith data convert IN --to openai OUT.jsonl; or set "
                    "data.format to a chat format if these keys mean something else in your data")
