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


KINDS = {"sft": "chat", "distill": "chat", "dpo": "preference", "kto": "kto"}
"""What each objective learns from."""
NAMES = {"chat": "chat rows (one answer each, and no label)",
         "preference": "preference rows (a preferred and a rejected answer)",
         "kto": "KTO rows (an answer and whether it is desirable)"}
_ALL_LEARNED = "it learns every answer it is shown: it cannot learn which of them to avoid"
_TO_CHAT = "convert them to chat, which keeps {}: tunesmith data convert IN --to openai OUT.jsonl; or set objective.type: {};" \
           " or set data.format to a chat format if these keys mean something else in your data"
_MISMATCH = {
    ("chat", "preference"): (_ALL_LEARNED, _TO_CHAT.format("the preferred answers", "dpo")),
    ("chat", "kto"): (_ALL_LEARNED, _TO_CHAT.format("the desirable answers", "kto")),
    ("preference", "chat"): ("it compares two answers to one prompt", "give rows of prompt, chosen and rejected "
                             "(docs/formats.md), or set objective.type: sft"),
    ("preference", "kto"): ("it compares two answers to one prompt", "set objective.type: kto, which learns from labelled "
                            "answers, or give rows of prompt, chosen and rejected"),
    ("kto", "chat"): ("it learns from answers that are labelled good or bad", "give every row a `label`, true or false "
                      "(docs/formats.md), or set objective.type: sft"),
    ("kto", "preference"): ("it learns from answers that are labelled good or bad", "set objective.type: dpo, which learns "
                            "more from pairs; or part each pair into two labelled rows: tunesmith data convert IN --to kto "
                            "OUT.jsonl"),
}


def kind_of_row(row: Row) -> str:
    return "preference" if row.rejected is not None else "kto" if row.desirable is not None else "chat"


def require(rows: Iterable[Row], objective: str) -> None:
    """Rows that an objective can learn from, every one of them.

    Raises:
        DataError: the first that is of another kind, with what to do.
    """
    wanted = KINDS[objective]
    first = next((r for r in rows if kind_of_row(r) != wanted), None)
    if first is None:
        return
    found = kind_of_row(first)
    why, fix = _MISMATCH[wanted, found]
    raise DataError(f"{NAMES[found]} cannot be trained with objective {objective}", where=first.where,
                    why=why.replace("it ", f"{objective} ", 1), fix=fix)


def require_sft(rows: Iterable[Row]) -> None:
    """`require` for supervised fine-tuning."""
    require(rows, "sft")
