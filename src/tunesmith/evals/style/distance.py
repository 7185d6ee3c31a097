"""How far two texts are from each other, and how sure that is.

    delta     Burrows' Delta: mean over frequent words of |f_a - f_b| / sd       0 and up
    lengths   Jensen-Shannon distance of the distributions of sentence lengths   0 to 1
    marks     Jensen-Shannon distance of the distributions of punctuation        0 to 1

`sd` is how much the author's own use of the word varies between training passages, so Delta is in units of his own variation
(Burrows takes the spread over several authors; here there is one). Jensen-Shannon: Lin, IEEE Trans. Inf. Theory 37 (1991);
its root is a metric: Endres and Schindelin, IEEE Trans. Inf. Theory 49 (2003). In bits.

A distance of two samples is never zero and falls with their size, also when one hand wrote both. So a distance means something
only beside that of the author against himself, in samples of the same size. And a resample adds noise of its own:
the bootstrap's distances lie above the measured one. Intervals are therefore the bootstrap's spread around its own mean,
laid around the measured value, and widened for few passages by t_(n-1) / z and sqrt(n / (n - 1)) (Hesterberg, "What Teachers
Should Know About the Bootstrap", The American Statistician 69, 2015).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tunesmith.evals.statistics import Z95
from tunesmith.evals.style.profile import FREQUENT, LENGTHS, PUNCTUATION, column, ratio

RESAMPLES = 2_000
DRAWS = 500
"""Samples of the author's training passages, for the author against himself."""
FEWEST_WORDS = 10
"""Frequent words below which Delta says nothing."""


@dataclass(frozen=True, slots=True)
class Distance:
    """`between` takes sums [R, C] of two texts and the words' spread [W], and returns [R]."""

    label: str
    unit: str
    between: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def delta(a_RC: np.ndarray, b_RC: np.ndarray, spread_W: np.ndarray) -> np.ndarray:
    """Burrows' Delta. Words whose use does not vary are left out; NaN below FEWEST_WORDS of them."""
    varies = spread_W > 0
    if varies.sum() < FEWEST_WORDS:
        return np.full(len(a_RC), np.nan)
    a_RW, b_RW = (ratio(s[:, FREQUENT][:, varies], column(s, "words")[:, None]) for s in (a_RC, b_RC))
    return np.mean(np.abs(a_RW - b_RW) / spread_W[varies], axis=1)


def jensen_shannon(p_RK: np.ndarray, q_RK: np.ndarray) -> np.ndarray:
    """Distance in bits of two distributions given as counts; NaN where one has none."""
    p_RK, q_RK = np.broadcast_arrays(*(ratio(x, x.sum(1, keepdims=True)) for x in (p_RK, q_RK)))
    middle_RK = (p_RK + q_RK) / 2

    def bits(x_RK: np.ndarray) -> np.ndarray:
        share = np.divide(x_RK, middle_RK, out=np.ones_like(x_RK), where=x_RK > 0)
        return (x_RK * np.log2(share)).sum(1)

    return np.sqrt(np.maximum((bits(p_RK) + bits(q_RK)) / 2, 0))


DISTANCES = {
    "delta": Distance("function words", "Burrows' Delta", delta),
    "lengths": Distance("sentence lengths", "Jensen-Shannon distance",
                        lambda a, b, _: jensen_shannon(a[:, LENGTHS], b[:, LENGTHS])),
    "marks": Distance("punctuation", "Jensen-Shannon distance",
                      lambda a, b, _: jensen_shannon(a[:, PUNCTUATION], b[:, PUNCTUATION])),
}


def spread_of(passages_NC: np.ndarray) -> np.ndarray:
    """[W]: standard deviation between passages of the share that each frequent word has of the words."""
    written_NC = passages_NC[column(passages_NC, "words") > 0]
    return (written_NC[:, FREQUENT] / column(written_NC, "words")[:, None]).std(0, ddof=1)


