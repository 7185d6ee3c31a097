"""Numbers written one way: "twenty-one", "21" and "twenty first", "21st"; "1,000" and "1000". English only."""

from __future__ import annotations

import re

_ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
         "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SCALES = {"hundred": 100, "thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000}
_VALUES = {word: n for n, word in enumerate(_ONES)} | {word: 10 * n for n, word in enumerate(_TENS, 2)}
_ODD = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
        "twelve": "twelfth"}


def _ordinal(word: str) -> str:
    return _ODD.get(word) or (f"{word[:-1]}ieth" if word.endswith("y") else f"{word}th")


_ORDINALS = {_ordinal(word): value for word, value in (_VALUES | _SCALES).items()}
_NUMERAL = re.compile(r"\b(?:" + "|".join([*_VALUES, *_SCALES, *_ORDINALS]) + r")\b|(?<=\d) (?=\d{3}\b)")
_GROUPED = re.compile(r"(?<!\d)\d{1,3}(?: \d{3})+(?!\d)(?!\w)")


def digits(folded: str) -> str:
    """Folded text with its numbers in digits; folding has already made "1,000" into "1 000".

    Digits that stand apart ("room 7 500 people") are joined too. Both texts of a comparison go through here, so equal
    ones stay equal; two different ones meet only when they differ in nothing but such a gap.
    """
    if not _NUMERAL.search(folded):
        return folded
    words = folded.split()
    out, i = [], 0
    while i < len(words):
        number, taken = _read(words, i)
        out.append(number if taken else words[i])
        i += taken or 1
    return _GROUPED.sub(lambda group: group[0].replace(" ", ""), " ".join(out))


def _read(words: list[str], start: int) -> tuple[str, int]:
    """(the number that starts here in digits, words it takes); ("", 0) when none does.

    `part` is what has been read since the last thousand or million, and None right after one.
    """
    total, part, i = 0, None, start
    while i < len(words):
        word = words[i]
        value = _VALUES.get(word, _ORDINALS.get(word))
        scale = _SCALES.get(word) or (value if value in _SCALES.values() else None)
        if scale:
            if part is None and not (i == start and word in _ORDINALS):
                break  # "hundreds of", "a million": words, not numbers
            part, total = (part or 1, total) if scale == 100 else (None, total + (part or 1) * scale)
            part = part * 100 if part else None
        elif i == start and _is_small(word) and words[i + 1 : i + 2] and words[i + 1] in _SCALES:
            part = int(word)
        elif word == "and" and i > start and words[i - 1] in _SCALES and words[i + 1 : i + 2] and _adds(words[i + 1]):
            pass
        elif value is None or not _fits(part, value):
            break
        else:
            part = (part or 0) + value
        i += 1
        if word in _ORDINALS:
            return _with_suffix(total + (part or 0)), i - start
    return (str(total + (part or 0)), i - start) if i > start else ("", 0)


def _is_small(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) <= 3


def _adds(word: str) -> bool:
    return word in _VALUES or word in _ORDINALS


def _fits(part: int | None, value: int) -> bool:
    """Whether a value may follow what has been read: "twenty one" and "hundred twelve" are one number, "one two" are two."""
    if part is None:
        return True
    rest = part % 100
    return value > 0 and ((part >= 100 and rest == 0) or (rest >= 20 and rest % 10 == 0 and value < 10))


def _with_suffix(n: int) -> str:
    suffix = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{suffix}"
