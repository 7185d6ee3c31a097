"""The structure of a text: chapters out of a file that holds one or a whole book.

    title page, contents, licence        left out, and said so
    CHAPTER I.        -> a chapter       a hard border: no passage crosses it
    * * *             -> SCENE           a soft one: a good place to end a passage

Every word of the file is in a paragraph, in a title, or in what was left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tunesmith.data.headings import (
    LEVELS,
    Block,
    Heading,
    headings_of,
    is_caption,
    numerals_in_order,
    read_heading,
    without_contents,
)
from tunesmith.data.unwrap import UNWRAPPED, Layout, layout_of, unwrap

SCENE = "* * *"
START = re.compile(r"(?im)^\s*\*\*\*\s*START OF (?:THE|THIS) PROJECT GUTENBERG.*$")
END = re.compile(r"(?im)^\s*\*\*\*\s*END OF (?:THE|THIS) PROJECT GUTENBERG.*$")
CREDITS = re.compile(r"(?i)\b(copyright|all rights reserved|isbn|published by|printed (in|by)|produced by|e-?text prepared|"
                     r"transcrib(ed|er)|project gutenberg)\b|©")
THE_END = re.compile(r"(?i)[\s_*]*(the end|finis|end of (the )?project gutenberg.*)[\s_*.!]*")
ASIDE = re.compile(r"(?is)[\s_*(\[]*end of (the )?(\w+ )?(volume|book|part)\b.{0,20}|\s*\[illustration\b[^\]]*\]\s*")
EDITOR = re.compile(r"(?i)[\s_*#\[]*((a )?notes? on the text|(the )?transcriber['’]?s['’]? notes?)[\s_*:.\]]*")
EDITOR_WITHIN = 0.9
"""Share of a file's blocks after which such a note is looked for."""
SCENE_BREAK = re.compile(r"\s*(?:(?:[*⁂•~#—–_+=.-]\s*){3,}|[⁂*§])\s*")
PROSE_WORDS = 8


@dataclass(frozen=True, slots=True)
class Chapter:
    title: str
    """As in the file, with the parts it stands in: `VOLUME II, CHAPTER III`. Empty where no heading stands above the text."""
    paragraphs: list[str]
    """Verse keeps its line ends. SCENE stands for a scene break, never first or last."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A part of a file that is not the author's text."""

    what: str
    text: str

    def __str__(self) -> str:
        words = self.text.split()
        return f"{self.what}, {len(words):,} words: {' '.join(words[:8])}{' ...' if len(words) > 8 else ''}"


@dataclass(frozen=True, slots=True)
class Book:
    chapters: list[Chapter]
    left_out: list[LeftOut]


def read_book(text: str) -> Book:
    """Chapters of one file, in order, and what was left out. A file without a heading is one chapter."""
    text, left_out = _without_licence(re.sub(r"\r\n?", "\n", text).replace("\f", "\n\n"))
    blocks = [b.split("\n") for b in re.split(r"\n(?:[^\S\n]*\n)+", text.strip("\n")) if b.strip()]
    layout = layout_of(blocks)
    if layout.width > UNWRAPPED:
        blocks = [part for block in blocks for part in _apart(block)]
    blocks, asides = _without_asides(blocks)
    blocks, listed = without_contents(blocks)
    left_out += [LeftOut("table of contents", "\n".join(listed))] if listed else []
    left_out += asides
    chapters = []
    sections, empty = _sections(blocks)
    for i, (titles, body) in enumerate(sections):
        below = sections[1][0] if i == 0 and len(sections) > 1 else []
        front = _title_page(body) if len(below) > len(titles) and below[: len(titles)] == titles else 0
        if front:
            left_out.insert(0, LeftOut("title page", "\n".join(line for block in body[:front] for line in block)))
        if paragraphs := _paragraphs(body[front:], layout):
            chapters.append(Chapter(", ".join(h.title for h in titles), paragraphs))
        else:  # all of it is title page: a heading that stands above nothing else would be told nowhere
            others = [h for n, (above, _) in enumerate(sections) if n != i for h in above]
            empty += [h for h in titles if not any(h is other for other in others)]
    left_out += [LeftOut("heading without text", h.title) for h in empty]
    return Book(chapters, left_out)


