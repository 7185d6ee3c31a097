"""Can anything tell an output from the author? A classifier two-sample test.

A classifier is trained on some pairs (a text of each side) and asked about the others. If both sides come from one
distribution it is right half of the time; how far it is above that is how well they can be told apart, in a unit that
everybody reads. Lopez-Paz and Oquab, "Revisiting Classifier Two-Sample Tests", ICLR 2017.

The classifier is a logistic regression on character n-grams of 2 to 4, weighted by tf-idf: simple on purpose, it needs no
model and finds names, spellings, punctuation and endings. Both texts of a pair are always in one fold, have the same length,
and a vector of length 1, so that length says nothing. The p-value is that of permutations: sides are swapped within pairs,
and everything is fitted again (Phipson and Smyth 2010 for the 1 that is added to both counts).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tunesmith.evals.statistics import mean_interval

FOLDS = 5
FEWEST = 8
"""Pairs below which the test is not made."""
PERMUTATIONS = 99
STRENGTH = 10.0
"""C of the logistic regression: weak regularisation, because tf-idf vectors have length 1."""


def told_apart(one: Sequence[str], other: Sequence[str], *, seed: int = 0, permutations: int | None = None) -> dict | None:
    """`{accuracy, ci95, p_value, pairs}`; None below FEWEST pairs.

    accuracy is the share of texts put on the right side by classifiers that did not see them or their partner: 0.5 is chance.
    ci95 resamples pairs. p_value is against "both sides are one".
    """
    permutations = PERMUTATIONS if permutations is None else permutations
    if len(one) != len(other):
        raise ValueError("a pair is a text of each side")
    n = len(one)
    if n < FEWEST:
        return None
    z_2N = _coordinates([*one, *other])
    fold_N = np.random.default_rng(seed).permutation(n) % FOLDS
    straight = np.zeros(n, dtype=bool)
    right_N = _right(z_2N, straight, fold_N)
    random = np.random.default_rng(seed + 1)
    chance = [_right(z_2N, random.random(n) < 0.5, fold_N).mean() for _ in range(permutations)]
    accuracy = float(right_N.mean())
    above = sum(c >= accuracy - 1e-12 for c in chance)
    low, high = mean_interval(right_N)
    return {"accuracy": accuracy, "ci95": [low, high], "p_value": (1 + above) / (1 + permutations), "pairs": n}


def _coordinates(texts: list[str]) -> np.ndarray:
    """[2N, r]: the texts' tf-idf vectors, turned so that few coordinates hold them all.

    A regression with an L2 penalty does not change under a rotation, and so fits 2N numbers instead of tens of thousands.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    x = TfidfVectorizer(analyzer="char", ngram_range=(2, 4), lowercase=False, sublinear_tf=True, min_df=2).fit_transform(texts)
    values, vectors = np.linalg.eigh((x @ x.T).toarray())
    kept = values > 1e-9
    return vectors[:, kept] * np.sqrt(values[kept])


def _right(z_2N: np.ndarray, swapped_N: np.ndarray, fold_N: np.ndarray) -> np.ndarray:
    """[N]: share of the two texts of each pair that were told right. `swapped` pairs have their sides exchanged."""
    from sklearn.linear_model import LogisticRegression

    n = len(swapped_N)
    side_2N = np.concatenate([swapped_N, ~swapped_N])
    fold_2N, right_2N = np.concatenate([fold_N, fold_N]), np.zeros(2 * n)
    for fold in range(FOLDS):
        held = fold_2N == fold
        classifier = LogisticRegression(C=STRENGTH, max_iter=1000, tol=1e-3).fit(z_2N[~held], side_2N[~held])
        right_2N[held] = classifier.predict(z_2N[held]) == side_2N[held]
    return (right_2N[:n] + right_2N[n:]) / 2
