"""What the data room computes with arrays and tables, once more with dictionaries, text by text."""

from __future__ import annotations

from collections import Counter, defaultdict

from tunesmith.data.boilerplate import BORDER, FEW, LONG, SHARE
from tunesmith.data.similar import fold

GRAM = 5


def grams(text):
    """The shingles of a text in order."""
    padded = f" {fold(text)} "
    return [padded[i : i + GRAM] for i in range(max(1, len(padded) - GRAM + 1))]


def stretches(said, common):
    """(first, behind the last) of each run of LONG or more common shingles."""
    out, start = [], None
    for i, gram in enumerate([*said, None]):
        if gram in common:
            start = i if start is None else start
        else:
            if start is not None and i - start >= LONG:
                out.append((start, i))
            start = None
    return out


def windows(said, common):
    """(LONG common shingles in a row, [the shingle before], [the one after]); of a text's end, none."""
    for start, stop in stretches(said, common):
        for i in range(start, stop - LONG + 1):
            yield tuple(said[i : i + LONG]), said[max(0, i - 1) : i], said[i + LONG : i + LONG + 1]


def without_boilerplate(texts):
    """For each text the set of its shingles that stand in it outside of what many of them share; all if none does."""
    different = [grams(text) for text in {fold(text): None for text in texts}]
    holders = Counter(gram for said in different for gram in set(said))
    limit = max(FEW, SHARE * len(different))
    common = {gram for gram, n in holders.items() if n > limit}
    here, before, after = Counter(), defaultdict(Counter), defaultdict(Counter)
    for said in different:
        for window, led, followed in windows(said, common):
            here[window] += 1
            before[window].update(led)
            after[window].update(followed)
    begins, ends = ({window for window, n in here.items()
                     if n > limit and max(side[window].values(), default=0) <= (1 - BORDER) * n} for side in (before, after))

    def own(said):
        left = set(range(len(said)))
        for start, stop in stretches(said, common):
            first = [i for i in range(start, stop - LONG + 1) if tuple(said[i : i + LONG]) in begins]
            last = [i + LONG for i in range(start, stop - LONG + 1) if tuple(said[i : i + LONG]) in ends]
            if first and last and last[-1] - first[0] >= LONG:
                left -= set(range(first[0], last[-1]))
        return {said[i] for i in left or range(len(said))}

    return [own(grams(text)) for text in texts]
