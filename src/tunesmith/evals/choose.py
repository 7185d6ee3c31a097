"""Which of several models to take: the smallest that is not worse than the best, by the same test rows.

Every model answered the same rows, so two of them are compared row by row: rows are resampled for both together, which takes
the difficulty of a row out of their difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tunesmith.evals.compare import change_of, value
from tunesmith.evals.metrics import METRICS


@dataclass(frozen=True, slots=True)
class Measured:
    """One model on one test set."""

    size: int
    """Trainable parameters."""
    parts_NS: np.ndarray
    """The metric's numbers of each row (`Metric.parts`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """A model against the best: positive is better, whichever way the metric goes."""

    gain: float
    ci95: tuple[float, float]
    worse: bool
    """The interval leaves out 0: the rows do tell it from the best."""
    passes: bool
    """Not worse, or by less than the margin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    best: int
    recommended: int
    against: list[Against]
    separated: bool
    """Whether the rows tell any of them from the best."""


def choose(metric: str, models: Sequence[Measured], margin: float = 0.0) -> Choice:
    """The best by its mean, and the fewest parameters among those that pass; equal sizes: the better mean, then the first.

    A model passes when the 95% interval of its difference to the best includes 0, or the difference itself is at most
    `margin`, in the metric's own unit.

    Raises:
        ValueError: no models, or not the same number of rows.
    """
    if len({len(m.parts_NS) for m in models}) != 1:
        raise ValueError("the models were not measured on the same rows")
    sign = 1 if METRICS[metric].higher_is_better else -1
    means = [sign * value(METRICS[metric], m.parts_NS) for m in models]
    best = min(range(len(models)), key=lambda i: (-means[i], models[i].size, i))
    against = [_against(metric, m, models[best], means[i] - means[best], sign, margin) for i, m in enumerate(models)]
    passing = [i for i, a in enumerate(against) if a.passes]
    return Choice(best=best, recommended=min(passing, key=lambda i: (models[i].size, -means[i], i)), against=against,
                  separated=any(a.worse for a in against))


def _against(metric: str, m: Measured, best: Measured, gain: float, sign: int, margin: float) -> Against:
    if m is best:
        return Against(gain=0.0, ci95=(0.0, 0.0), worse=False, passes=True)
    change = change_of(METRICS[metric], best.parts_NS, m.parts_NS)
    low, high = sorted((sign * change.low, sign * change.high))
    return Against(gain=gain, ci95=(low, high), worse=high < 0, passes=high >= 0 or -gain <= margin)
