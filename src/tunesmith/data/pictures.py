"""What the data card draws of rows that resemble each other: small excerpts with the telling words marked.

    near-duplicates   sizes of the groups, and of the largest groups a few rows with the words that differ
    leaks             a held-out row beside the training row it stands in, with the passage that they share

An excerpt is a list of `[kind, text]`, kind being `same`, `mark` (empty where only the other text has something) or `cut`
(something was left out here). Everything is bounded: however large the data, a manifest grows by some 60 kB at most.
Personal data and secrets are masked before they are written.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import pairwise

from tunesmith.data.evidence import shared_run
from tunesmith.data.leaks import PARTIAL, REFUSING, Leak
from tunesmith.data.quality.evidence import mask
from tunesmith.data.rows import Row

GROUPS, MEMBERS, PAIRS = 3, 3, 3
"""Groups that are drawn, rows of each, and pairs of each kind of leak in each held-out set."""
LOOKED_AT = 50
"""Members of a group among which rows that say something else are looked for."""
AROUND, LONGEST_MARK, SHOWN = 80, 240, 480
"""Characters beside a mark, of a mark, and of an excerpt in all (one more mark may end it)."""
WHOLE = 240
"""A text of so many characters is shown as a whole."""
COMPARED = 600
"""Words and signs of each text that are compared for marks."""
LEAST_WORDS = 3
"""A shorter run of equal words is no passage, unless it is half of a text."""
_IDEOGRAM = "\u3040-\u30ff\u3400-\u9fff"
_WORDS = re.compile(rf"[{_IDEOGRAM}]|(?:(?![{_IDEOGRAM}])\w)+|\s+|[^\w\s]+")
Excerpt = list[list[str]]
Span = tuple[int, int]


class Pictures:
    """Excerpts for the card, gathered while the rows are at hand."""

    def __init__(self) -> None:
        self._near: dict = {"sizes": {}, "groups": []}
        self._leaks: list[dict] = []

    def see(self, train: Sequence[Row], groups: list[list[int]], leaks: list[Leak]) -> None:
        """`groups` as `similar.Index.groups` gives them, numbers of `train`; `leaks` as `leaks.every_leak` does."""
        largest = sorted(groups, key=len, reverse=True)[:GROUPS]
        self._near = {"sizes": {str(n): count for n, count in sorted(Counter(map(len, groups)).items())},
                      "groups": [{"size": len(g), "rows": group(_different([train[n] for n in g[:LOOKED_AT]]))}
                                 for g in largest]}
        kinds = dict.fromkeys((leak.set_name, code) for leak in leaks for code in (*REFUSING, *PARTIAL))
        for name, code in kinds:
            if found := [leak for leak in leaks if (leak.set_name, leak.code) == (name, code)]:
                self._leaks.append({"set": name, "code": code, "count": len(found),
                                    "pairs": [pair(leak.row, leak.train) for leak in found[:PAIRS]]})

    def as_dict(self) -> dict:
        """`{near: {sizes: {"2": 7}, groups: [{size, rows}]}, leaks: [{set, code, count, pairs}]}`."""
        return {"near": self._near, "leaks": self._leaks}


def group(rows: list[Row]) -> list[dict]:
    """`[{where, question, answer}]`: each row against the first one, and the first against all the others."""
    sides = []
    for texts in ([r.prompt for r in rows], [r.answer for r in rows]):
        spans: list[list[Span]] = [[] for _ in texts]
        for i, text in enumerate(texts[1:], 1):
            first, own = differing(texts[0], text)
            spans[0] += first
            spans[i] += own
        sides.append([excerpt(text, marked) for text, marked in zip(texts, spans, strict=True)])
    return [{"where": row.where, "question": q, "answer": a} for row, q, a in zip(rows, *sides, strict=True)]


def pair(held_out: Row, train: Row) -> dict:
    """`{held_out, train}`, each `{where, question, answer}`, with the longest passage that each held-out text shares."""
    ours, theirs = ([row.prompt, row.answer] for row in (held_out, train))
    marks: tuple[list[list[Span]], list[list[Span]]] = ([[], []], [[], []])
    for i, text in enumerate(ours):
        runs = [(*shared_run(text, other), j) for j, other in enumerate(theirs)]
        here, there, j = max(runs, key=lambda run: (run[0].stop - run[0].start, run[2] == i))
        if _telling(text, here) or _telling(theirs[j], there):
            marks[0][i].append((here.start, here.stop))
            marks[1][j].append((there.start, there.stop))
    return {name: {"where": row.where, "question": excerpt(texts[0], spans[0]), "answer": excerpt(texts[1], spans[1])}
            for name, row, texts, spans in (("held_out", held_out, ours, marks[0]), ("train", train, theirs, marks[1]))}


def differing(one: str, other: str) -> tuple[list[Span], list[Span]]:
    """Where the words of two texts differ, in both. What only one text has is an empty span in the other."""
    words = [[m.span() for m in _WORDS.finditer(text)] for text in (one, other)]
    said = [[text[a:b] for a, b in spans[:COMPARED]] for text, spans in zip((one, other), words, strict=True)]
    changes = [c for c in SequenceMatcher(None, *said, autojunk=False).get_opcodes() if c[0] != "equal"]
    if changes and max(map(len, words)) > COMPARED and (changes[-1][2] == len(said[0]) or changes[-1][4] == len(said[1])):
        changes.pop()  # where the comparison ends, not the text
    ours, theirs = ([_words_span(spans, c[at], c[at + 1]) for c in changes] for spans, at in zip(words, (1, 3), strict=True))
    return ours, theirs


def _words_span(spans: list[Span], first: int, last: int) -> Span:
    if first == last:
        at = spans[first][0] if first < len(spans) else spans[-1][1] if spans else 0
        return at, at
    return spans[first][0], spans[last - 1][1]


def excerpt(text: str, marked: list[Span]) -> Excerpt:
    """The marked spans with their surroundings, masked, in some SHOWN characters. Marks that only white space parts are one."""
    masked, found, size = mask(text), [], 0
    borders, around = _joined(text, marked), AROUND if len(text) > WHOLE else WHOLE
    if not borders:
        return _plain(masked, 2 * around, 0)
    edges = [(0, 0), *borders]
    for n, ((_, before), (start, end)) in enumerate(pairwise(edges)):
        if size > SHOWN:
            return [*found, ["cut", "…"]]
        mark = masked[start:end]
        bold = [["mark", mark]] if len(mark) <= LONGEST_MARK else \
            [["mark", _head(mark, LONGEST_MARK - AROUND)], ["cut", "…"], ["mark", _tail(mark, AROUND)]]
        new = [*_plain(masked[before:start], around if n else 0, around), *bold]
        found += new
        size += sum(len(piece) for _, piece in new)
    return [*found, *_plain(masked[borders[-1][1] :], around, 0)]


def _plain(text: str, head: int, tail: int) -> Excerpt:
    """A run without marks: so many characters of its beginning and its end, whole words where there are any."""
    if len(text) <= head + tail:
        return [["same", text]] if text else []
    pieces = ["same", _head(text, head)], ["cut", "…"], ["same", _tail(text, tail)]
    return [piece for piece in pieces if piece[1]]


def _head(text: str, most: int) -> str:
    return text[:most].rsplit(" ", 1)[0]


def _tail(text: str, most: int) -> str:
    return text[-most:].split(" ", 1)[-1] if most else ""


def _joined(text: str, marked: list[Span]) -> list[Span]:
    joined: list[Span] = []
    for start, end in sorted(marked):
        if joined and (start <= joined[-1][1] or text[joined[-1][1] : start].isspace()):
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        else:
            joined.append((start, end))
    return joined


def _telling(text: str, run: slice) -> bool:
    return run.stop > run.start and (len(text[run].split()) >= LEAST_WORDS or 2 * (run.stop - run.start) >= len(text))


def _different(rows: list[Row]) -> list[Row]:
    """The first row and others with another text, in order; the same texts only where there are no others."""
    texts = {(row.prompt, row.answer): row for row in reversed(rows)}
    chosen = [row for row in rows if texts[row.prompt, row.answer] is row]
    return (chosen if len(chosen) > 1 else rows)[:MEMBERS]
