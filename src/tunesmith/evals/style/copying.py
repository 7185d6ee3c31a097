"""What of a text stands word for word in the training text: the longest run, where it is from, and how much there is of it.

    training   ... to be the matter no more said Anne she had ...
    output         "The matter -- no more!" said Anne, and went        run of 5 words: the matter no more said anne

Words are compared in lower case and without punctuation; characters as they are, with white space as one blank. Both are
exact: a suffix array of the training text (Manber and Myers, SIAM J. Computing 22, 1993, by prefix doubling) is searched for
every place of the output, so that the longest match of each place is known. No run crosses from one training passage to
the next.

    Source(texts, places).check("...")  ->  {"words": 9, "copied": 0, "longest": {"words": 5, "from": ..., ...}}
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from tunesmith.data.voice import WORD
from tunesmith.evals.statistics import paired_bootstrap
from tunesmith.evals.style.text import words_of

COPIED = 8
"""Words in a row from which a run counts as copied, when the share of a text that is copied is counted."""
AROUND = 12
"""Words shown on either side of a run in the training text."""


def suffix_array(symbols: np.ndarray) -> np.ndarray:
    """Starts of all suffixes of an array of non-negative integers, in the order of the suffixes.

    Prefix doubling: ranks by the first 1, 2, 4, ... symbols, until all differ. n log^2 n.
    """
    n = len(symbols)
    if n == 0:
        return np.zeros(0, np.int64)
    rank = np.unique(symbols, return_inverse=True)[1].astype(np.int64)
    reach = 1
    while True:
        after = np.zeros(n, np.int64)
        after[: max(0, n - reach)] = rank[reach:] + 1  # 0: the text has ended
        keys = rank * (n + 1) + after
        order = np.argsort(keys, kind="stable")
        ranked = keys[order]
        new = np.concatenate([[0], np.cumsum(ranked[1:] != ranked[:-1])])
        rank = np.empty(n, np.int64)
        rank[order] = new
        if new[-1] == n - 1:
            return order
        reach *= 2


@dataclass(frozen=True, slots=True)
class Run:
    """A stretch that stands in the training text too. Counted in words, or in characters."""

    length: int
    start: int
    """Where in the text that was checked."""
    passage: int
    """Which training text."""
    at: int
    """Where in that."""


class Index:
    """Training texts as sequences of symbols, ready to be searched."""

    def __init__(self, texts: Sequence[Sequence[str]]):
        kinds = sorted(set(chain.from_iterable(texts)))
        self._ids = {symbol: i + len(texts) for i, symbol in enumerate(kinds)}
        joined: list[int] = []
        starts = []
        for number, text in enumerate(texts):  # a border is a symbol of its own, so that no run crosses it
            starts.append(len(joined))
            joined += [self._ids[symbol] for symbol in text]
            joined.append(number)
        self._joined, self._starts = joined, np.array(starts, dtype=np.int64)
        self._order = suffix_array(np.array(joined, dtype=np.int64)).tolist()

    def matches(self, text: Sequence[str]) -> list[tuple[int, int]]:
        """For every place of a text: (length of the longest run from there that a training text has, where in the joined)."""
        asked = [self._ids.get(symbol, -1) for symbol in text]
        found = []
        for start in range(len(asked)):
            best = (0, 0)
            wanted = asked[start:]
            place = bisect_left(self._order, wanted, key=lambda at, n=len(wanted): self._joined[at : at + n])
            for near in self._order[max(0, place - 1) : place + 1]:  # the two suffixes that it would stand between
                length = 0
                while (length < len(wanted) and near + length < len(self._joined)
                       and self._joined[near + length] == wanted[length]):
                    length += 1
                best = max(best, (length, near), key=lambda pair: pair[0])
            found.append(best)
        return found

    def longest(self, text: Sequence[str], matches: list[tuple[int, int]] | None = None) -> Run | None:
        """The longest run, the first of equals. None where the texts share nothing."""
        matches = self.matches(text) if matches is None else matches
        start = max(range(len(matches)), key=lambda i: matches[i][0], default=0)
        if not matches or not matches[start][0]:
            return None
        length, at = matches[start]
        passage = int(np.searchsorted(self._starts, at, side="right")) - 1
        return Run(length, start, passage, at - int(self._starts[passage]))


def covered(matches: list[tuple[int, int]], least: int = COPIED) -> int:
    """How many places of a text stand in runs of at least so many."""
    inside, end = 0, 0
    for start, (length, _) in enumerate(matches):
        if length >= least:
            inside += start + length - max(start, end)
            end = start + length
        # the run from the next place ends no earlier: a longest match loses at most its first symbol
    return inside


class Source:
    """The training text, by words and by characters. `places` says where each passage stands, for readers."""

    def __init__(self, texts: Sequence[str], places: Sequence[str]):
        self.texts, self.places = list(texts), list(places)
        self._words = Index([words_of(t) for t in texts])
        self._characters = Index([" ".join(t.split()) for t in texts])

    def check(self, text: str) -> dict:
        """`{words, copied, longest}` of one text: words of it, how many stand in runs of COPIED or more, the longest run.

        `longest` is None or `{words, characters, text, before, after, from, source_before, source, source_after}`; of
        characters it says how long the longest run of them is, which may be another.
        """
        words = words_of(text)
        matches = self._words.matches(words)
        run = self._words.longest(words, matches)
        if run is None:
            return {"words": len(words), "copied": 0, "longest": None}
        characters = self._characters.longest(" ".join(text.split()))
        before, inside, after = cut(text, run.start, run.length)
        source_before, source, source_after = cut(self.texts[run.passage], run.at, run.length)
        longest = {"words": run.length, "characters": characters.length if characters else 0, "text": inside,
                   "before": before, "after": after, "from": self.places[run.passage], "source_before": source_before,
                   "source": source, "source_after": source_after}
        return {"words": len(words), "copied": covered(matches), "longest": longest}


def cut(text: str, start: int, length: int) -> tuple[str, str, str]:
    """(some words before it, the run as it is written, some words after it)."""
    spans = [m.span() for m in WORD.finditer(text)]
    begin, end = spans[start][0], spans[start + length - 1][1]
    first = spans[max(0, start - AROUND)][0]
    last = spans[min(len(spans), start + length + AROUND) - 1][1]
    return text[first:begin], text[begin:end], text[end:last]


def copied(source: Source, texts: Sequence[str]) -> dict:
    """What texts have of the training text: `{texts, share, ci95, longest, all}`.

    `share` is of their words; the interval resamples texts. `longest` is the longest run of all of them, with `text_number`.
    """
    found = [source.check(text) for text in texts]
    own, total = (np.array([one[key] for one in found], dtype=float) for key in ("copied", "words"))
    share, ci95 = None, None
    if total.sum():
        share = float(own.sum() / total.sum())
        ci95 = list(paired_bootstrap(lambda w_RN: (w_RN @ own) / np.maximum(w_RN @ total, 1), len(found)))
    runs = [one["longest"]["words"] if one["longest"] else 0 for one in found]
    at = int(np.argmax(runs)) if runs else 0
    longest = found[at]["longest"] | {"text_number": at} if runs and runs[at] else None
    return {"texts": len(texts), "share": share, "ci95": ci95, "longest": longest, "runs": runs}
