"""Rows that say nearly the same thing: all of them, found fast.

Two rows are near-duplicates when both their prompts and their answers are: Jaccard similarity of folded character
5-grams >= threshold, on each side: of all of them, and of those that are left without what many rows share, such as an
instruction inside every prompt (tunesmith.data.boilerplate). Prompts that every row shares (a style corpus) or answers that
all look alike (JSON with the same keys) make no duplicates by themselves.

Three filters pass over rows that cannot be near, none of them ever over one that is:

    prefix      n shingles, a near-duplicate shares at least s = threshold * n of them (Chaudhuri et al. 2006). In one order,
                the rarest first, both sets have a shared one among their first n - s + 1
    side        each side has its own prefixes; a search reads the side whose prefixes are rarer in the corpus
    signature   some two bits a shingle: as many bits differ as shingles do, or fewer (Sandes et al. 2020)

What is left is compared in full.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from tunesmith.data.boilerplate import Boilerplate, boilerplate
from tunesmith.data.rows import Row
from tunesmith.data.shingles import (
    GRAM,
    Sets,
    at_least_shared,
    at_most_different,
    commonness,
    sets,
    signature_words,
    spans,
)
from tunesmith.store.files import canonical_json

if TYPE_CHECKING:
    import numpy as np

AT_ONCE = 64
"""Comparisons in full between two looks at which groups have already met."""


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
    """Two rows with the same key are exact duplicates, but for their system prompts."""
    return tuple(f"{m['role']}\0{fold(m['content'])}\0{canonical_json(m.get('tool_calls'))}"
                 for m in row.messages if m["role"] != "system")


def shingles(text: str) -> set[str]:
    folded = f" {fold(text)} "
    return {folded[i : i + GRAM] for i in range(max(1, len(folded) - GRAM + 1))}


def jaccard(a: set, b: set) -> float:
    return len(a & b) / len(a | b) if a or b else 1.0


@dataclass(frozen=True, slots=True)
class _Side:
    """The prompts or the answers of a corpus, and where each shingle of their prefixes stands.

    `rows` lists the texts of each prefix shingle, one shingle after the other; entry e of the prefixes (in the order of
    the texts) shares its shingle with `rows[first[e]:last[e]]` and is itself at `own[e]`.
    """

    common: np.ndarray
    shared: Boilerplate | None
    sets: Sets
    rest: Sets
    """What is left of the sets without boilerplate; the sets themselves where there is none."""
    entries: np.ndarray
    """Prefix of text i: entries[i]:entries[i + 1]."""
    rows: np.ndarray
    first: np.ndarray
    own: np.ndarray
    known: np.ndarray
    """The different shingles of all prefixes, ascending; number k is shared by rows[bounds[k]:bounds[k + 1]]."""
    bounds: np.ndarray


class Index:
    """Near-duplicate search among `rows`. Rows that are equal after folding are searched once."""

    def __init__(self, rows: list[Row], threshold: float, shared: Sequence[Boilerplate | None] = ()):
        """`shared` is boilerplate of prompts and of answers, where these rows are not the corpus it is told from."""
        self.threshold = threshold
        self._rows = rows
        same: dict[tuple[str, str], list[int]] = defaultdict(list)
        for i, row in enumerate(rows):
            same[fold(row.prompt), fold(row.answer)].append(i)
        self._same = list(same.values())
        self._sides = [_side([texts[n] for texts in same], threshold, *shared[n : n + 1]) for n in (0, 1)]

    def near(self, row: Row) -> list[tuple[int, float]]:
        """Numbers of all near-duplicates of `row`, each with the smaller of both sides' similarities, in order."""
        return next(self.near_each([row]))

    def near_each(self, rows: list[Row]) -> Iterator[list[tuple[int, float]]]:
        """`near` of each of these rows, several times as fast as one by one."""
        import numpy as np

        if not self._rows:
            yield from ([] for _ in rows)
            return
        asked = [_asked(side, [fold(text) for text in texts])
                 for side, texts in zip(self._sides, ([r.prompt for r in rows], [r.answer for r in rows]), strict=True)]
        for n in range(len(rows)):
            found = self._candidates([_look_up(side, one[n], self.threshold)
                                      for side, (one, _) in zip(self._sides, asked, strict=True)])
            found = self._possible([(one[n], one.signatures[n]) for one, _ in asked], found)
            found, similarity = self._near([(one[n], rest[n]) for one, rest in asked], found)
            yield sorted((i, s) for m, s in zip(found.tolist(), similarity.astype(np.float64).tolist(), strict=True)
                         for i in self._same[m])

    def own_words(self, texts: list[str], side: int) -> Iterator[list[bool]]:
        """Of each word of folded prompts (0) or answers (1), whether it is more than what many training rows share."""
        shared = self._sides[side].shared if self._rows else None
        return shared.own(texts) if shared else ([True] * len(text.split()) for text in texts)

    def groups(self) -> list[list[int]]:
        """Numbers of rows that are connected by near-duplicates, in groups of two and more, each in order."""
        return self._groups

    @cached_property
    def _groups(self) -> list[list[int]]:
        import numpy as np

        label = np.arange(len(self._same))
        members = {n: [n] for n in range(len(self._same))}
        for n in range(len(self._same)):
            found = self._candidates([_before(side, n) for side in self._sides])
            found = self._possible([(side.sets[n], side.sets.signatures[n]) for side in self._sides], found)
            own = [(side.sets[n], side.rest[n]) for side in self._sides]
            while len(found := found[label[found] != label[n]]):
                some, found = found[:AT_ONCE], found[AT_ONCE:]
                for other in self._near(own, some)[0].tolist():
                    _join(label, members, n, other)
        groups = [sorted(i for n in group for i in self._same[n]) for group in members.values()]
        return sorted(group for group in groups if len(group) > 1)

    def _candidates(self, ranges: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """Texts that share a prefix shingle, on the side that has fewer of them."""
        import numpy as np

        costs = [int((stops - starts).sum()) for starts, stops in ranges]
        n = costs.index(min(costs))
        met = np.zeros(len(self._same), dtype=bool)  # many times faster than np.unique of a long list
        met[self._sides[n].rows[spans(*ranges[n])]] = True
        return np.flatnonzero(met)

    def _possible(self, asked: list[tuple[np.ndarray, np.ndarray]], found: np.ndarray) -> np.ndarray:
        """Those whose signatures do not differ too much."""
        import numpy as np

        for (numbers, signature), side in zip(asked, self._sides, strict=True):
            limit = at_most_different(len(numbers), side.sets.sizes[found], self.threshold)
            found = found[np.bitwise_count(side.sets.signatures[found] ^ signature).sum(axis=1) <= limit]
        return found

    def _near(self, asked: list[tuple[np.ndarray, np.ndarray]], found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Those of them that are near, and how near: the smallest similarity of both sides, whole and without boilerplate."""
        import numpy as np

        least = np.ones(len(found))
        pairs = [pair for (whole, rest), side in zip(asked, self._sides, strict=True)
                 for pair in ([(whole, side.sets), (rest, side.rest)] if side.shared else [(whole, side.sets)])]
        for numbers, known in pairs:
            if not len(found):
                break
            least = np.minimum(least, similarities(numbers, known, found))
            near = least >= self.threshold
            found, least = found[near], least[near]
        return found, least


def _asked(side: _Side, texts: list[str]) -> tuple[Sets, Sets]:
    """Sets of folded texts that are not in the corpus, and what is left of them without its boilerplate."""
    found = sets(texts, side.common, side.sets.signatures.shape[1])
    return found, sets(texts, side.common, 0, side.shared) if side.shared else found


def similarities(numbers: np.ndarray, known: Sets, found: np.ndarray) -> np.ndarray:
    """Jaccard similarity of a set with each of these, of which there is at least one."""
    import numpy as np

    starts, stops = known.starts[found], known.starts[found + 1]
    theirs = known.numbers[spans(starts, stops)]
    at = np.minimum(np.searchsorted(numbers, theirs), len(numbers) - 1)
    sizes = stops - starts
    shared = np.add.reduceat(numbers[at] == theirs, np.cumsum(sizes) - sizes, dtype=np.int64)
    return shared / (len(numbers) + sizes - shared)


def prefix_lengths(sizes: np.ndarray, threshold: float) -> np.ndarray:
    """How many of a set's rarest shingles hold one of every near-duplicate."""
    return sizes - at_least_shared(sizes, threshold) + 1


def _side(texts: list[str], threshold: float, *told: Boilerplate | None) -> _Side:
    import numpy as np

    common = commonness(texts)
    found = sets(texts, common, signature_words(texts))
    shared = told[0] if told else boilerplate(texts, found)
    rest = sets(texts, common, 0, shared) if shared else found
    lengths = prefix_lengths(found.sizes, threshold)
    prefixes = found.numbers[spans(found.starts[:-1], found.starts[:-1] + lengths)]
    order = np.argsort(prefixes, kind="stable")
    known, group, counts = np.unique(prefixes, return_inverse=True, return_counts=True)
    bounds = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    own = np.empty(len(order), dtype=np.int64)
    own[order] = np.arange(len(order))
    rows = np.repeat(np.arange(len(texts), dtype=np.int32), lengths)[order]
    entries = np.concatenate([[0], np.cumsum(lengths)])
    return _Side(common, shared, found, rest, entries, rows, bounds[group], own, known, bounds)


def _before(side: _Side, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the texts before text n stand that share a prefix shingle with it."""
    part = slice(side.entries[n], side.entries[n + 1])
    return side.first[part], side.own[part]


def _look_up(side: _Side, numbers: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Where the texts stand that share a prefix shingle with a set that is not in the corpus."""
    import numpy as np

    prefix = numbers[: len(numbers) - int(at_least_shared(np.array(len(numbers)), threshold)) + 1]
    at = np.searchsorted(side.known, prefix)
    at = at[side.known[np.minimum(at, len(side.known) - 1)] == prefix]
    return side.bounds[at], side.bounds[at + 1]


def _join(label: np.ndarray, members: dict[int, list[int]], one: int, other: int) -> None:
    """Two groups become one; the smaller is renamed, so that all of it costs n log n."""
    large, small = int(label[one]), int(label[other])
    if large == small:
        return
    if len(members[large]) < len(members[small]):
        large, small = small, large
    moved = members.pop(small)
    label[moved] = large
    members[large] += moved
