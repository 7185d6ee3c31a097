"""Long runs of words that a held-out text shares with a training text.

A text of m words is contained in another when a run of at least L of its words, in order and without a gap, stands there:

    L = max(0.8 * m, min(m, 13))

Four fifths of a long text; of a short one all of it, because four fifths of "1331 Sierra Dr NE Cedar Rapids IA 52402" is
what every house of the town shares. Thirteen words in a row is the length from which GPT-3's authors took a match for a
leak. Any such run covers the middle, words m - L to L, so one n-gram from there (8 words, fewer where the middle is
shorter) finds every candidate: training text is read once, and none is missed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

SHARE = 0.8
CERTAIN = 13
"""Words in a row that two texts do not share by chance."""
PROBE = 8
BATCH_WORDS = 1_000_000
SHOWN = 64
"""A run that more training texts share is boilerplate: nobody needs all of them."""
_BASE = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def run_length(words: int) -> int:
    """How many words in a row must be shared of a text of so many words."""
    return max(math.ceil(SHARE * words - 1e-9), min(words, CERTAIN))


def contained(texts: list[str], train: Iterable[str]) -> Iterator[tuple[int, int, list[int]]]:
    """(number of a held-out text, first word of a run of `run_length` of its words, training texts that hold the run).

    All texts are folded. Training texts come in their order, in several lists where there are many; at most
    SHOWN of each.
    """
    import numpy as np

    asked = [text.split() for text in texts]
    ids = {word: i for i, word in enumerate(dict.fromkeys(chain.from_iterable(asked)), 1)}
    values = _mix(np.arange(len(ids) + 1, dtype=np.uint64))
    values[0] = 0  # words that no held-out text has, and the gap between two texts
    probes: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    hashed = []
    for number, words in enumerate(asked):
        sums, inverse = _prefix_hashes(values[[ids[word] for word in words]])
        hashed.append((sums, inverse))
        if words:
            start, length = _probe(len(words))
            probes[length][_window(sums, inverse, start, length)].append(number)
    for first, numbers, starts in _batches(train, ids):
        sums, inverse = _prefix_hashes(values[numbers])
        for length, wanted in probes.items():
            places, found = _places(sums, inverse, length, wanted)
            for probe in np.unique(found).tolist():
                at = places[found == probe]
                for number in wanted[probe]:
                    for window, place in _runs(hashed[number], sums, inverse, at):
                        held = np.unique(np.searchsorted(starts, place, side="right") - 1)[:SHOWN]
                        yield number, window, (first + held).tolist()


def _probe(words: int) -> tuple[int, int]:
    """(first word, length) of the n-gram that stands in every long enough run."""
    run = run_length(words)
    middle = 2 * run - words
    length = min(PROBE, middle)
    return words - run + (middle - length) // 2, length


def _batches(train: Iterable[str], ids: dict[str, int]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(number of the first text, word numbers of all its texts with a 0 after each, where each text starts)."""
    import numpy as np

    numbers: list[int] = []
    starts: list[int] = []
    first = 0
    for n, text in enumerate(train):
        starts.append(len(numbers))
        numbers += [ids.get(word, 0) for word in text.split()]
        numbers.append(0)
        if len(numbers) >= BATCH_WORDS:
            yield first, np.array(numbers), np.array(starts)
            numbers, starts, first = [], [], n + 1
    if starts:
        yield first, np.array(numbers), np.array(starts)


def _prefix_hashes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Running sums of v_i * b**i modulo 2**64, and b**-i: the hash of a window is (sum_end - sum_start) * b**-start."""
    import numpy as np

    powers, inverse = (np.cumprod(np.concatenate([np.ones(1, np.uint64), np.full(len(values), base, np.uint64)]))
                       for base in (_BASE, pow(_BASE, -1, 1 << 64)))
    return np.concatenate([np.zeros(1, np.uint64), np.cumsum(values * powers[:-1])]), inverse


def _window(sums: np.ndarray, inverse: np.ndarray, start: int, length: int) -> int:
    return (int(sums[start + length]) - int(sums[start])) * int(inverse[start]) & _MASK


def _places(sums: np.ndarray, inverse: np.ndarray, length: int, wanted: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
    """(where windows of this length with a wanted hash start, their hashes)."""
    import numpy as np

    if len(sums) <= length:
        return np.zeros(0, np.int64), np.zeros(0, np.uint64)
    hashes = (sums[length:] - sums[:-length]) * inverse[: len(sums) - length]
    known = np.sort(np.fromiter(wanted, dtype=np.uint64))
    places = np.flatnonzero(known[np.minimum(np.searchsorted(known, hashes), len(known) - 1)] == hashes)
    return places, hashes[places]


def _runs(asked: tuple[np.ndarray, np.ndarray], sums: np.ndarray, inverse: np.ndarray,
          places: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(first word of a long enough run, where it stands in train), given where the text's probe stands."""
    import numpy as np

    words = len(asked[0]) - 1
    run, (probe, _) = run_length(words), _probe(words)
    for window in range(words - run + 1):
        start = places - (probe - window)
        start = start[(start >= 0) & (start + run < len(sums))]
        same = (sums[start + run] - sums[start]) * inverse[start] == np.uint64(_window(*asked, window, run))
        if same.any():
            yield window, start[same]


def _mix(numbers: np.ndarray) -> np.ndarray:
    """Numbers 0, 1, 2, ... as 64 bits without a pattern (splitmix64)."""
    import numpy as np

    mixed = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
