"""Distances against independent formulas, their intervals in simulation, and the author against himself and another.

pytest tests/evals/style/test_distance.py
"""

import math
import random
import re
import statistics

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from tunesmith.evals.style import distance
from tunesmith.evals.style.distance import DISTANCES, around, compare, delta, jensen_shannon, spread_of
from tunesmith.evals.style.profile import FREQUENT, frequent_words, table
from tunesmith.evals.style.text import words_of


def burrows(one: list[str], other: list[str], passages: list[str], words: tuple[str, ...]) -> float:
    """The textbook's way: z-scores of each text, and the mean of their absolute differences."""
    def share(texts: list[str], word: str) -> float:
        found = [w for t in texts for w in words_of(t)]
        return found.count(word) / len(found)

    differences = []
    for word in words:
        by_passage = [share([p], word) for p in passages]
        mean, sd = statistics.mean(by_passage), statistics.stdev(by_passage)
        differences.append(abs((share(one, word) - mean) / sd - (share(other, word) - mean) / sd))
    return statistics.mean(differences)


def test_delta_is_burrows_delta(austen, held, melville):
    words = frequent_words(austen)
    train = table(austen, words)
    for texts in (held, melville):
        ours = delta(table(texts, words).sum(0)[None], table(held[:9], words).sum(0)[None], spread_of(train))[0]
        assert ours == pytest.approx(burrows(texts, held[:9], austen, words))


def test_jensen_shannon_is_scipys(austen, held):
    rng = np.random.default_rng(0)
    p, q = rng.integers(0, 9, (2, 50, 8)) + (rng.random((2, 50, 1)) < 0.5)
    p[:, 0] += 1
    q[:, 1] += 1
    expected = [jensenshannon(a, b, base=2) for a, b in zip(p, q, strict=True)]
    assert jensen_shannon(p.astype(float), q.astype(float)) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("name", DISTANCES)
def test_is_zero_to_itself_symmetric_and_blind_to_length(name, austen, held):
    words = frequent_words(austen)
    spread_W = spread_of(table(austen, words))
    a, b = table(austen, words).sum(0)[None], table(held, words).sum(0)[None]
    between = DISTANCES[name].between
    assert between(a, 3 * a, spread_W)[0] == pytest.approx(0, abs=1e-7)
    measured = between(a, b, spread_W)[0]
    assert measured == pytest.approx(between(b, a, spread_W)[0])
    assert measured == pytest.approx(between(2 * a, b, spread_W)[0])


def test_delta_says_nothing_without_frequent_words():
    row = table(["one two three"] * 4, ("one", "two")).sum(0)[None]
    assert math.isnan(delta(row, row, np.ones(2))[0])


def short_sentences(text: str) -> str:
    return re.sub(r"[,;] (\w)", lambda m: f". {m[1].upper()}", text)


def other_marks(text: str) -> str:
    return text.replace(",", ";")


@pytest.mark.parametrize(("name", "changed"), [("delta", None), ("lengths", short_sentences), ("marks", other_marks)])
def test_a_like_text_is_near_and_another_is_far(name, changed, austen, held, melville):
    """Real text takes the place of the model's. The author's own must look close; and far another's, or hers with other
    sentences or punctuation: Melville's sentences are about as long as Austen's."""
    words = frequent_words(austen)
    half = austen[::2][: len(held)]
    other = [changed(t) for t in austen] if changed else melville
    systems = {"zero_shot": table(other[: len(held)], words), "tuned": table(half, words)}
    train = table(austen[1::2], words)
    found = compare(name, table(held, words), systems, train, other_KC=table(other, words))
    assert found["ci95"][1] < 0, "his own text is closer than the other's"
    assert found["systems"]["zero_shot"]["ci95"][0] > found["self"]["range95"][1]
    assert found["other"]["value"] > found["self"]["range95"][1]
    assert found["way"]["value"] > 0.7 and found["way"]["ci95"][0] < 1 < found["way"]["ci95"][1]

    swapped = compare(name, table(held, words), {"zero_shot": systems["tuned"], "tuned": systems["zero_shot"]}, train)
    assert swapped["ci95"][0] > 0, "and the other way round it is farther"
    assert swapped["delta"] == pytest.approx(-found["delta"]) and swapped["way"] is None


@pytest.mark.parametrize("name", DISTANCES)
def test_two_samples_of_one_hand_show_no_difference(name, austen, held):
    words, rng = frequent_words(austen), random.Random(3)
    mixed = rng.sample(austen, len(austen))
    n = len(held)
    systems = {"zero_shot": table(mixed[:n], words), "tuned": table(mixed[n : 2 * n], words)}
    found = compare(name, table(held, words), systems, table(austen, words))
    assert found["ci95"][0] < 0 < found["ci95"][1] and found["way"] is None


@pytest.mark.parametrize("name", DISTANCES)
def test_intervals_cover_what_samples_of_this_size_give_on_average(name, austen, melville, monkeypatch):
    """95% intervals hold the mean distance of such samples in 93 to 97 of 100 cases, within the simulation's own error."""
    monkeypatch.setattr(distance, "RESAMPLES", 400)
    words, n, rng = frequent_words(austen), 24, np.random.default_rng(1)
    author, other = table(austen, words), table(melville, words)
    spread_W, between = spread_of(author), DISTANCES[name].between
    values, intervals = [], []
    for i in range(400):
        a, b = (t[rng.integers(0, len(t), n)] for t in (author, other))
        weights = distance.resamples(n, i)
        values.append(between(a.sum(0)[None], b.sum(0)[None], spread_W)[0])
        intervals.append(around(values[-1], between(weights @ a, weights @ b, spread_W), n))
    covered = np.mean([low <= np.mean(values) <= high for low, high in intervals])
    assert 0.91 <= covered <= 0.98, "0.93 to 0.97, and 400 simulations are right to 0.02"


def test_intervals_that_are_the_plain_percentiles_would_not(austen, monkeypatch):
    """The control: resampling adds noise, and noise is distance. Of two samples of one hand, percentiles lie too high."""
    monkeypatch.setattr(distance, "RESAMPLES", 400)
    words, n, rng = frequent_words(austen), 24, np.random.default_rng(1)
    author, between = table(austen, words), DISTANCES["delta"].between
    values, plain, ours = [], [], []
    for i in range(100):
        a, b = (author[rng.integers(0, len(author), n)] for _ in range(2))
        weights = distance.resamples(n, i)
        values.append(between(a.sum(0)[None], b.sum(0)[None], spread_of(author))[0])
        drawn = between(weights @ a, weights @ b, spread_of(author))
        plain.append(distance.percentiles(drawn))
        ours.append(around(values[-1], drawn, n))
    mean = np.mean(values)
    assert np.mean([low <= mean <= high for low, high in plain]) < 0.5 < np.mean([low <= mean <= high for low, high in ours])


def test_telling_words_are_those_used_otherwise(austen, held):
    words = frequent_words(austen)
    more = [t + " which" * 12 for t in held]
    found = distance.telling(table(held, words), table(more, words), spread_of(table(austen, words)), words)
    assert found[0]["word"] == "which" and found[0]["own"] > 5 * found[0]["author"] and found[0]["apart"] > 0
    assert table(held, words)[:, FREQUENT].sum() > 0
