"""Rows that are longer than allowed, and what cutting them would cost: the end of an answer, and with it the stop token.

A model trained on answers without their end learns to go on. So no row is ever cut; it is an error, or where the recipe says
so dropped whole or split between turns (tunesmith.data.turns). The cost of a cut is told, with its tasks and sources.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tunesmith.data.finding import EXAMPLES, Finding
from tunesmith.data.rows import Row
from tunesmith.data.split import source
from tunesmith.data.turns import Parted

if TYPE_CHECKING:
    from tunesmith.template.render import Rendered

SHOWN_GROUPS = 5


@dataclass
class Overflow:
    limit: int
    """`data.max_tokens`."""
    rows: int = 0
    tokens: int = 0
    """Tokens beyond the limit, trained or not."""
    answer_tokens: int = 0
    """Trained tokens beyond the limit."""
    stop_tokens: int = 0
    """Trained turns whose last token lies beyond the limit."""
    groups: dict[str, Counter[str]] = field(default_factory=lambda: {"task": Counter(), "source": Counter()})
    examples: list[str] = field(default_factory=list)
    parted: Parted = field(init=False)

    def __post_init__(self) -> None:
        self.parted = Parted(self.limit)

    def add(self, row: Row, rendered: Rendered) -> None:
        self.rows += 1
        self.tokens += len(rendered.ids) - self.limit
        self.answer_tokens += sum(rendered.trained[self.limit :])
        self.stop_tokens += sum(end > self.limit for _begin, end in rendered.turns)
        self.groups["source"][str(row.meta.get("source") or source(row))] += 1
        if row.meta.get("task") is not None:
            self.groups["task"][str(row.meta["task"])] += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(f"{row.where} ({len(rendered.ids)} tokens)")

    @property
    def cost(self) -> str:
        """What a cut would lose, in words."""
        shown = [f"by {kind}: " + ", ".join(f"{name} {n:,}" for name, n in count.most_common(SHOWN_GROUPS))
                 for kind, count in self.groups.items() if count]
        lost = f"{self.answer_tokens:,} answer tokens and {self.stop_tokens:,} stop tokens"
        return f"cut at {self.limit} tokens they would lose {lost} ({'; '.join(shown)})"

    def as_dict(self) -> dict:
        """The cost in numbers, for the data card."""
        return {"limit": self.limit, "rows": self.rows, "tokens": self.tokens, "answer_tokens": self.answer_tokens,
                "stop_tokens": self.stop_tokens, "groups": {k: dict(c.most_common()) for k, c in self.groups.items()}}

    def findings(self) -> list[Finding]:
        if not self.rows:
            return self.parted.findings()
        what = f"{self.rows} rows are longer than {self.limit} tokens and were dropped whole; {self.cost}"
        fix = "raise data.max_tokens, or shorten them"
        return [*self.parted.findings(), Finding("overlong", "warning", self.rows, what, fix, self.examples)]
