"""A classifier must not tell an author from himself, and must tell another text.

pytest tests/evals/style/test_twosample.py
"""

import random

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from tunesmith.evals.style.measure import pairs_of
from tunesmith.evals.style.text import words_of
from tunesmith.evals.style.twosample import FEWEST, STRENGTH, _coordinates, told_apart


def test_another_hand_is_told(austen, melville):
    found = told_apart(*pairs_of(melville[:16], austen[:16]), permutations=99)
    assert found["accuracy"] > 0.9 and found["p_value"] == 0.01 and found["ci95"][0] > 0.5


def test_an_author_is_not_told_from_himself(austen):
    """Halves of one text, drawn by lot: right half of the time, and "significant" at 10% in about a tenth of the draws."""
    p_values, shares = [], []
    for draw in range(20):
        mixed = random.Random(draw).sample(austen, len(austen))
        found = told_apart(*pairs_of(mixed[:16], mixed[16:32]), seed=draw, permutations=19)
        p_values.append(found["p_value"])
        shares.append(found["accuracy"])
    assert 0.4 < np.mean(shares) < 0.6
    assert sum(p <= 0.1 for p in p_values) <= 6, "binomial(20, 0.1) is above that once in 400 times"


def test_length_alone_tells_nothing(austen):
    """Texts of one hand, one side three times as long before they are cut."""
    short = [" ".join(t.split()[:40]) for t in austen[:16]]
    ones, others = pairs_of(short, austen[16:32])
    assert all(abs(len(words_of(a)) - len(words_of(b))) <= 25 for a, b in zip(ones, others, strict=True))
    assert told_apart(ones, others, permutations=39)["p_value"] > 0.05


def test_fewer_coordinates_change_nothing(austen, melville):
    """The regression on turned coordinates says what the one on all n-grams says."""
    texts, side = [*austen[:10], *melville[:10]], np.repeat([0, 1], 10)
    vectors = TfidfVectorizer(analyzer="char", ngram_range=(2, 4), lowercase=False, sublinear_tf=True, min_df=2)
    full = vectors.fit_transform(texts)
    fits = [LogisticRegression(C=STRENGTH, max_iter=5000, tol=1e-8).fit(x[::2], side[::2]).decision_function(x[1::2])
            for x in (full.toarray(), _coordinates(texts))]
    assert fits[0] == pytest.approx(fits[1], abs=1e-3)


def test_too_few_pairs_are_not_measured(austen):
    assert told_apart(austen[: FEWEST - 1], austen[: FEWEST - 1]) is None
    with pytest.raises(ValueError, match="pair"):
        told_apart(austen[:9], austen[:8])


def test_the_same_texts_on_both_sides_are_at_chance_or_below(austen):
    assert told_apart(austen[:12], austen[:12], permutations=19)["accuracy"] <= 0.5
