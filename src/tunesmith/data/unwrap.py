"""Lines to paragraphs: a line end that only made the text fit its width is a space again, one that was meant stays.

    It was a dark night, and the rain      wrapped: "fell" would not have fitted above     -> one line
    fell in torrents.

    Tyger Tyger, burning bright,           verse: "In" would have fitted                   -> two lines
    In the forests of the night;

    "Yes," said she.                       talk without empty lines between                -> two paragraphs
    "No," said he.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

UNWRAPPED = 120
"""Lines this long were not wrapped by hand: every line end is meant."""
FULL = 0.8
"""Share of the wrap width from which a line counts as full: hand-edited books are not wrapped to the letter."""
CLOSED = re.compile(r"[.!?…][\"”»’')\]_*]*$")
QUOTE = re.compile("[\"“”«»„]|^[—–]")
LIST_ITEM = re.compile(r"\s*(?:[-*+•>|]|\d+[.)])\s")
LETTER = r"[^\W\d_]"
HYPHEN = re.compile(rf"({LETTER}+)-$")


@dataclass(frozen=True, slots=True)
class Layout:
    """How a file is set: learned from all of it, used for each of its blocks."""

    width: int
    """Characters of a full line."""
    words: frozenset[str]
    """Folded, as they stand inside of lines."""
    tight_dashes: bool
    """Whether dashes stand between words without spaces, so that one at a line end takes none."""


def layout_of(blocks: list[list[str]]) -> Layout:
    """The wrap width is what one line in twenty, of those that another one follows, reaches or passes."""
    lengths = sorted(len(line.rstrip()) for block in blocks for line in block[:-1])
    text = "\n".join(line for block in blocks for line in block)
    words = {w.casefold() for w in re.findall(rf"(?<![\w-]){LETTER}+(?![\w-])", text)}
    return Layout(lengths[len(lengths) * 19 // 20] if lengths else 0, frozenset(words),
                  bool(re.search(r"\w(?:--|—)\w", text)))


def unwrap(block: list[str], layout: Layout) -> list[str]:
    """Paragraphs of a block, usually one."""
    lines = [re.sub(r"(?<=\S) {2,}(?=\S)", " ", line.strip()) for line in block]
    wrapped = [_is_wrapped(line, after, layout) for line, after in zip(block, block[1:], strict=False)]
    if not all(wrapped) and _is_verse(block, layout):
        wrapped = [False] * len(wrapped)
    out = lines[:1]
    for i, text in enumerate(lines[1:]):
        if wrapped[i]:
            out[-1] = _joined(out[-1], text, layout)
        elif _starts_paragraph(block[i], block[i + 1], layout):
            out.append(text)
        else:
            out[-1] += "\n" + text
    return out


def _is_wrapped(line: str, after: str, layout: Layout) -> bool:
    """Whether the line ended only because the next word did not fit, or stopped inside of a sentence."""
    if layout.width > UNWRAPPED or LIST_ITEM.match(after):
        return False
    if after.strip()[:1].islower():
        return True
    if _indent(after) > _indent(line) and CLOSED.search(line.rstrip()):
        return False
    return len(line.rstrip()) + 1 + len(after.split(maxsplit=1)[0]) > FULL * layout.width


def _is_verse(block: list[str], layout: Layout) -> bool:
    """Every line begins anew and none is full: one that is nearly full ends where the poet wanted, like the others."""
    return not any(line.strip()[:1].islower() for line in block) and max(map(len, block)) < 0.95 * layout.width


def _starts_paragraph(line: str, after: str, layout: Layout) -> bool:
    if LIST_ITEM.match(after):
        return False
    if layout.width > UNWRAPPED and max(len(line), len(after)) > UNWRAPPED:
        return True
    talk = QUOTE.search(line.strip()) or QUOTE.search(after.strip())
    return bool(CLOSED.search(line.rstrip()) and (talk or _indent(after) > _indent(line) or layout.width > UNWRAPPED))


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _joined(text: str, after: str, layout: Layout) -> str:
    """A word that was broken at the line end is made whole only if it stands whole elsewhere in the text."""
    if found := HYPHEN.search(text):
        rest = re.match(rf"{LETTER}*", after)[0]
        whole = (found[1] + rest).casefold()
        return (text[:-1] if rest and whole in layout.words else text) + after
    if layout.tight_dashes and re.search(r"[^\s-](?:--|—)$", text):
        return text + after
    return f"{text} {after}"
