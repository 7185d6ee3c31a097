"""How sure the numbers are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

RESAMPLES = 10_000
Z95 = 1.959963984540054


def paired_bootstrap(statistic: Callable[[np.ndarray], np.ndarray], n: int, seed: int = 0) -> tuple[float, float]:
    """95% percentile interval of a statistic of n paired items (Efron & Tibshirani 1993, ch. 13).

    `statistic` takes weights of shape [R, n] (how often each item is in each of R resamples) and returns R values.
    Base and tuned are resampled together, item by item, which is what makes the interval of a difference narrow.
    """
    if n == 0:
        raise ValueError("no items to resample")
    weights_RN = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    low, high = np.percentile(statistic(weights_RN), [2.5, 97.5])
    return float(low), float(high)


def mean_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95% interval of a mean: Wilson's for zeros and ones (never of zero width), the bootstrap's otherwise."""
    array = np.asarray(values, dtype=float)
    if np.isin(array, (0.0, 1.0)).all():
        return wilson(int(array.sum()), len(array))
    return paired_bootstrap(lambda w_RN: w_RN @ array / len(array), len(array), seed)


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95% score interval of a share (Wilson 1927)."""
    if n == 0:
        raise ValueError("no items")
    share, z2 = hits / n, Z95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
