"""The stylometric profile: what a text sounds like, in numbers that come from sums over its passages.

    counts(passage) -> one row        sums of rows -> every number of the profile, and every distance

So each resample of passages is one matrix product, and nothing is without an interval (ADR 12).
Shapes: N = passages, C = columns of a row, R = resamples.

Sources. Moving-average type-token ratio, which unlike the plain one does not fall with length: Covington and McFall,
"Cutting the Gordian Knot", J. Quantitative Linguistics 17 (2010). Repeated word 4-grams: Welleck et al., "Neural Text
Generation with Unlikelihood Training" (2020). Function words by frequency in the author's own text: Burrows, "Delta",
Literary and Linguistic Computing 17 (2002). Sentences, speech, person and tense are those of the data card (`data.voice`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tunesmith.data.passages import sentences
from tunesmith.data.voice import FIRST, PAST, PRESENT, SPEECH, THIRD, WORD, dialogue_share
from tunesmith.evals.style.text import paragraphs_of, words_of

WINDOW = 50
"""Words of a window of the moving-average type-token ratio."""
FUNCTION_WORDS = 50
AT_LEAST = 5
"""A word counts as one of the author's frequent ones from so many uses in the training text."""
SENTENCE_ENDS = (5, 10, 15, 20, 30, 40, 60)
"""Longest sentence of each class of lengths, in words; the last class has no end."""
MARKS = {
    "comma": r",", "semicolon": r";", "colon": r":", "ellipsis": r"…|\.\.+", "full stop": r"\.", "exclamation": r"!",
    "question": r"\?", "dash": r"—|–|--+", "bracket": r"[()\[\]]", "quotation": r"[\"“”„«»]",
}
_MARK = re.compile("|".join(f"({pattern})" for pattern in MARKS.values()))
PLAIN = ("words", "letters", "sentences", "squares", "paragraphs", "characters", "speech", "windows", "kinds", "first",
         "third", "past", "present", "runs", "repeated")
_AT = {name: i for i, name in enumerate(PLAIN)}
LENGTHS = slice(len(PLAIN), len(PLAIN) + len(SENTENCE_ENDS) + 1)
PUNCTUATION = slice(LENGTHS.stop, LENGTHS.stop + len(MARKS))
FREQUENT = slice(PUNCTUATION.stop, None)


def frequent_words(passages: Sequence[str], most: int = FUNCTION_WORDS) -> tuple[str, ...]:
    """The author's most frequent words that are not mostly written with a capital: function words, and no names.

    `I` is kept. The rule needs no list, so it holds for any language that writes names with capitals.
    """
    found = Counter(w.replace("’", "'") for p in passages for w in WORD.findall(p))
    total: Counter[str] = Counter()
    small: Counter[str] = Counter()
    for word, count in found.items():
        total[word.lower()] += count
        small[word.lower()] += count * word[0].islower()
    kept = [w for w, count in total.items() if count >= AT_LEAST and (2 * small[w] >= count or len(w.split("'")[0]) == 1)]
    return tuple(sorted(kept, key=lambda w: (-total[w], w))[:most])


def counts(text: str, frequent: tuple[str, ...]) -> np.ndarray:
    """The row of one passage: [C], C = PUNCTUATION.stop + len(frequent)."""
    row = np.zeros(PUNCTUATION.stop + len(frequent))
    words = words_of(text)
    told = [w.lower() for p in paragraphs_of(text) for w in WORD.findall(SPEECH.sub(" ", p))]
    plain = dict.fromkeys(PLAIN, 0.0)
    plain |= {"words": len(words), "letters": sum(map(len, words))}
    for paragraph in paragraphs_of(text):
        plain["paragraphs"] += 1
        plain["characters"] += len(paragraph)
        plain["speech"] += dialogue_share(paragraph) * len(paragraph)
        for _, sentence in sentences(paragraph):
            if length := len(WORD.findall(sentence)):
                plain["sentences"] += 1
                plain["squares"] += length * length
                row[LENGTHS.start + int(np.searchsorted(SENTENCE_ENDS, length))] += 1
    for name, pattern in (("first", FIRST), ("third", THIRD), ("past", PAST), ("present", PRESENT)):
        plain[name] = sum(pattern.fullmatch(w) is not None for w in told)
    plain["windows"] = max(0, len(words) - WINDOW + 1)
    plain["kinds"] = sum(_kinds(words)) / WINDOW
    grams = Counter(zip(words, words[1:], words[2:], words[3:], strict=False))
    plain["runs"] = sum(grams.values())
    plain["repeated"] = plain["runs"] - len(grams)
    row[: len(PLAIN)] = [plain[name] for name in PLAIN]
    for mark in _MARK.finditer(text):
        row[PUNCTUATION.start + mark.lastindex - 1] += 1
    used = Counter(words)
    row[FREQUENT] = [used[w] for w in frequent]
    return row