def resamples(n: int, seed: int = 0) -> np.ndarray:
    """[R, n]: how often each of n passages is in each resample."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(float)


def percentiles(values_R: np.ndarray) -> list[float]:
    finite = values_R[np.isfinite(values_R)]
    return [float(x) for x in np.percentile(finite, [2.5, 97.5])] if len(finite) else [float("nan")] * 2


def around(value: float, values_R: np.ndarray, n: int) -> list[float]:
    """95% interval of a value that was resampled from n passages: see the top of this file."""
    from scipy.special import stdtrit

    finite = values_R[np.isfinite(values_R)]
    if not len(finite):
        return [float("nan")] * 2
    wider = stdtrit(n - 1, 0.975) / Z95 * np.sqrt(n / (n - 1))
    low, high = percentiles(wider * (finite - finite.mean()))
    return [float(value - high), float(value - low)]


def samples_of(passages_NC: np.ndarray, words: float, seed: int) -> np.ndarray:
    """[DRAWS, C]: sums of passages drawn without putting back until they have so many words, or all of them."""
    random, drawn = np.random.default_rng(seed), []
    for _ in range(DRAWS):
        order = random.permutation(len(passages_NC))
        enough = np.searchsorted(np.cumsum(column(passages_NC, "words")[order]), words) + 1
        drawn.append(passages_NC[order[:enough]].sum(0))
    return np.array(drawn)


def compare(name: str, held_NC: np.ndarray, systems: dict[str, np.ndarray], train_MC: np.ndarray,
            other_KC: np.ndarray | None = None, seed: int = 0) -> dict:
    """One distance of the report, of each system's passages to the author's held-out ones.

    Passage i of a system answers the request of held-out passage i: all are resampled together. `self` is the author's
    training text against his held-out one, in samples with as many words as the systems wrote: mean, and the middle 95% of
    such samples. `other` is another author's text, in such samples.
    """
    between, spread_W = DISTANCES[name].between, spread_of(train_MC)
    weights_RN = resamples(len(held_NC), seed)
    held_1C, held_RC = held_NC.sum(0, keepdims=True), weights_RN @ held_NC
    found, drawn = {}, {}
    for system, own_NC in systems.items():
        value = float(between(own_NC.sum(0, keepdims=True), held_1C, spread_W)[0])
        drawn[system] = between(weights_RN @ own_NC, held_RC, spread_W)
        low, high = around(value, drawn[system], len(held_NC))
        found[system] = {"value": value, "ci95": [max(0.0, low), high]}
    size = float(np.mean([column(own, "words").sum() for own in systems.values()]))
    result = {"label": DISTANCES[name].label, "unit": DISTANCES[name].unit, "systems": found}
    for reference, passages in (("self", train_MC), ("other", other_KC)):
        if passages is not None:
            values = between(samples_of(passages, size, seed), held_1C, spread_W)
            result[reference] = {"value": float(np.mean(values)), "range95": percentiles(values)}
    if {"zero_shot", "tuned"} <= systems.keys():
        base, tuned = (found[s]["value"] for s in ("zero_shot", "tuned"))
        interval = around(tuned - base, drawn["tuned"] - drawn["zero_shot"], len(held_NC))
        result |= {"delta": tuned - base, "ci95": interval}
        floor = result["self"]["value"]
        result["way"] = _way(base, tuned, floor, drawn, found["zero_shot"]["ci95"][0] > result["self"]["range95"][1])
    return result


def _way(base: float, tuned: float, floor: float, drawn: dict[str, np.ndarray], apart: bool) -> dict | None:
    """Share of the way from the base to the author that tuning went; None where the base is no farther than the author."""
    if not apart:
        return None
    far_R, near_R = (drawn[s] - np.nanmean(drawn[s]) + measured for s, measured in (("zero_shot", base), ("tuned", tuned)))
    share_R = ratio(far_R - near_R, np.maximum(far_R - floor, 1e-12))
    return {"value": (base - tuned) / (base - floor), "ci95": percentiles(share_R)}


def telling(held_NC: np.ndarray, own_NC: np.ndarray, spread_W: np.ndarray, frequent: tuple[str, ...],
            most: int = 6) -> list[dict]:
    """Frequent words used most unlike the author, uses per 1,000 words: `{word, author, own, apart}`, apart in spreads."""
    held, own = (1000 * s[FREQUENT] / max(1.0, s[0]) for s in (held_NC.sum(0), own_NC.sum(0)))
    apart = np.divide(own - held, 1000 * spread_W, out=np.zeros(len(frequent)), where=spread_W > 0)
    order = np.argsort(-np.abs(apart), kind="stable")[:most]
    return [{"word": frequent[i], "author": float(held[i]), "own": float(own[i]), "apart": float(apart[i])} for i in order]
