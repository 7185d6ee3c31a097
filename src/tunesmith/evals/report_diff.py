"""An answer in pieces beside its reference: what is the same, what is extra, what is missing."""

import difflib
import re
from collections.abc import Sequence

# A word, a run of spaces, or one sign. Chinese and Japanese have no spaces: each character is a word.
TOKEN = re.compile(r"\s+|[぀-ゖァ-ヿ㐀-鿿豈-﫿]|[!-/:-@\[-^`{-~]|[^\s!-/:-@\[-^`{-~぀-ゖァ-ヿ㐀-鿿豈-﫿]+")
MOST_DIFF_CELLS = 250_000
"""Words of the reference times words of the answer. Beyond it the differing middle is marked as a whole."""


def diff_words(reference: str, answer: str) -> list[tuple[str, str]]:
    """The answer in pieces: same, extra (only in the answer), missing (only in the reference).

    same + extra, joined, is the answer; same + missing is the reference. Spaces between two changed words count as
    changed, so that a replaced phrase is one mark and not one for each word.
    """
    ours, theirs = TOKEN.findall(reference), TOKEN.findall(answer)
    if len(ours) * len(theirs) <= MOST_DIFF_CELLS:
        opcodes = difflib.SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes()
    else:
        opcodes = ends_only(ours, theirs)
    pieces: list[tuple[str, str]] = []
    missing = extra = ""
    for n, (tag, i, i_end, j, j_end) in enumerate(opcodes):
        same = "".join(ours[i:i_end])
        if tag != "equal":
            missing, extra = missing + same, extra + "".join(theirs[j:j_end])
        elif same.isspace() and (missing or extra) and n + 1 < len(opcodes):
            missing, extra = missing + same, extra + same
        else:
            pieces += [("missing", missing), ("extra", extra), ("same", same)]
            missing = extra = ""
    pieces += [("missing", missing), ("extra", extra)]
    return [piece for piece in pieces if piece[1]]


def ends_only(ours: list[str], theirs: list[str]) -> list[tuple[str, int, int, int, int]]:
    """Opcodes that find only the common beginning and end: linear, for texts too long to compare word by word."""
    head = common_start(ours, theirs)
    tail = common_start(ours[: head - len(ours) - 1 : -1], theirs[: head - len(theirs) - 1 : -1])
    i, j = len(ours) - tail, len(theirs) - tail
    codes = [("equal", 0, head, 0, head), ("replace", head, i, head, j), ("equal", i, len(ours), j, len(theirs))]
    return [code for code in codes if code[1] < code[2] or code[3] < code[4]]


def common_start(one: Sequence[str], other: Sequence[str]) -> int:
    """How many leading elements two sequences share."""
    return next((k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
