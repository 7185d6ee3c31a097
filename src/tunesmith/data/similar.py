"""Rows that say nearly the same thing: all of them, found fast.

Two rows are near-duplicates when both their prompts and their answers are: Jaccard similarity of folded character
5-grams >= threshold, on each side. Prompts that every row shares (a style corpus) or answers that all look alike
(JSON with the same keys) make no duplicates by themselves.

Candidates come from a prefix filter (Chaudhuri et al. 2006) over the *tagged union* of both sides' shingles. By the
mediant inequality its similarity is at least the smaller of the two. In one common order of all shingles, the rarest
first:

    n shingles, near-duplicates share at least s = threshold * n of them
    [ the first n - s + k                    ][ the rest ]      the first k shared ones are here, in both sets

Rows that share fewer than k rare shingles are passed over unread; none that is near enough is missed.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import chain

from tunesmith.data.rows import Row
from tunesmith.store.files import canonical_json

GRAM = 5
MEET = 0.05
"""k as a share of n: larger reads more shingles and fewer rows."""
ROUNDING = 1e-9
"""0.7 * 10 is a little more than 7."""


class _Folding(dict):
    """Punctuation becomes a space and invisible formatting nothing; letters, vowel signs, digits and symbols stay."""

    def __missing__(self, code: int) -> str:
        category = unicodedata.category(chr(code))
        self[code] = "" if category == "Cf" else " " if category[0] in "PC" else chr(code)
        return self[code]


_FOLDING = _Folding()


def fold(text: str) -> str:
    """Case, punctuation, accents' forms and white space folded away."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(text.translate(_FOLDING).split())


def key(row: Row) -> tuple[str, ...]:
    """Two rows with the same key are exact duplicates."""
    return tuple(f"{m['role']}\0{fold(m['content'])}\0{canonical_json(m.get('tool_calls'))}"
                 for m in row.messages if m["role"] != "system")


def shingles(text: str) -> set[str]:
    folded = f" {fold(text)} "
    return {folded[i : i + GRAM] for i in range(max(1, len(folded) - GRAM + 1))}


def jaccard(a: set, b: set) -> float:
    return len(a & b) / len(a | b) if a or b else 1.0


class Index:
    """Near-duplicate search among `rows`."""

    def __init__(self, rows: list[Row], threshold: float):
        self.threshold = threshold
        self._rows = rows
        self._count: Counter[str] = Counter()
        for row in rows:
            self._count.update(_both_sides(row))
        self._meet: list[int] = []
        self._rows_with: dict[str, list[int]] = defaultdict(list)
        for i, row in enumerate(rows):
            first, meet = self._prefix(_both_sides(row))
            self._meet.append(meet)
            for shingle in first:
                self._rows_with[shingle].append(i)

    def near(self, row: Row, before: int | None = None) -> Iterator[tuple[Row, float]]:
        """Near-duplicates among the rows (those `before` a number), each with the smaller of both sides' similarities."""
        first, meet = self._prefix(_both_sides(row))
        met = Counter(chain.from_iterable(self._rows_with.get(shingle, ()) for shingle in first))
        prompt, answer = shingles(row.prompt), shingles(row.answer)
        for i in sorted(i for i, count in met.items() if count >= min(meet, self._meet[i])):
            if before is not None and i >= before:
                break
            other = self._rows[i]
            similarity = min(jaccard(prompt, shingles(other.prompt)), jaccard(answer, shingles(other.answer)))
            if similarity >= self.threshold:
                yield other, similarity

    def _prefix(self, found: set[str]) -> tuple[list[str], int]:
        """The rarest shingles, and how many of them a near-duplicate has among its own rarest."""
        shared = math.ceil(self.threshold * len(found) - ROUNDING)
        meet = max(1, min(shared, int(MEET * len(found))))
        return sorted(found, key=lambda s: (self._count[s], s))[: len(found) - shared + meet], meet


def _both_sides(row: Row) -> set[str]:
    return {f"p{s}" for s in shingles(row.prompt)} | {f"a{s}" for s in shingles(row.answer)}
