"""BLEU and chrF of a whole corpus, as counts that are summed over answers. sacrebleu counts, and defines the scores.

Shapes: R = corpora (resamples of the answers), S = counts of one answer.
Post (2018), "A call for clarity in reporting BLEU scores": the signatures are `nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp`
and `nrefs:var|case:mixed|eff:yes|nc:6|nw:0|space:no`, sacrebleu's defaults.
"""

from __future__ import annotations

from functools import cache

import numpy as np

BLEU_ORDER, CHRF_ORDER, BETA = 4, 6, 2
NO_MATCH = -9999999999.0
"""sacrebleu's logarithm of nothing."""


@cache
def _counter(name: str):
    from sacrebleu.metrics import BLEU, CHRF

    return {"bleu": BLEU, "chrf": CHRF}[name]()


def counts(name: str, answer: str, references: tuple[str, ...]) -> list[float]:
    """What sacrebleu keeps of one answer. bleu: words of answer and of closest reference, then matches and totals of n-grams of
    1 to 4 words. chrf: n-grams of answer, of reference and common ones, of 1 to 6 characters, for its best reference."""
    statistics, = _counter(name)._extract_corpus_statistics([answer], [[r] for r in references])
    return [float(x) for x in statistics]


def bleu(sums_RS: np.ndarray) -> np.ndarray:
    """Corpus BLEU in 0..100 (Papineni et al. 2002), exponential smoothing of orders without a match."""
    answer_R, reference_R = sums_RS[:, 0], sums_RS[:, 1]
    hits_RO, totals_RO = sums_RS[:, 2 : 2 + BLEU_ORDER], sums_RS[:, 2 + BLEU_ORDER :]
    smooth_RO = np.cumprod(np.where((hits_RO == 0) & (totals_RO > 0), 2.0, 1.0), axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision_RO = np.where(hits_RO > 0, hits_RO, 1 / smooth_RO) / totals_RO
        log_RO = np.where(np.cumprod(totals_RO > 0, axis=1), np.log(100 * precision_RO), NO_MATCH)
        short_R = np.where(answer_R < reference_R, np.exp(1 - reference_R / answer_R), 1.0)
    return np.where(hits_RO.any(1), np.where(answer_R > 0, short_R, 0.0) * np.exp(log_RO.mean(1)), 0.0)


def chrf(sums_RS: np.ndarray) -> np.ndarray:
    """Corpus chrF2 in 0..100 (Popović 2015): F-score of character n-grams, recall weighing twice, of orders that both have."""
    answer_RO, reference_RO, common_RO = (sums_RS[:, i::3] for i in range(3))
    both_RO = (answer_RO > 0) & (reference_RO > 0)
    orders_R = both_RO.sum(1).clip(min=1)
    precision_R = np.where(both_RO, common_RO / answer_RO.clip(min=1), 0.0).sum(1) / orders_R
    recall_R = np.where(both_RO, common_RO / reference_RO.clip(min=1), 0.0).sum(1) / orders_R
    weighed_R = BETA**2 * precision_R + recall_R
    return np.where(weighed_R > 0, 100 * (1 + BETA**2) * precision_R * recall_R / np.where(weighed_R > 0, weighed_R, 1.0), 0.0)
