"""How sure the numbers are. Which interval is made when, and why: docs/adr/0013.

    share of zeros and ones             Wilson's score interval
    paired change of zeros and ones     Bonett & Price's, which is Wald's with one item added in each direction
    any other function of sums          symmetric bootstrap-t, item by item
    too few items that differ for it    Wald's with items added at both ends of what the metric can be

No interval of a bounded metric has zero width. `tests/evals/test_coverage.py` holds the truth of each to 93 to 97 of 100.

Shapes: N = items, R = resamples, S = numbers of one item (`Metric.parts`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

RESAMPLES = 10_000
BLOCK = 1000
"""Resamples in memory at a time."""
Z95 = 1.959963984540054
STEP = 1e-4
"""Of the mean part: how far a sum is moved to see how the metric follows."""
SMALL = 1e-7
"""A spread below this share of the metric's own size is rounding."""
ALIKE = 1e-3
"""A resample whose spread is below this share of that of all items has no spread: slopes are found by small steps, and of a
difference of shares they leave a little of it where all items are alike."""
MOST_EQUAL = 0.01
"""Share of resamples in which all items may be alike before the bootstrap knows too little of the tails."""
EVERY_SWAP = 12
"""So many items are swapped in each of the 2^N ways; of more items, `RESAMPLES` ways are drawn."""

Value = Callable[[np.ndarray], np.ndarray]
"""A metric of summed parts, [R, S] -> [R]."""
Bounds = tuple[float | None, float | None]


@dataclass(frozen=True, slots=True)
class Paired:
    """What two systems' answers to the same items say of their difference, tuned minus base."""

    low: float
    high: float
    """The 95% interval."""
    p_value: float
    """Two-sided, of no difference: McNemar's exact test for zeros and ones, else the test that swaps the systems."""
    sd: float
    """Standard deviation of one item's difference, in the metric's unit, items that were added included: with it follows how
    many items show how much (`tunesmith.evals.power`)."""


def paired(value: Value, base_NS: np.ndarray, tuned_NS: np.ndarray, *, mean: bool, span: float | None = None,
           seed: int = 0) -> Paired:
    """Interval and test of `value(sum of tuned) - value(sum of base)` over the same items.

    `mean`: the metric of a set is the mean of its items' metric. `span`: how far a metric can move (1 for shares), None when
    nothing bounds it. Raises ValueError without items.
    """
    base_NS, tuned_NS = np.asarray(base_NS, dtype=float), np.asarray(tuned_NS, dtype=float)
    both_NS, parts = np.hstack([base_NS, tuned_NS]), base_NS.shape[1]

    def change(sums_RS: np.ndarray) -> np.ndarray:
        return value(sums_RS[:, parts:]) - value(sums_RS[:, :parts])

    d_N, _ = items_of(change, both_NS)
    shares = mean and bool(np.isin(both_NS[:, [0, parts]], (0.0, 1.0)).all())
    found = None if shares else studentised(change, both_NS, seed)
    if found is None:
        reach = span if span is not None else float(np.abs(d_N).max())
        d_N = np.concatenate([d_N, [-reach, reach]])
        found = _wald(d_N)
    low, high = _within(found, (None, None) if span is None else (-span, span))
    if shares:
        rose_N = tuned_NS[:, 0] - base_NS[:, 0]
        p_value = mcnemar(int((rose_N > 0).sum()), int((rose_N < 0).sum()))
    else:
        p_value = swapped(value, base_NS, tuned_NS, seed)
    return Paired(low, high, p_value, float(d_N.std()))


def interval(value: Value, parts_NS: np.ndarray, *, mean: bool, bounds: Bounds = (None, None),
             seed: int = 0) -> tuple[float, float]:
    """95% interval of `value(sum of parts)`. `bounds`: the least and the most that a metric can be, where it has them.

    Raises ValueError without items.
    """
    parts_NS = np.asarray(parts_NS, dtype=float)
    if mean and len(parts_NS) and np.isin(parts_NS[:, 0], (0.0, 1.0)).all() and (parts_NS[:, 1] == 1).all():
        return wilson(int(parts_NS[:, 0].sum()), len(parts_NS))
    d_N, middle = items_of(value, parts_NS)
    found = studentised(value, parts_NS, seed)
    if found is None:
        low, high = ((0.0, 2 * middle)[far] if b is None else b for far, b in enumerate(bounds))
        found = _wald(np.concatenate([d_N, [low, low, high, high]]))
    return _within(found, bounds)


