"""Scores of one answer against one reference, in 0..1."""

from __future__ import annotations

import json
import re
import string
from collections import Counter, defaultdict

QUOTES = "\"'`´‘’‚“”„«»‹›「」『』"
AROUND = string.whitespace + QUOTES + ".,:;!?…·。、，！？；：¿¡*_()[]{}<>"
"""What is folded away at both ends of a label. A sign before a number is not: -1 is not 1."""


def exact_match(answer: str, reference: str) -> float:
    """1 when the answer is the reference, white space at the ends aside."""
    return float(answer.strip() == reference.strip())


def accuracy(answer: str, reference: str) -> float:
    """1 when the answer is the label, whatever its case, its spaces, and the punctuation around it.

    Raises:
        ValueError: nothing is left of the label, so that an empty answer would be right.
    """
    wanted = _label(reference)
    if not wanted:
        raise ValueError("accuracy needs references with a letter or a digit")
    return float(_label(answer) == wanted)


def contains(answer: str, reference: str) -> float:
    """1 when the reference stands somewhere in the answer as whole words, case and spaces folded.

    Raises:
        ValueError: the reference is empty, and would stand in every answer.
    """
    wanted = _squeezed(reference)
    if not wanted:
        raise ValueError("contains needs references that are not empty")
    begin, end = (r"\b" if wanted[i].isalnum() else "" for i in (0, -1))
    return float(re.search(begin + re.escape(wanted) + end, _squeezed(answer)) is not None)


def json_f1(answer: str, reference: str) -> float:
    """F1 over the (key, value) fields of two JSON objects, nested ones flattened; 0 when the answer is not JSON.

    Raises:
        ValueError: the reference is not a JSON object, so that nothing could ever score.
    """
    wanted = _fields(reference)
    if wanted is None:
        raise ValueError("json_f1 needs references that are JSON objects")
    given = _fields(answer)
    return 0.0 if given is None else _f1(given, wanted)


def token_f1(answer: str, reference: str) -> float:
    """Word-overlap F1 as in SQuAD (Rajpurkar et al. 2016): case, punctuation and English articles folded away."""
    return _f1(Counter(_words(answer)), Counter(_words(reference)))


def rouge_l(answer: str, reference: str) -> float:
    """F1 of the longest common subsequence of words, case folded (Lin 2004), without stemming.

    Words are runs of letters and digits of any script. For ASCII that is the rouge-score package's rougeL.

    Raises:
        ValueError: the reference has no word.
    """
    given, wanted = words_of(answer), words_of(reference)
    if not wanted:
        raise ValueError("rouge_l needs references with words")
    return 2 * _common_subsequence(given, wanted) / (len(given) + len(wanted))


def _common_subsequence(given: list[str], wanted: list[str]) -> int:
    """Length of the longest one, a machine word of `wanted` at a time: O(len(given) * len(wanted) / 64) (Hyyrö 2004)."""
    where: dict[str, int] = defaultdict(int)
    for i, word in enumerate(wanted):
        where[word] |= 1 << i
    whole = row = (1 << len(wanted)) - 1
    for word in given:
        hit = row & where.get(word, 0)
        row = ((row + hit) | (row - hit)) & whole
    return len(wanted) - row.bit_count()


def _f1(given: Counter, wanted: Counter) -> float:
    if not given and not wanted:
        return 1.0
    common = sum((given & wanted).values())
    return 2 * common / (given.total() + wanted.total())


def _fields(text: str) -> Counter | None:
    try:
        value = json.loads(text)
        return Counter(_leaves(value)) if isinstance(value, dict) else None
    except (ValueError, RecursionError):  # a model that repeats itself can open a thousand brackets
        return None


def _leaves(value, path: tuple = ()) -> list[tuple[tuple, str]]:
    """(keys on the way, value as JSON). An empty object or list is a value."""
    if value and isinstance(value, dict):
        return [leaf for k, v in value.items() for leaf in _leaves(v, (*path, k))]
    if value and isinstance(value, list):
        return [leaf for i, v in enumerate(value) for leaf in _leaves(v, (*path, i))]
    return [(path, json.dumps(value))]


def _words(text: str) -> list[str]:
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def words_of(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _squeezed(text: str) -> str:
    return " ".join(text.casefold().split())


def _label(text: str) -> str:
    return _squeezed(text).strip(AROUND)
