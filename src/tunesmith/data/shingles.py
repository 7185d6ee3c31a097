"""Sets of character 5-grams as sorted arrays of 64-bit numbers: 8 bytes a shingle, compared without Python objects.

A number is 7 bits of how common the shingle is and 57 bits of hash, so that sorting puts the rarest first:

    "oak st" -> {" oak ", "oak s", "ak st", "k st "} -> [ rare.. .. .. common ]      one order for all sets

Two shingles of one corpus get the same number with probability under 1e-3 even at ten million different ones; it would
then move one similarity by one shingle.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from tunesmith.data.boilerplate import Boilerplate

GRAM = 5
BATCH_CHARACTERS = 2_000_000
HASH_BITS = 57
TABLE_BITS = 22
"""Counts are kept by the top bits of those 57: a collision makes a shingle look more common, and nothing else."""
ROUNDING = 1e-9
"""0.7 * 10 is a little more than 7."""
_MULTIPLIERS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F)


@dataclass(frozen=True, slots=True)
class Sets:
    """Set i is `numbers[starts[i]:starts[i + 1]]`, ascending."""

    numbers: np.ndarray
    starts: np.ndarray
    signatures: np.ndarray
    """Parity of the shingles at each of so many hash values, in 64-bit words: differing bits <= differing shingles."""
    sizes: np.ndarray

    def __getitem__(self, i: int) -> np.ndarray:
        return self.numbers[self.starts[i] : self.starts[i + 1]]


def commonness(texts: list[str]) -> np.ndarray:
    """How common a shingle is among folded texts, 0 to 127 on a logarithmic scale, by its place in the table."""
    return levels(count(texts))


def count(texts: list[str]) -> np.ndarray:
    """How many shingles fall on each place of a table of 2**TABLE_BITS: the counts of two corpora may be added."""
    import numpy as np

    counts = np.zeros(1 << TABLE_BITS, dtype=np.int64)
    for batch in batches(texts):
        counts += np.bincount(places(hashed(batch)[0]), minlength=len(counts))
    return counts


def levels(counts: np.ndarray) -> np.ndarray:
    """Counts on the scale of `commonness`."""
    import numpy as np

    return np.minimum(127, 4 * np.log2(1 + counts)).astype(np.uint8)


def places(numbers: np.ndarray) -> np.ndarray:
    """Where shingles stand in a table of counts, by their hashes or their numbers."""
    import numpy as np

    return (numbers >> np.uint64(HASH_BITS - TABLE_BITS) & np.uint64((1 << TABLE_BITS) - 1)).astype(np.int64)


def signature_words(texts: list[str]) -> int:
    """Length of a signature that still tells texts of this average length apart: about two bits a shingle."""
    return words_for(sum(map(len, texts)), len(texts))


def words_for(characters: int, texts: int) -> int:
    """`signature_words` of so many characters in so many texts."""
    average = characters // max(1, texts)
    return min(32, max(2, 1 << (average // 32).bit_length()))


def sets(texts: list[str], common: np.ndarray, words: int, shared: Boilerplate | None = None) -> Sets:
    """The shingle sets of folded texts, in the order that `common` gives, with signatures of so many 64-bit words.

    Shingles that a text has only from what it shares with many are left out.
    """
    import numpy as np

    numbers, sizes, signatures = [], [], []
    for batch in batches(texts):
        hashes, counts = hashed(batch)
        if shared:
            keep = shared.keep(hashes, counts)
            hashes, counts = hashes[keep], np.add.reduceat(keep, np.cumsum(counts) - counts, dtype=np.int64)
        found = common[places(hashes)].astype(np.uint64) << np.uint64(HASH_BITS)
        found |= hashes & np.uint64((1 << HASH_BITS) - 1)
        ends = np.cumsum(counts)
        for start, end in zip((ends - counts).tolist(), ends.tolist(), strict=True):
            found[start:end].sort()
        new = np.ones(len(found), dtype=bool)
        new[1:] = found[1:] != found[:-1]
        new[ends - counts] = True
        sizes.append(np.add.reduceat(new, ends - counts, dtype=np.int64))
        numbers.append(found[new])
        signatures.append(_signatures(numbers[-1], sizes[-1], words))
    if not texts:
        return Sets(np.zeros(0, np.uint64), np.zeros(1, np.int64), np.zeros((0, words), np.uint64),
                    np.zeros(0, np.int64))
    all_sizes = np.concatenate(sizes)
    starts = np.concatenate([[0], np.cumsum(all_sizes)])
    return Sets(np.concatenate(numbers), starts, np.concatenate(signatures), all_sizes)


def at_least_shared(sizes: np.ndarray, threshold: float) -> np.ndarray:
    """How many shingles of a set of this size any set with this Jaccard similarity holds."""
    import numpy as np

    return np.ceil(threshold * sizes - ROUNDING).astype(np.int64)


def at_most_different(size: int, sizes: np.ndarray, threshold: float) -> np.ndarray:
    """Shingles that stand in only one of two sets of these sizes, when their Jaccard similarity is the threshold."""
    return (1 - threshold) / (1 + threshold) * (size + sizes) + ROUNDING * (1 + size)


def spans(starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """The numbers of all ranges start..stop, one after the other."""
    import numpy as np

    lengths = stops - starts
    return np.arange(lengths.sum()) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)


def batches(texts: list[str]) -> Iterator[list[str]]:
    """Texts in groups of some two million characters, so that working memory does not grow with the corpus."""
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text) + 2
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def hashed(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(hashes of the shingles of all texts, how many each text has); repeated ones are repeated."""
    import numpy as np

    padded = [f" {text} ".ljust(GRAM, "\0") for text in texts]  # folded text has no \0
    codes = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    lengths = np.fromiter(map(len, padded), dtype=np.int64, count=len(padded))
    windows = len(codes) - GRAM + 1
    hashes = np.zeros(windows, dtype=np.uint64)
    for offset, multiplier in enumerate(_MULTIPLIERS):
        hashes += codes[offset : offset + windows] * np.uint64(multiplier)
    hashes ^= hashes >> np.uint64(29)
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    hashes ^= hashes >> np.uint64(32)
    inside = np.ones(len(codes), dtype=bool)
    inside[(np.cumsum(lengths)[:, None] - 1 - np.arange(GRAM - 1)).ravel()] = False
    return hashes[inside[:windows]], lengths - GRAM + 1


def _signatures(numbers: np.ndarray, sizes: np.ndarray, words: int) -> np.ndarray:
    import numpy as np

    starts = np.cumsum(sizes) - sizes
    bits = np.uint64(1) << (numbers & np.uint64(63))
    if not words:
        return np.zeros((len(sizes), 0), np.uint64)
    word = (numbers >> np.uint64(6)) & np.uint64(words - 1)
    return np.stack([np.bitwise_xor.reduceat(np.where(word == w, bits, np.uint64(0)), starts) for w in range(words)], axis=1)
