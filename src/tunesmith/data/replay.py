"""Rows of another source among the training rows, so that what the base could do is not forgotten while it learns.

    train rows [------------------]     replay rows drawn, share of the whole [--]     never in a test set

They pass everything that training rows pass: reading, repair, filters, duplicates (also against the training rows), audit,
leaks. Which are drawn depends on their content and the seed; a larger share keeps all that a smaller one had.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

from tunesmith.data.audit import identity
from tunesmith.data.finding import EXAMPLES, Finding
from tunesmith.data.mix import rank
from tunesmith.data.rows import Row
from tunesmith.recipe.schema import Replay


class Joined(Sequence[Row]):
    """Sequences of rows, one after the other."""

    def __init__(self, *parts: Sequence[Row]):
        self.parts = parts
        self.ends = [sum(map(len, parts[: i + 1])) for i in range(len(parts))]

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, at):
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        i = range(len(self))[at]
        part = bisect_right(self.ends, i)
        return self.parts[part][i - (self.ends[part - 1] if part else 0)]

    def __iter__(self) -> Iterator[Row]:
        for part in self.parts:
            yield from part


def draw(train: Sequence[Row], pool: Sequence[Row], config: Replay, seed: int) -> tuple[list[int], Finding]:
    """Numbers of the rows of `pool` to train on besides `train`, in order, and what is told of them.

    Rows that equal a training row or an earlier one of the pool are not drawn.
    """
    seen = {identity(row)[0] for row in train}
    fresh = []
    for i, row in enumerate(pool):
        whole = identity(row)[0]
        if whole not in seen:
            seen.add(whole)
            fresh.append((rank(row, seed), i))
    wanted = round(config.share / (1 - config.share) * len(train))
    numbers = sorted(i for _, i in sorted(fresh)[:wanted])
    share = len(numbers) / max(1, len(numbers) + len(train))
    what = f"{len(numbers):,} of {len(numbers) + len(train):,} training rows ({share:.1%}) are replayed from another source"
    examples = [pool[i].where for i in numbers[:EXAMPLES]]
    if len(numbers) < wanted:
        what += f"; data.replay.share is {config.share:.1%}, and there are no more than {len(fresh):,} different rows"
        return numbers, Finding("replay", "warning", len(numbers), what, "give more rows, or lower data.replay.share", examples)
    return numbers, Finding("replay", "info", len(numbers), what, "compare forgetting with and without it on a test set of "
                            "the general kind", examples)
