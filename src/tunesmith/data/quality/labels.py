"""Answers that are labels: few different ones, all short. How they are shared out decides what accuracy means."""

from __future__ import annotations

from collections import Counter

from tunesmith.data.finding import Finding
from tunesmith.data.quality.evidence import excerpt, finding
from tunesmith.data.rows import Row

LONGEST = 60
"""Characters of a label."""
KEPT = 200
"""Different answers that are counted; free text passes this number at once, and memory stays small."""
MOST_LABELS, ROWS_PER_LABEL, COVERED = 30, 5, 0.95
"""A closed set: at most so many labels, so many rows each on average, so large a share of all rows."""
ENOUGH = 20
LARGEST = 0.7
"""A model that always gives the largest label is right this often: an accuracy below it is worth nothing."""
SMALLEST = 0.02
SHOWN = 8


class Labels:
    """Counts of short answers."""

    def __init__(self) -> None:
        self.rows = 0
        self.counts: Counter[str] = Counter()

    def see(self, row: Row) -> None:
        self.rows += 1
        answer = row.answer.strip()
        if 0 < len(answer) <= LONGEST and (answer in self.counts or len(self.counts) < KEPT):
            self.counts[answer] += 1

    def shares(self) -> dict[str, float]:
        """Share of each label, the largest first; empty when the answers are free text."""
        frequent = Counter({label: n for label, n in self.counts.items() if n > 1})
        closed = (self.rows >= ENOUGH and 0 < len(frequent) <= MOST_LABELS and frequent.total() >= COVERED * self.rows
                  and self.rows >= ROWS_PER_LABEL * len(frequent))
        return {label: n / self.rows for label, n in frequent.most_common()} if closed else {}

    def findings(self) -> list[Finding]:
        shares = self.shares()
        if not shares:
            return []
        table = ", ".join(f"{_shown(label)!r} {share:.1%}" for label, share in list(shares.items())[:SHOWN])
        table += f" and {len(shares) - SHOWN} more" if len(shares) > SHOWN else ""
        label, largest = next(iter(shares.items()))
        rare = sum(share < SMALLEST for share in shares.values())
        if largest <= LARGEST:
            return [finding("labels", "info", len(shares), f"the answers are {len(shares)} labels: {table}"
                            + (f"; {rare} of them below {SMALLEST:.0%}" if rare else ""),
                            "report each label for itself when their shares differ")]
        return [finding("label_imbalance", "warning", len(shares),
                        f"{largest:.1%} of the answers are {_shown(label)!r}: {table}",
                        f"add rows of the other labels; always saying {_shown(label)!r} is right in {largest:.1%}, "
                        "so compare with that")]


def _shown(label: str) -> str:
    return excerpt(label, 0, len(label))