def _without_licence(text: str) -> tuple[str, list[LeftOut]]:
    """The text between Project Gutenberg's markers."""
    start, end = START.search(text), END.search(text)
    parts = (("header and licence", text[: start.end()] if start else ""), ("licence", text[end.start() :] if end else ""))
    inside = text[start.end() if start else 0 : end.start() if end else len(text)]
    return inside, [LeftOut(what, part) for what, part in parts if part]


def _apart(block: Block) -> Iterator[Block]:
    """A block of a text without empty lines: headings and scene breaks are blocks of their own."""
    part: Block = []
    for line in block:
        if read_heading(line) or SCENE_BREAK.fullmatch(line):
            yield from [part] if part else []
            yield [line]
            part = []
        else:
            part.append(line)
    if part:
        yield part


def _without_asides(blocks: list[Block]) -> tuple[list[Block], list[LeftOut]]:
    """Without `THE END`, `End of Volume I`, `[Illustration]` and what an editor says below the text."""
    kept, left_out = list(blocks), []
    note = next((i for i, b in enumerate(kept) if i > EDITOR_WITHIN * len(kept) and EDITOR.fullmatch(b[0])), len(kept))
    if note < len(kept):
        left_out.append(LeftOut("editor's note", "\n".join(line for b in kept[note:] for line in b)))
        del kept[note:]
    while kept and THE_END.fullmatch(" ".join(kept[-1])):
        left_out.append(LeftOut("end mark", " ".join(kept.pop())))
    asides = [b for b in kept if ASIDE.fullmatch("\n".join(b))]
    left_out += [LeftOut("aside", " ".join(b)) for b in asides]
    return [b for b in kept if not ASIDE.fullmatch("\n".join(b))], left_out


def _sections(blocks: list[Block]) -> tuple[list[tuple[list[Heading], list[Block]]], list[Heading]]:
    """((headings above it, outermost first), its blocks) of all text, and headings that have none below them."""
    numerals = numerals_in_order(blocks)
    sections: list[tuple[list[Heading], list[Block]]] = []
    above: list[list] = []  # [heading, whether text stands below it]
    empty: list[Heading] = []
    body: list[Block] | None = None
    for i, block in enumerate(blocks):
        found, rest = headings_of(block, numerals)
        for heading in found:
            while above and above[-1][0].level >= heading.level:
                closed, used = above.pop()
                empty += [] if used else [closed]
            above.append([heading, False])
            body = None
        if not rest or body is None and _is_scene_break(rest):
            continue
        if body is None and above and not found and _is_subtitle(blocks, i, numerals):
            last = above[-1][0]
            above[-1][0] = Heading(f"{last.title} {' '.join(line.strip() for line in rest)}", last.level)
            continue
        if body is None:
            body = []
            sections.append(([h for h, _ in above], body))
            for entry in above:
                entry[1] = True
        body.append(rest)
    return sections, empty + [h for h, used in above if not used]


def _is_scene_break(block: Block) -> bool:
    return len(block) == 1 and SCENE_BREAK.fullmatch(block[0]) is not None


def _is_subtitle(blocks: list[Block], i: int, numerals: bool) -> bool:
    """Whether a block right below a heading (Markdown's hold their title) names the chapter whose text comes next."""
    above = headings_of(blocks[i - 1], numerals)[0] if i else []
    text_follows = i + 1 < len(blocks) and not headings_of(blocks[i + 1], numerals)[0]
    return bool(above) and above[-1].level >= LEVELS["volume"] and text_follows and is_caption(blocks[i])


def _title_page(body: list[Block]) -> int:
    """How many blocks before the first chapter are title, author, year and credits: those before the first prose."""
    for i, block in enumerate(body):
        text = " ".join(block)
        prose = len(text.split()) >= PROSE_WORDS and re.search(r"[.!?…][\"”’')_*]*\s*$", text)
        if not CREDITS.search(text) and (prose or text.lstrip()[:1] in "\"“«"):
            return i
    return len(body)


def _paragraphs(body: list[Block], layout: Layout) -> list[str]:
    out: list[str] = []
    for block in body:
        if _is_scene_break(block):
            out += [SCENE] if out and out[-1] != SCENE else []
        else:
            out += unwrap(block, layout)
    return out[:-1] if out and out[-1] == SCENE else out