def table(passages: Sequence[str], frequent: tuple[str, ...]) -> np.ndarray:
    """[N, C]."""
    return np.array([counts(p, frequent) for p in passages]).reshape(len(passages), PUNCTUATION.stop + len(frequent))


def _kinds(words: list[str]) -> list[int]:
    """Different words in each window of WINDOW words."""
    if len(words) < WINDOW:
        return []
    inside = Counter(words[:WINDOW])
    found = [len(inside)]
    for gone, come in zip(words, words[WINDOW:], strict=False):
        inside[gone] -= 1
        if not inside[gone]:
            del inside[gone]
        inside[come] += 1
        found.append(len(inside))
    return found


@dataclass(frozen=True, slots=True)
class Feature:
    """One line of the profile. `value` takes sums [R, C] and returns [R]; NaN where there is nothing to divide by."""

    label: str
    unit: str
    """`share` is shown in percent; the others as they are."""
    value: Callable[[np.ndarray], np.ndarray]
    note: str


def ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    return np.divide(over, under, out=np.full(over.shape, np.nan), where=under > 0)


def column(sums_RC: np.ndarray, name: str) -> np.ndarray:
    return sums_RC[:, _AT[name]]


def _of(over: str, under: str) -> Callable[[np.ndarray], np.ndarray]:
    return lambda s_RC: ratio(column(s_RC, over), column(s_RC, under))


def _of_both(one: str, other: str) -> Callable[[np.ndarray], np.ndarray]:
    return lambda s_RC: ratio(column(s_RC, one), column(s_RC, one) + column(s_RC, other))


def _spread(s_RC: np.ndarray) -> np.ndarray:
    """Standard deviation of sentence lengths. Every word of a passage is in a sentence."""
    mean = ratio(column(s_RC, "words"), column(s_RC, "sentences"))
    return np.sqrt(np.maximum(ratio(column(s_RC, "squares"), column(s_RC, "sentences")) - mean**2, 0))


def _mark(name: str) -> Callable[[np.ndarray], np.ndarray]:
    at = PUNCTUATION.start + list(MARKS).index(name)
    return lambda s_RC: 1000 * ratio(s_RC[:, at], column(s_RC, "words"))


FEATURES = {
    "sentence": Feature("words a sentence", "words", _of("words", "sentences"), "mean"),
    "sentence_spread": Feature("spread of it", "words", _spread, "standard deviation of sentence lengths"),
    "paragraph": Feature("words a paragraph", "words", _of("words", "paragraphs"), "mean"),
    "word": Feature("letters a word", "letters", _of("letters", "words"), "mean"),
    "vocabulary": Feature("different words in 50", "share", _of("kinds", "windows"),
                          "mean over every 50 words in a row: does not depend on length"),
    "repeated": Feature("repeated runs of 4 words", "share", _of("repeated", "runs"), "within one passage: loops"),
    "dialogue": Feature("dialogue", "share", _of("speech", "characters"), "characters inside quotation marks"),
    "first_person": Feature("first person", "share", _of_both("first", "third"),
                            "of pronouns of the first and third person, outside of speeches"),
    "past": Feature("past tense", "share", _of_both("past", "present"), "of verbs told apart, outside of speeches"),
    "commas": Feature("commas", "per 1,000 words", _mark("comma"), ""),
    "semicolons": Feature("semicolons", "per 1,000 words", _mark("semicolon"), ""),
    "dashes": Feature("dashes", "per 1,000 words", _mark("dash"), ""),
    "exclamations": Feature("exclamation marks", "per 1,000 words", _mark("exclamation"), ""),
    "questions": Feature("question marks", "per 1,000 words", _mark("question"), ""),
}
