"""Paragraphs to passages of a size, cut where a reader would put the book down.

    end of the chapter > a scene break > a paragraph > a sentence      the first of these that leaves it at least half full

A passage is never longer than asked for unless a single sentence is. The last two of a chapter share what is left about
equally, so that no crumb remains; a chapter shorter than a passage is one passage, however short.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from tunesmith.data.chapters import SCENE

Measure = Callable[[str], int]
"""How long a text is: its tokens, or its words."""

ABBREVIATION = re.compile(
    r"mr|mrs|ms|messrs|mme|mlle|dr|st|sr|jr|esq|hon|rev|capt|col|gen|lt|sgt|maj|adm|cpt|prof|gov|sen|rep|pres|eds?|cf|viz|"
    r"vs|al|e\.g|i\.e|&c|etc|approx|dept|inc|ltd|co|bros|mt|ft|jan|feb|mar|apr|aug|sept?|oct|nov|dec|a\.m|p\.m",
    re.IGNORECASE)
NUMBERS = re.compile(r"nos?|vols?|ch|chap|pp?|fig|art", re.IGNORECASE)
"""Abbreviations only before a number: "No." is a sentence."""
ENDING = re.compile(r"[.!?…]+[\"”»’')\]_*]*(?=\s)|\n")
"""What may end a sentence: the mark, and the quotation marks that close with it. The end of a line of verse does."""
SCENE_END, PARAGRAPH_END, SENTENCE_END, POOR = range(4)
"""Kinds of border, the best first."""
LEAD_IN = re.compile(r"(?:[,:]|-|—|–)$")
OPENING = re.compile(r"[\"“«‘'(\[_*—–-]*[^\W_]")


@dataclass(frozen=True, slots=True)
class Passage:
    text: str
    repeated: int = 0
    """Characters at its beginning that the passage before it ends with."""
    speaking: bool = False
    """Whether it begins inside of a speech, so that its first quotation mark is a closing one."""


@dataclass(frozen=True, slots=True)
class _Sentence:
    text: str
    size: int
    gap: str
    """White space before it: a blank, a line end of verse, or an empty line between paragraphs."""
    scene: bool = False
    """Whether a scene break stands before it."""
    speaking: bool = False
    """Whether a speech that began before it goes on in it."""


def sentences(paragraph: str) -> list[tuple[str, str]]:
    """(white space before it, sentence) of a paragraph: joined they are the paragraph."""
    out, start, gap = [], 0, ""
    for found in ENDING.finditer(paragraph):
        end = found.start() if found[0] == "\n" else found.end()
        if end <= start or found[0] != "\n" and not _ends(paragraph, found):
            continue
        white = re.compile(r"\s*").match(paragraph, end)[0]
        out.append((gap, paragraph[start:end]))
        start, gap = end + len(white), white
    return [*out, (gap, paragraph[start:])] if start < len(paragraph) else out


def _ends(text: str, mark: re.Match) -> bool:
    """Whether a mark ends its sentence: not in `Mr. Elliot`, `J. Austen`, `&c. and`, or `"Really?" cried she`."""
    after = text[mark.end() :].lstrip()[:8]
    opening = OPENING.match(after)
    if not opening or opening[0][-1].islower():
        return False
    if mark[0][0] != "." or mark[0].startswith(".."):
        return True
    word = re.search(r"\S*$", text[: mark.start()])[0].lstrip("\"“«‘'([_*—-")
    if NUMBERS.fullmatch(word) and re.match(r"[\dIVXLC]+\b", after):
        return False
    return not ABBREVIATION.fullmatch(word) and not (len(word) == 1 and word.isupper() and word != "I")


def passages(paragraphs: list[str], size: int, measure: Measure, overlap: int = 0) -> list[Passage]:
    """Passages of a chapter. Scene breaks between two passages are dropped, those inside of one stay.

    `overlap` is how much each repeats of the one before it, at most, in whole sentences.
    """
    units = _units(paragraphs, measure)
    out: list[Passage] = []
    own = start = 0
    while own < len(units):
        end = _end(units, start, own, size, measure)
        while start < own and (end == own + 1) and _longer(units, start, end, size, measure):
            start += 1
            end = _end(units, start, own, size, measure)
        text = _text(units, start, end)
        out.append(Passage(text, len(text) - len(_text(units, own, end)) if start < own else 0,
                           units[start].speaking))
        start = own = end
        while start > 0 and sum(u.size for u in units[start - 1 : own]) <= overlap:
            start -= 1
    return out


def _units(paragraphs: list[str], measure: Measure) -> list[_Sentence]:
    out: list[_Sentence] = []
    scene = False
    for paragraph in paragraphs:
        if paragraph == SCENE:
            scene = True
            continue
        told = ""
        for i, (gap, text) in enumerate(sentences(paragraph)):
            out.append(_Sentence(text, measure(f" {text}"), gap if i else "\n\n", scene and not i, _is_open(told)))
            told += text
        scene = False
    return out


def _is_open(text: str) -> bool:
    """Whether a quotation that began in a text has not ended. Paragraphs begin outside of one, or with a mark."""
    return text.count('"') % 2 == 1 or text.count("“") > text.count("”") or text.count("«") > text.count("»")


def _text(units: list[_Sentence], start: int, end: int) -> str:
    scene = f"\n\n{SCENE}"
    return units[start].text + "".join((scene if u.scene else "") + u.gap + u.text for u in units[start + 1 : end])


def _longer(units: list[_Sentence], start: int, end: int, size: int, measure: Measure) -> bool:
    return measure(_text(units, start, end)) > size


def _end(units: list[_Sentence], start: int, own: int, size: int, measure: Measure) -> int:
    """Where the passage that begins at `start`, and has to get beyond `own`, ends."""
    filled, end = 0, start
    while end < len(units) and filled + units[end].size <= size:
        filled += units[end].size
        end += 1
    end = max(end, own + 1)
    while end > own + 1 and _longer(units, start, end, size, measure):  # sizes of sentences do not add up to the token
        end -= 1
    if end == len(units):
        return end
    left = sum(u.size for u in units[start:])
    if left <= 1.5 * size:
        return _border(units, start, own, end, left / 2)
    return _border(units, start, own, end, size)


def _border(units: list[_Sentence], start: int, own: int, end: int, wanted: float) -> int:
    """The best place to end among those that fit: the best kind of border, and of these the nearest to what is wanted.

    A border counts where it is at most half of what is wanted off. Where there is none, the nearest sentence end is taken.
    """
    best: dict[int, tuple[float, int]] = {}
    filled = sum(u.size for u in units[start:own])
    for i in range(own + 1, end + 1):
        filled += units[i - 1].size
        off = abs(wanted - filled)
        for kind in ([_kind(units, i)] if off <= wanted / 2 else []) + [POOR]:
            best[kind] = min(best.get(kind, (off, i)), (off, i))
    return best[min(best)][1]


def _kind(units: list[_Sentence], i: int) -> int:
    """How good it is to end before sentence `i`.

    Poor: between `She said:` and the speech, or where one sentence of a paragraph would stand alone.
    """
    if units[i].scene:
        return SCENE_END
    if units[i].gap == "\n\n":
        return POOR if LEAD_IN.search(units[i - 1].text) else PARAGRAPH_END
    alone = units[i - 1].gap == "\n\n" or i + 1 == len(units) or units[i + 1].gap == "\n\n"
    return POOR if alone else SENTENCE_END
