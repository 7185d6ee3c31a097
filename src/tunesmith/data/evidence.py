"""What two rows share, with its place in both: a finding that shows nothing has to be believed."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

from tunesmith.data.quality.evidence import mask
from tunesmith.data.rows import Row
from tunesmith.data.similar import jaccard, shingles

QUOTED = 60
LOOKED_AT = 4000
"""Words of each text that are compared for the quotation: the finding itself has read all of them."""
_WORD = re.compile(r"\w+")


def shared_run(one: str, other: str) -> tuple[slice, slice]:
    """Where the longest run of equal words stands in both texts, case aside; nothing shared gives empty slices."""
    if one == other:
        return slice(0, len(one)), slice(0, len(other))
    words = [[(m.start(), m.end(), m[0].casefold()) for m in _WORD.finditer(text)][:LOOKED_AT] for text in (one, other)]
    match = SequenceMatcher(None, *([word for _, _, word in side] for side in words), autojunk=False).find_longest_match()
    if not match.size:
        return slice(0, 0), slice(0, 0)
    return tuple(slice(side[at][0], side[at + match.size - 1][1])
                 for side, at in zip(words, (match.a, match.b), strict=True))


def evidence(row: Row, other: Row, sign: str = "~") -> str:
    """`a.jsonl:3 ~ b.jsonl:7 question [0:41] ~ [9:50] "The mill at ..." similarity 0.93`: the longest text they share."""
    sides = [("question", row.prompt, other.prompt), ("answer", row.answer, other.answer)]
    shared = [(name, a, *shared_run(a, b)) for name, a, b in sides]
    side, text, found, theirs = max(shared, key=lambda one: one[2].stop - one[2].start)
    quoted = " ".join(mask(text)[found].split())
    quoted = f"{quoted[:QUOTED]}..." if len(quoted) > QUOTED else quoted
    similarity = min(jaccard(shingles(a), shingles(b)) for _, a, b in sides)
    return (f"{row.where} {sign} {other.where} {side} [{found.start}:{found.stop}] {sign} [{theirs.start}:{theirs.stop}] "
            f'"{quoted}" similarity {similarity:.2f}')
