"""Where a fault stands and what it looks like, with personal data and secrets masked.

A report is read by more people than the data, and ends in manifests and tickets. So every excerpt is masked, also
that of a harmless fault which happens to stand beside a telephone number.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from tunesmith.data.finding import EXAMPLES, Finding
from tunesmith.data.quality import credentials, personal
from tunesmith.data.rows import Row

SHOWN = 40
"""Characters of the offending piece that an example shows."""
KEPT = 2
"""Characters of a masked piece that stay readable, so that its owner can find it."""


class Tally:
    """How many rows have a fault, and where the first few of them stand."""

    __slots__ = ("count", "examples")

    def __init__(self) -> None:
        self.count = 0
        self.examples: list[str] = []

    def add(self, example: Callable[[], str]) -> None:
        """`example` is only asked for the first few: masking is dear and a million rows may have the fault."""
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(example())

    def finding(self, code: str, severity: str, message: str, fix: str) -> list[Finding]:
        """One finding, or none when nothing was counted."""
        return [finding(code, severity, self.count, message, fix, self.examples)] if self.count else []


def finding(code: str, severity: str, count: int, message: str, fix: str, examples: list[str] | None = None) -> Finding:
    return Finding(code, severity, count, message, fix, list(examples or []))


def texts(row: Row) -> Iterator[tuple[str, str, str]]:
    """`(role, place, text)` of each turn, and of the arguments of its tool calls."""
    for i, message in enumerate(row.messages):
        if message["content"]:
            yield message["role"], f"messages[{i}]", message["content"]
        if message.get("tool_calls"):
            calls = [call["function"].get("arguments") for call in message["tool_calls"]]
            yield "call", f"messages[{i}].tool_calls", json.dumps(calls, ensure_ascii=False)


def last_answer(row: Row) -> str:
    """Place of the last answer, as `texts` names it."""
    return f"messages[{max(i for i, m in enumerate(row.messages) if m['role'] == 'assistant')}]"


def point(row: Row, place: str, text: str, start: int, end: int) -> str:
    """`file:line: messages[1] at 37: 'the piece'`; offsets count characters of that turn."""
    return f"{row.where}: {place} at {start}: {excerpt(text, start, end)!r}"


def excerpt(text: str, start: int, end: int) -> str:
    """`text[start:end]`, shortened, with everything sensitive in it masked."""
    stop = min(end, start + SHOWN)
    return mask(text)[start:stop] + ("..." if end > stop else "")


def mask(text: str) -> str:
    """The text with everything sensitive in it masked, character by character: every offset stays what it was.

    Every long number is masked too: it may be a telephone of another country, or a card with a slip in it.
    """
    masked = list(text)
    pieces = [(p.start, p.end) for p in (*personal.find(text), *credentials.find(text))]
    for first, last in (*pieces, *personal.long_numbers(text)):
        masked[first + KEPT : last] = "*" * (last - first - KEPT)
    return "".join(masked)
