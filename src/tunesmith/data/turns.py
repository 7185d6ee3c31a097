"""Long conversations as several rows, parted where a user speaks; nothing is cut.

    row     system  q1 a1  q2 a2  q3 a3  q4 a4                     too long
    pieces  system  q1 a1  q2 a2                                   a1 and a2 are trained
            system         q2 a2  q3 a3                            a2 is context with weight 0, a3 is trained
            system                q3 a3  q4 a4

An exchange is what a user says and all up to the next user turn, so a call and its results are never parted. Each piece keeps
the system message and the tools. Its context is the whole exchanges before it, as many as fit into CONTEXT of the limit and
leave room for the first that is trained; then it takes as many more as fit. Every turn that the row trains is trained in one
piece and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from tunesmith.data.finding import EXAMPLES, Finding
from tunesmith.data.rows import Message, Row

CONTEXT = 0.5
"""Share of the limit, at most, that is context: more would make many pieces that train little each."""


def pieces(row: Row, limit: int, length: Callable[[Row], int]) -> list[Row] | None:
    """Rows of at most `limit` tokens, `where` with #1, #2, ...; None if an exchange is too long even by itself.

    `length` is a row's tokens once rendered. Pieces that would train nothing are left out.
    """
    head, exchanges = _exchanges(row.messages)
    made: list[Row] = []
    at = 0

    def piece(first: int, own: int, end: int) -> Row:
        shown = [_untrained(m) for exchange in exchanges[first:own] for m in exchange]
        said = [m for exchange in exchanges[own:end] for m in exchange]
        return replace(row, messages=[*head, *shown, *said], where=f"{row.where}#{len(made) + 1}")

    def fits(first: int, own: int, end: int) -> bool:
        return length(piece(first, own, end)) <= limit

    while at < len(exchanges):
        if not any(map(_trained, exchanges[at])):
            at += 1
            continue
        if not fits(at, at, at + 1):
            return None
        first, end, alone = at, at + 1, length(piece(at, at, at + 1))
        while first and length(piece(first - 1, at, end)) <= min(limit, alone + CONTEXT * limit):
            first -= 1
        while end < len(exchanges) and fits(first, at, end + 1):
            end += 1
        while not any(map(_trained, exchanges[end - 1])):
            end -= 1
        made.append(piece(first, at, end))
        at = end
    return made


def _exchanges(messages: list[Message]) -> tuple[list[Message], list[list[Message]]]:
    """(system messages that open the row, exchanges): what comes before the first user turn belongs to the first exchange."""
    start = next((i for i, m in enumerate(messages) if m["role"] != "system"), len(messages))
    users = [i for i in range(start, len(messages)) if messages[i]["role"] == "user"]
    borders = [start, *users[1:], len(messages)] if users else [start, len(messages)]
    return messages[:start], [messages[a:b] for a, b in zip(borders, borders[1:], strict=False)]


def _trained(message: Message) -> bool:
    return message["role"] == "assistant" and message.get("weight", 1) != 0


def _untrained(message: Message) -> Message:
    return message | {"weight": 0} if message["role"] == "assistant" else message


@dataclass
class Parted:
    """How many rows were split, for the finding."""

    limit: int
    """`data.max_tokens`."""
    rows: int = 0
    pieces: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, row: Row, made: list[Row]) -> Iterator[Row]:
        self.rows += 1
        self.pieces += len(made)
        if len(self.examples) < EXAMPLES:
            self.examples.append(f"{row.where} -> {made[0].where} to #{len(made)}")
        yield from made

    def findings(self) -> list[Finding]:
        if not self.rows:
            return []
        return [Finding("split_overlong", "info", self.rows,
                        f"{self.rows} conversations are longer than {self.limit} tokens and became {self.pieces} rows, parted "
                        "where a user speaks; each answer is trained in one of them",
                        "raise data.max_tokens to train them whole", self.examples)]
