"""Rows that say nearly the same thing, found fast and verified exactly.

Two rows are near-duplicates when both their prompts and their answers are: Jaccard similarity of folded character
5-grams >= threshold, on each side. Prompts that every row shares (a style corpus) or answers that all look alike
(JSON with the same keys) make no duplicates by themselves.

Candidates come from MinHash LSH (Broder 1997) over the *tagged union* of both sides' shingles. By the mediant
inequality its similarity is at least the smaller of the two, so one index at the threshold proposes every pair;
each is then verified with the exact sets.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from tunesmith.data.rows import Row

GRAM = 5
PERMUTATIONS = 128
LSH_SLACK = 0.1
"""MinHash errs; the index looks this far below the threshold so that verification, not luck, decides."""


def fold(text: str) -> str:
    """Case, punctuation, accents' forms and white space folded away."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.sub(r"[^\w\s]", " ", text).split())


def key(row: Row) -> tuple[str, ...]:
    """Two rows with the same key are exact duplicates."""
    return tuple(f"{m['role']}\0{fold(m['content'])}" for m in row.messages if m["role"] != "system")


def shingles(text: str) -> set[str]:
    folded = f" {fold(text)} "
    return {folded[i : i + GRAM] for i in range(max(1, len(folded) - GRAM + 1))}


def jaccard(a: set, b: set) -> float:
    return len(a & b) / len(a | b) if a or b else 1.0


class Index:
    """Near-duplicate search among the rows added to it."""

    def __init__(self, threshold: float):
        from datasketch import MinHashLSH

        self.threshold = threshold
        self._lsh = MinHashLSH(threshold=max(0.05, threshold - LSH_SLACK), num_perm=PERMUTATIONS)
        self._rows: list[tuple[Row, set[str], set[str]]] = []

    def add(self, row: Row) -> None:
        prompt, answer = shingles(row.prompt), shingles(row.answer)
        self._lsh.insert(len(self._rows), _minhash(prompt, answer))
        self._rows.append((row, prompt, answer))

    def near(self, row: Row) -> Iterator[tuple[Row, float]]:
        """Rows in the index that are near-duplicates, each with its similarity (the smaller of the two sides)."""
        prompt, answer = shingles(row.prompt), shingles(row.answer)
        for i in sorted(self._lsh.query(_minhash(prompt, answer))):
            other, other_prompt, other_answer = self._rows[i]
            similarity = min(jaccard(prompt, other_prompt), jaccard(answer, other_answer))
            if similarity >= self.threshold:
                yield other, similarity


def _minhash(prompt: set[str], answer: set[str]):
    from datasketch import MinHash

    sketch = MinHash(num_perm=PERMUTATIONS)
    sketch.update_batch([f"p{s}".encode() for s in sorted(prompt)] + [f"a{s}".encode() for s in sorted(answer)])
    return sketch
