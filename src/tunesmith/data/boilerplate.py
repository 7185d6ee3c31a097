"""What many texts of a corpus share word for word: instructions, forms and footers, which make no two of them alike.

    Split this address into fields: 12 Oak Street, Linn IA          the stretch before the colon stands in every text, and
    Split this address into fields: 7 Cedar Lane, Troy OH           what comes after it is new each time

Boilerplate is a stretch of text

    long     of LONG shingles or more (tunesmith.data.shingles), so " of the " is none
    common   each of them in more than SHARE of the different texts, and in more than FEW
    framed   that begins and ends where texts part (or end): its last 16 characters are common too, and of the texts that have
             them at most 1 - BORDER go on with the same one

The last is what tells a template from one text that stands there in many variants. Of a hundred copies with one word changed
somewhere each shingle is common too, but at any one place hardly a copy leaves the others: they stay near-duplicates.

A text that is nothing but boilerplate is compared by all of it. What is left of two texts can be the same although their
boilerplate is not (the same street in two towns), so near-duplicates are near with it and without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunesmith.data.shingles import GRAM, TABLE_BITS, Sets, batches, hashed, places, spans

if TYPE_CHECKING:
    import numpy as np

LONG = 12
"""Shingles in a row: 16 characters."""
SHARE = 0.05
"""So that twenty wordings of an instruction are found, each of them."""
FEW = 20
"""A handful of rows that are much alike may be one row in variants."""
BORDER = 0.15
"""Near-duplicates (0.8) differ in a word of sixteen or more: any one place is changed in 6% of the variants."""


@dataclass(frozen=True, slots=True)
class Boilerplate:
    """Whether a shingle is common, and whether stretches begin and end with a window, by their places in the table.

    A window is LONG shingles in a row, all of them common: 16 characters, enough to stand once in a text.
    """

    common: np.ndarray
    begins: np.ndarray
    ends: np.ndarray

    def keep(self, hashes: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Which shingles of each text are its own, given all texts' hashes in order and how many each text has."""
        import numpy as np

        keep = np.ones(len(hashes), dtype=bool)
        starts, stops = _stretches(self.common[places(hashes)], counts)
        windows = spans(starts, stops - LONG + 1)
        known = _windows(hashes, windows)
        begins, ends = windows[self.begins[known]], windows[self.ends[known]] + LONG
        if not len(begins) or not len(ends):
            return keep
        first = np.searchsorted(begins, starts)
        last = np.searchsorted(ends, stops, side="right") - 1
        inside = (first < len(begins)) & (last >= 0)
        first, last = begins[first[inside]], ends[last[inside]]
        long = last - first >= LONG
        keep[spans(first[long], last[long])] = False
        nothing_left = ~np.logical_or.reduceat(keep, np.cumsum(counts) - counts)
        return keep | np.repeat(nothing_left, counts)

    def own(self, texts: list[str]) -> Iterator[list[bool]]:
        """Of each word of folded texts, whether it is more than boilerplate."""
        import numpy as np

        for batch in batches(texts):
            hashes, counts = hashed(batch)
            keep = self.keep(hashes, counts)
            ends = np.cumsum(counts)
            for text, start, end in zip(batch, (ends - counts).tolist(), ends.tolist(), strict=True):
                cuts = np.flatnonzero(np.diff(keep[start:end], prepend=True, append=True)).reshape(-1, 2)
                yield _own(text, cuts.tolist())


def boilerplate(texts: list[str], found: Sets) -> Boilerplate | None:
    """Boilerplate of folded texts, whose shingles are `found`; None when no shingle is in enough of them."""
    import numpy as np

    first = {text: n for n, text in reversed(list(enumerate(texts)))}
    different = np.sort(np.fromiter(first.values(), dtype=np.int64))
    common = widespread(holders(found.numbers[spans(found.starts[different], found.starts[different + 1])]), len(first))
    if not common.any():
        return None
    texts = list(first)
    met = meetings(texts, common)
    return decided(common, met, commonest(texts, common, met), len(texts)) if met.any() else None


# ---- the steps, for texts that are in no one place: of several parts of a corpus, no text of which stands in two


