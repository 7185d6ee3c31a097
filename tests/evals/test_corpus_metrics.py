"""BLEU and chrF out of sums equal sacrebleu's corpus scores, and so does every resample's.

pytest tests/evals/test_corpus_metrics.py
"""

import numpy as np
import pytest
import sacrebleu
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tunesmith.evals.compare import interval, value
from tunesmith.evals.items import Item, Outcome
from tunesmith.evals.metrics import METRICS

SENTENCE = st.lists(st.sampled_from(["the", "cat", "sat", "on", "mat", "a", "dog,", "Dogs", "é", "1.5", "isn't", "."]),
                    max_size=9).map(" ".join)
PAIRS = st.lists(st.tuples(SENTENCE, st.lists(SENTENCE.filter(bool), min_size=1, max_size=3)), min_size=1, max_size=8)
SCORES = {"bleu": sacrebleu.corpus_bleu, "chrf": sacrebleu.corpus_chrf}


def parts(name: str, pairs) -> np.ndarray:
    return np.array([METRICS[name].parts(Outcome(text), Item(f"f:{i}", [], tuple(references)))
                     for i, (text, references) in enumerate(pairs)])


def theirs(name: str, pairs) -> float:
    streams = max(len(r) for _, r in pairs)
    references = [[r[i] if i < len(r) else None for _, r in pairs] for i in range(streams)]
    return SCORES[name]([text for text, _ in pairs], references).score


@pytest.mark.parametrize("name", SCORES)
@settings(deadline=None)
@given(PAIRS)
@example([("", ["the cat"])])
@example([("the cat sat on the mat", ["the cat sat on the mat"])])
@example([("the cat", ["the cat"])])
@example([("dog", ["cat"]), ("", ["the"])])
@example([("a a a a a a a a", ["a cat sat on a mat"]), ("é", ["é é é é é é"])])
def test_the_value_of_the_sum_is_sacrebleus_corpus_score(name, pairs):
    assert value(METRICS[name], parts(name, pairs)) == pytest.approx(theirs(name, pairs), abs=1e-9)


@pytest.mark.parametrize("name", SCORES)
def test_a_resample_is_the_score_of_the_answers_it_drew(name):
    rng = np.random.default_rng(0)
    words = np.array(["the", "cat", "sat", "on", "a", "mat", "and", "the", "dog", "looked", "at", "it"])
    pairs = [(" ".join(rng.choice(words, 8)), [" ".join(rng.choice(words, 8))]) for _ in range(20)]
    weights_RN = rng.multinomial(20, np.full(20, 1 / 20), size=50)
    ours = METRICS[name].value(weights_RN @ parts(name, pairs))
    drawn = [[pair for pair, n in zip(pairs, w, strict=True) for _ in range(n)] for w in weights_RN]
    np.testing.assert_allclose(ours, [theirs(name, d) for d in drawn], atol=1e-9)
    low, high = interval(METRICS[name], parts(name, pairs))
    assert low < value(METRICS[name], parts(name, pairs)) < high