def mean_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95% interval of a mean: Wilson's for zeros and ones, bootstrap-t otherwise."""
    array = np.asarray(values, dtype=float)
    bounds = (0.0, 1.0) if ((array >= 0) & (array <= 1)).all() else (None, None)
    return interval(lambda s_RS: s_RS[:, 0] / s_RS[:, 1], np.stack([array, np.ones_like(array)], 1), mean=True,
                    bounds=bounds, seed=seed)


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95% score interval of a share (Wilson 1927)."""
    if n == 0:
        raise ValueError("no items")
    share, z2 = hits / n, Z95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def studentised(value: Value, parts_NS: np.ndarray, seed: int = 0) -> tuple[float, float] | None:
    """95% symmetric bootstrap-t interval of a function of sums (Hall 1988, "On symmetric bootstrap confidence intervals"); None
    where it knows too little.

    In each resample the error is divided by its own standard error, from the delta method: items' influences, which are the
    function's slopes times their parts. As many standard errors as 95 of 100 resamples stay within are taken to both sides:
    more than 1.96 for few items, and for skewed ones.
    """
    n = len(parts_NS)
    if n < 2:
        return None
    (estimate,), (se,), size = _with_errors(value, parts_NS, np.ones((1, n)))
    tiny = SMALL * size
    if not math.isfinite(estimate) or not se > tiny:
        return None
    t_R, alike = [], 0
    for w_RN in _resamples(n, RESAMPLES, seed):
        estimate_R, se_R, _ = _with_errors(value, parts_NS, w_RN)
        equal_R = ~(se_R > max(tiny, ALIKE * float(se)))
        alike += int(equal_R.sum())
        t_R.append((estimate_R[~equal_R] - estimate) / se_R[~equal_R])
    if alike > MOST_EQUAL * RESAMPLES:
        return None
    half = float(np.percentile(np.abs(np.concatenate(t_R)), 95)) * float(se)
    return float(estimate) - half, float(estimate) + half


def items_of(value: Value, parts_NS: np.ndarray) -> tuple[np.ndarray, float]:
    """(each item's share in a function of sums, the function): of a mean, the items themselves.

    Their mean is the function, and their spread over the root of N its standard error, to first order.
    """
    n = len(parts_NS)
    if n == 0:
        raise ValueError("no items")
    total_1S = parts_NS.sum(0, keepdims=True)
    middle = float(value(total_1S)[0])
    pull_N = parts_NS @ _slopes(value, total_1S, parts_NS)[0]
    return middle + n * pull_N - pull_N.sum(), middle


def paired_bootstrap(statistic: Callable[[np.ndarray], np.ndarray], n: int, seed: int = 0) -> tuple[float, float]:
    """95% percentile interval of any statistic of n items (Efron & Tibshirani 1993, ch. 13). A little narrow below some
    fifty items, and of no width when they are all alike: for functions of sums, take `paired` or `interval`.

    `statistic` takes weights of shape [R, n] (how often each item is in each of R resamples) and returns R values.
    """
    if n == 0:
        raise ValueError("no items to resample")
    found = np.concatenate([statistic(w_RN) for w_RN in _resamples(n, RESAMPLES, seed)])
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


# ---- tests -----------------------------------------------------------------------------------------------------------


def mcnemar(fixed: int, broken: int, *, mid: bool = False) -> float:
    """Two-sided p of McNemar's exact test: of the items that changed, did as many change for the better as for the worse?

    `mid`: half of the probability of what was seen counts (Fagerland, Lydersen & Laake 2013): less careful and more powerful.
    """
    changed = fixed + broken
    if changed == 0:
        return 1.0
    ways = [math.comb(changed, k) for k in range(min(fixed, broken) + 1)]
    both_tails = 2 * sum(ways) - (ways[-1] if mid else 0)
    return min(1.0, both_tails / 2**changed)


def swapped(value: Value, base_NS: np.ndarray, tuned_NS: np.ndarray, seed: int = 0) -> float:
    """Two-sided p of no difference: how often is it as large when each item's two answers are swapped at random (Fisher
    1935; for any metric of a set, Yeh 2000)? For a mean of zeros and ones it is McNemar's exact test."""
    n = len(base_NS)
    more_NS, total_S = tuned_NS - base_NS, base_NS.sum(0)
    moved = np.abs(more_NS).max(1) > 0
    more_NS, n = more_NS[moved], int(moved.sum())
    if n == 0:
        return 1.0

    def change(swaps_RN: np.ndarray) -> np.ndarray:
        """`swaps` 1: the item's answers are where they were; 0: they are swapped."""
        to_RS = swaps_RN @ more_NS
        return value(total_S + to_RS) - value(total_S + more_NS.sum(0) - to_RS)

    (seen,) = np.abs(change(np.ones((1, n))))
    enough = seen * (1 - 1e-9)
    if n <= EVERY_SWAP:
        ways_RN = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return float((np.abs(change(ways_RN.astype(float))) >= enough).mean())
    random, least = np.random.default_rng(seed), 1
    for _ in range(RESAMPLES // BLOCK):
        least += int((np.abs(change(random.integers(0, 2, (BLOCK, n)).astype(float))) >= enough).sum())
    return least / (RESAMPLES // BLOCK * BLOCK + 1)


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Each claim's p among several (Holm 1979): the chance that any claim with adjusted p <= a is wrong is at most a,
    however the claims hang together."""
    adjusted, least = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda claim: claim[1])):
        least = max(least, min(1.0, (len(p_values) - rank) * p))
        adjusted[name] = least
    return {name: adjusted[name] for name in p_values}


# ---- how they are made -------------------------------------------------------------------------------------------


def _resamples(n: int, count: int, seed: int) -> Iterator[np.ndarray]:
    """How often each item is in each resample: blocks of [BLOCK, N]. The same for the same n and seed, and small ones kept:
    a report has many metrics of the same items."""
    if n * count <= 4_000_000:
        yield from _kept(n, count, seed)
    else:
        yield from _drawn(n, count, seed)


@lru_cache(maxsize=2)
def _kept(n: int, count: int, seed: int) -> list[np.ndarray]:
    return list(_drawn(n, count, seed))


def _drawn(n: int, count: int, seed: int) -> Iterator[np.ndarray]:
    random, even = np.random.default_rng(seed), np.full(n, 1 / n)
    for begin in range(0, count, BLOCK):
        yield random.multinomial(n, even, size=min(BLOCK, count - begin)).astype(float)


def _moving(parts_NS: np.ndarray) -> np.ndarray:
    """Which of the S numbers any item has: the bins of a histogram that nothing fell into need no slope."""
    return np.abs(parts_NS).max(0) > 0


def _slopes(value: Value, sums_RS: np.ndarray, parts_NS: np.ndarray) -> np.ndarray:
    """[R, S]: how the function follows each sum, by moving it a ten-thousandth of an item up (counts stay positive)."""
    here_R = value(sums_RS)
    slopes_RS = np.zeros_like(sums_RS)
    for s in np.flatnonzero(_moving(parts_NS)):
        step = STEP * float(np.abs(parts_NS[:, s]).mean())
        moved_RS = sums_RS.copy()
        moved_RS[:, s] += step
        slopes_RS[:, s] = (value(moved_RS) - here_R) / step
    return slopes_RS


def _with_errors(value: Value, parts_NS: np.ndarray, w_RN: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """(the function of each resample, its standard error by the delta method, the size of what was added up)."""
    n, used = len(parts_NS), _moving(parts_NS)
    sums_RS, used_NS = w_RN @ parts_NS, parts_NS[:, used]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        slopes_RS = _slopes(value, sums_RS, parts_NS)[:, used]
        pull_RN = slopes_RS @ used_NS.T
        middle_R1 = (w_RN * pull_RN).sum(1, keepdims=True) / n
        variance_R = n / (n - 1) * (w_RN * (pull_RN - middle_R1) ** 2).sum(1)
        size = float((np.abs(slopes_RS[0]) * np.abs(used_NS).mean(0)).sum())
        return value(sums_RS), np.sqrt(variance_R), size * math.sqrt(n)


def _wald(d_N: np.ndarray) -> tuple[float, float]:
    """95% interval of a mean by the normal curve, for items of which some were added where nobody was seen.

    Differences of zeros and ones with -1 and 1 added give the interval of Bonett & Price (2012) for paired shares; a share
    with two zeros and two ones added, that of Agresti & Coull (1998).
    """
    half = Z95 * float(d_N.std()) / math.sqrt(len(d_N))
    middle = float(d_N.mean())
    return middle - half, middle + half


def _within(found: tuple[float, float], bounds: Bounds) -> tuple[float, float]:
    low, high = (float(end) for end in found)
    return low if bounds[0] is None else max(low, bounds[0]), high if bounds[1] is None else min(high, bounds[1])
