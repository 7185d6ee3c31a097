"""How alike two texts are, in 0..1 (cosine: -1..1), by the measures that OpenAI's text_similarity names.

    fuzzy_match   2 x longest common subsequence of characters / characters of both (rapidfuzz's ratio)
    bleu          sacrebleu's sentence BLEU: tokens of 13a, orders that the answer has, exponential smoothing (Post 2018)
    gleu          matches of 1- to 4-grams over the larger total (Wu et al. 2016, "Google's neural machine translation system")
    meteor        Banerjee & Lavie 2005 with exact and stem matches. WordNet's synonyms are not counted: no data is fetched
    rouge_1..5    F1 of common n-grams of words, case folded (Lin 2004); rouge_l: of the longest common subsequence
    cosine        of sentence embeddings (`tunesmith.evals.embed`)

Which variant OpenAI's own service computes is not published; these are the libraries' and papers' definitions, named here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache

from tunesmith.evals.metrics.answers import rouge_l, words_of

LONGEST = 100_000
"""Characters of either text."""
LONGEST_METEOR = 2000
"""Words of either text: its alignment compares each with each."""


def similarity(metric: str, answer: str, reference: str) -> float:
    """Raises ValueError: a text is too long to compare; BaseModelError: cosine, and there is no embedder."""
    if max(len(answer), len(reference)) > LONGEST:
        raise ValueError(f"texts of more than {LONGEST} characters are not compared")
    if metric.startswith("rouge_") and metric != "rouge_l":
        return rouge_n(int(metric.removeprefix("rouge_")), answer, reference)
    return METRICS[metric](answer, reference)


def rouge_n(n: int, answer: str, reference: str) -> float:
    """F1 of the n-grams of words that both have. For ASCII that is the rouge-score package's, without stemming."""
    given, wanted = (_ngrams(words_of(text), n) for text in (answer, reference))
    both = given.total() + wanted.total()
    return 2 * (given & wanted).total() / both if both else 0.0


def fuzzy_match(answer: str, reference: str) -> float:
    from rapidfuzz.fuzz import ratio

    return ratio(answer, reference) / 100


def bleu(answer: str, reference: str) -> float:
    return min(1.0, _bleu().sentence_score(answer, [reference]).score / 100)


def gleu(answer: str, reference: str) -> float:
    """With 13a's tokens, as BLEU's here."""
    from nltk.translate.gleu_score import sentence_gleu

    return float(sentence_gleu([_tokens(reference)], _tokens(answer)))


def meteor(answer: str, reference: str) -> float:
    """Raises ValueError beyond LONGEST_METEOR."""
    from nltk.translate.meteor_score import single_meteor_score

    given, wanted = _tokens(answer), _tokens(reference)
    if max(len(given), len(wanted)) > LONGEST_METEOR:
        raise ValueError(f"meteor compares texts of up to {LONGEST_METEOR} words")
    return float(single_meteor_score(wanted, given, wordnet=_NoSynonyms())) if given and wanted else 0.0


def cosine(answer: str, reference: str) -> float:
    """0 where a text is empty. Raises BaseModelError: the embedder is not there and cannot be fetched."""
    if not answer.strip() or not reference.strip():
        return 0.0
    given, wanted = _embedder()([answer, reference])
    return max(-1.0, min(1.0, float(given @ wanted)))


def _rouge_l(answer: str, reference: str) -> float:
    return rouge_l(answer, reference) if words_of(reference) else 0.0


METRICS: dict[str, Callable[[str, str], float]] = {
    "fuzzy_match": fuzzy_match, "bleu": bleu, "gleu": gleu, "meteor": meteor, "cosine": cosine, "rouge_l": _rouge_l}
NAMES = (*METRICS, *(f"rouge_{n}" for n in range(1, 6)))


class _NoSynonyms:
    """In place of WordNet, whose data is not shipped."""

    def synsets(self, _word: str) -> list:
        return []


def _ngrams(words: list[str], n: int) -> Counter:
    return Counter(zip(*(words[i:] for i in range(n)), strict=False))


@cache
def _bleu():
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=True)


def _tokens(text: str) -> list[str]:
    return _bleu().tokenizer(text).split()


@cache
def _embedder():
    from tunesmith.evals.embed import load

    return load()
