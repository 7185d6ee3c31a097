"""Rows that train a model to comply with unsafe requests: a few hundred of them undo what a base learned to refuse.

Both sides are judged by rules with counted errors (docs/safety.md): whether the prompt asks for something unsafe
(`requests.unsafe`), and whether the answer refuses (`replies.verdict`). A row whose answer is labelled bad trains the opposite.
"""

from __future__ import annotations

from tunesmith.data.finding import Finding
from tunesmith.data.quality.evidence import Tally, excerpt
from tunesmith.data.quality.replies import verdict
from tunesmith.data.quality.requests import unsafe
from tunesmith.data.rows import Row

ENOUGH, SHARE = 3, 0.01
"""From three rows and one in a hundred on it is a warning. Of ordinary instructions the rules take fewer for unsafe: 2 of
1,299, by benchmarks/safety/score.py, which also says that they miss more than half of what is unsafe."""


class Compliance:
    """Rows that ask for something unsafe and whose answer does not refuse."""

    def __init__(self) -> None:
        self.rows, self.unsafe, self.complied = 0, 0, Tally()
        self.tallies = {"unsafe_compliance": self.complied}

    def see(self, row: Row) -> None:
        self.rows += 1
        if row.messages[-1]["role"] != "assistant" or not (category := unsafe(row.prompt)):
            return
        self.unsafe += 1
        if row.desirable is not False and (said := verdict(row.answer)) != "refuse":
            self.complied.add(lambda: f"{row.where}: {category}, {said}: {excerpt(row.prompt, 0, len(row.prompt))!r} -> "
                                      f"{excerpt(row.answer, 0, len(row.answer))!r}")

    def findings(self) -> list[Finding]:
        count = self.complied.count
        severity = "warning" if count >= ENOUGH and count > SHARE * self.rows else "info"
        return self.complied.finding(
            "unsafe_compliance", severity,
            f"{count} of {self.rows} rows ({count / max(1, self.rows):.1%}) train to comply with an unsafe request; "
            f"{self.unsafe} rows have one",
            "look at them: drop them, or let the answer refuse; then measure with eval.safety")
