"""Whether a filter takes more from some rows than from others: one label, one source, one language.

    answer          rows   dropped
    "none"            40   30 (75%)       a filter of answers that say nothing, in data where one label is "none"
    all others       960    0

A group is reported when it lost a quarter of its rows and five of them at least, twice the share that the rest lost, and when
chance would hardly do that: under a draw without replacement the number of its rows among those dropped is hypergeometric.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunesmith.data.finding import EXAMPLES, Finding
from tunesmith.data.quality.evidence import excerpt
from tunesmith.data.quality.facts import Facts, Groups

if TYPE_CHECKING:
    import numpy as np

LEAST_ROWS, LEAST_SHARE, TIMES = 5, 0.25, 2.0
CHANCE = 0.01
"""That any group is reported by chance, over all filters and groups that are tested (Bonferroni)."""


@dataclass(frozen=True, slots=True)
class Loss:
    """What one group lost to one filter."""

    group: str
    rows: int
    lost: int
    rest: float
    """Share of all other rows that were lost."""
    p: float
    """Probability that so many or more are lost by chance, times the number of tests."""

    def __str__(self) -> str:
        return (f"{self.group}: {self.lost:,} of {self.rows:,} rows ({self.lost / self.rows:.0%}), "
                f"{self.rest:.1%} of the rest, p {'< 1e-6' if self.p < 1e-6 else f'= {self.p:.1g}'}")


def losses(dropped: dict[str, np.ndarray], facts: Facts, labels: set[str]) -> dict[str, list[Loss]]:
    """Groups that lost out, by filter, the least likely first; filters without any are left out.

    Args:
        dropped: by filter, for each row whether it is dropped.
        labels: answers that are labels; other answers form no groups.
    """
    groupings = {"label": (facts.labels, labels), "source": (facts.sources, None), "language": (facts.languages, None)}
    counted = {kind: _counted(groups, only) for kind, (groups, only) in groupings.items()}
    tests = sum(len(sizes) * sum(not _exempt(name, kind) for name in dropped) for kind, (_, sizes) in counted.items())
    found = {name: sorted((loss for kind, (groups, _) in groupings.items() if not _exempt(name, kind)
                           for loss in _unfair(kind, groups, counted[kind], drop, tests)),
                          key=lambda loss: (loss.p, loss.group)) for name, drop in dropped.items()}
    return {name: one for name, one in found.items() if one}


def bias_findings(found: dict[str, list[Loss]]) -> list[Finding]:
    return [Finding(f"filter_bias:{name}", "warning", len(one),
                    f"the filter {name} takes far more from {len(one)} group{'s' * (len(one) > 1)} than from others: {one[0]}",
                    "look at its rows: mend them instead, or leave the filter out, if the model is to know this group",
                    [str(loss) for loss in one[:EXAMPLES]]) for name, one in found.items()]


def _exempt(name: str, kind: str) -> bool:
    """A filter by language takes from languages: that is what it was chosen for."""
    return name == "languages" and kind == "language"


def _counted(groups: Groups, only: set[str] | None) -> tuple[np.ndarray, dict[str, int]]:
    """Rows of each group by number, and the groups that are tested: neither too small nor all rows."""
    import numpy as np

    sizes = np.bincount(np.frombuffer(groups.of, np.uint16), minlength=len(groups.numbers) + 1)
    return sizes, {name: number for name, number in groups.numbers.items() if LEAST_ROWS <= sizes[number] < len(groups.of)
                   and (only is None or name in only)}


def _unfair(kind: str, groups: Groups, counted: tuple[np.ndarray, dict[str, int]], drop: np.ndarray, tests: int) -> list[Loss]:
    import numpy as np
    from scipy.stats import hypergeom

    sizes, tested = counted
    lost = np.bincount(np.frombuffer(groups.of, np.uint16)[drop], minlength=len(sizes))
    rows, all_lost, found = len(drop), int(drop.sum()), []
    for name, number in tested.items():
        n, k = int(sizes[number]), int(lost[number])
        rest = (all_lost - k) / (rows - n)
        if k < LEAST_ROWS or k < LEAST_SHARE * n or k / n < TIMES * rest:
            continue
        p = min(1.0, tests * float(hypergeom.sf(k - 1, rows, all_lost, n)))
        if p < CHANCE:
            found.append(Loss(f"{kind} {excerpt(name, 0, len(name))!r}", n, k, rest, p))
    return found