def holders(numbers: np.ndarray) -> np.ndarray:
    """How many texts have a shingle at each place of the table, by the numbers of their sets. Those of two parts are added."""
    import numpy as np

    return np.bincount(places(numbers), minlength=1 << TABLE_BITS)


def widespread(held: np.ndarray, texts: int) -> np.ndarray:
    """Which shingles so many texts, all of the corpus, have in common."""
    return held > _limit(texts)


def meetings(texts: list[str], common: np.ndarray) -> np.ndarray:
    """How often each window stands there, each with the shingle before it, and each with the one after it: three tables.

    Those of two parts are added.
    """
    import numpy as np

    met = np.zeros((3, len(common)), dtype=np.int64)
    for found in _common_ground(texts, common):
        for table, at in zip(met, found, strict=True):
            table += np.bincount(at[at >= 0], minlength=len(table))
    return met


def commonest(texts: list[str], common: np.ndarray, met: np.ndarray) -> np.ndarray:
    """How often each window stands with the shingle that is oftenest before it, and oftenest after it: two tables.

    `met` is `meetings` of the corpus. Of two parts the greater counts.
    """
    import numpy as np

    most = np.zeros((2, len(common)), dtype=np.int64)
    for window, *pairs in _common_ground(texts, common):
        for table, pair, counts in zip(most, pairs, met[1:], strict=True):
            np.maximum.at(table, window[pair >= 0], counts[pair[pair >= 0]])
    return most


def decided(common: np.ndarray, met: np.ndarray, most: np.ndarray, texts: int) -> Boilerplate:
    """Boilerplate of a corpus of so many different texts, by `widespread`, `meetings` and `commonest` of all of it."""
    import numpy as np

    parted = np.where(met[0] > _limit(texts), (1 - BORDER) * met[0], -1)
    return Boilerplate(common, *(most <= parted))


def _limit(texts: int) -> float:
    return max(FEW, SHARE * texts)


def _common_ground(texts: list[str], common: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Places of windows; of each with the character before it; and with the one after it, -1 where the text begins or ends."""
    import numpy as np

    for batch in batches(texts):
        hashes, counts = hashed(batch)
        starts, stops = _stretches(common[places(hashes)], counts)
        at = spans(starts, stops - LONG + 1)
        ends = np.cumsum(counts)
        alone = np.zeros(len(hashes) + 1, dtype=bool)
        alone[ends], alone[0] = True, True
        window = _windows(hashes, at)
        before, after = np.full(len(at), -1), np.full(len(at), -1)
        led, followed = ~alone[at], ~alone[at + LONG]
        salt = np.uint64(0x9E3779B97F4A7C15)
        before[led] = places(_joined(hashes, at[led]) + salt * hashes[at[led] - 1])
        after[followed] = places(_joined(hashes, at[followed]) + salt * hashes[at[followed] + LONG])
        yield window, before, after


def _windows(hashes: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Places of the windows that start there."""
    return places(_joined(hashes, at))


def _joined(hashes: np.ndarray, at: np.ndarray) -> np.ndarray:
    """One hash of the 16 characters that start at a shingle: of the shingles that cover them."""
    import numpy as np

    mixed = np.zeros(len(at), dtype=np.uint64)
    for offset in (0, 5, 10, LONG - 1):
        mixed = (mixed ^ hashes[at + offset]) * np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(31)
    return mixed


def _own(text: str, cuts: list[list[int]]) -> list[bool]:
    """Of each word, whether it is not whole in a stretch of shingles, given by its first and the one behind its last."""
    stretches = [(first, behind + GRAM - 1) for first, behind in cuts]
    own, at = [], 1  # shingles are of the text with a space on either side
    for word in text.split():
        own.append(not any(first <= at and at + len(word) <= last for first, last in stretches))
        at += len(word) + 1
    return own


def _stretches(common: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(first, behind the last) of the LONG and longer runs of common shingles, none of which passes from text to text."""
    import numpy as np

    last = np.cumsum(counts) - 1
    before, after = np.zeros_like(common), np.zeros_like(common)
    before[1:], after[:-1] = common[:-1], common[1:]
    before[last[:-1] + 1] = after[last] = False
    starts, stops = np.flatnonzero(common & ~before), np.flatnonzero(common & ~after) + 1
    long = stops - starts >= LONG
    return starts[long], stops[long]
