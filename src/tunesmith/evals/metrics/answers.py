"""Scores of one answer against one reference, in 0..1."""

from __future__ import annotations

import json
import re
import string
from collections import Counter


def exact_match(answer: str, reference: str) -> float:
    """1 when the answer is the reference, white space at the ends aside."""
    return float(answer.strip() == reference.strip())


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
