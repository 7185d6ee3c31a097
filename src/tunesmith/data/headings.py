"""Which lines of a text are headings: `CHAPTER I.`, `Chapter 12: Title`, `Part One`, `# Markdown`, `IV` alone on a line.

Careful on purpose. A sentence that was wrapped can leave "Part of it" at the start of a line, and a heading that is none
splits a passage where its author did not. So the number has to be a number and the title has to look like one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

LEVELS = {"volume": 10, "vol": 10, "book": 11, "part": 12, "act": 12, "chapter": 13, "chap": 13, "letter": 13, "stave": 13,
          "canto": 13, "section": 14}
"""How deep each kind stands. Markdown headings stand above all, by their number of #; numerals alone on a line below all."""
NAMED = 13
NUMERAL = 15
UNIT = (r"seventeenth|thirteenth|fourteenth|eighteenth|nineteenth|seventeen|fifteenth|sixteenth|thirteen|fourteen|"
        r"eighteen|nineteen|eleventh|fifteen|sixteen|seventh|twelfth|eleven|twelve|second|fourth|eighth|three|seven|"
        r"eight|first|third|fifth|sixth|ninth|tenth|four|five|nine|last|one|two|six|ten")
WORD_NUMBER = rf"(?:(?:twent|thirt|fort|fift|sixt|sevent|eight|ninet)(?:y|ieth)(?:[- ](?:{UNIT}))?|{UNIT})"
NUMBERED = re.compile(rf"(?P<kind>{'|'.join(sorted(LEVELS, key=len, reverse=True))})\.?\s+(?:the\s+)?"
                      rf"(?P<number>\d{{1,4}}|[ivxlcdm]+|{WORD_NUMBER})(?P<stop>\s*[.:)\]—–-]*\s*)(?P<title>.*)", re.IGNORECASE)
NAMES = re.compile(r"(?i:prologue|epilogue|preface|introduction|introductory|foreword|afterword|dedication|interlude|"
                   r"postscript|conclusion|appendix|advertisement|author['’]s note)")
ROMAN = re.compile(r"M{0,3}(CM|CD|D?C{0,3})(XC|XL|L?X{0,3})(IX|IV|V?I{0,3})")
ROMAN_VALUES = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
MARKDOWN = re.compile(r"(#{1,6})\s+(.*?)\s*#*")
UNDERLINE = re.compile(r"=+|-+")
CONTENTS = re.compile(r"(?i)[#\s_*]*(table of )?contents[\s_*.:]*")
LONGEST_TITLE = 100
CONTENTS_WITHIN = 40
"""Blocks from the top in which a table of contents is looked for."""

Block = list[str]
"""The lines between two empty ones."""


@dataclass(frozen=True, slots=True)
class Heading:
    title: str
    level: int


def roman_value(numeral: str) -> int | None:
    """None when it is not written as Romans do (`IIII`, `MILD`)."""
    if not numeral or not ROMAN.fullmatch(numeral):
        return None
    values = [ROMAN_VALUES[letter] for letter in numeral]
    return sum(-v if v < after else v for v, after in zip(values, [*values[1:], 0], strict=True))


def headings_of(block: Block, numerals: bool = False) -> tuple[list[Heading], Block]:
    """The headings that a block begins with, and its other lines. `numerals`: a Roman number alone counts as one."""
    found: list[Heading] = []
    rest = block
    while rest:
        heading = _underlined(rest) if len(rest) > 1 else None
        taken = 2 if heading else 1
        heading = heading or read_heading(rest[0], rest[1] if len(rest) > 1 else None)
        if heading is None and numerals and len(block) == 1:
            heading = Heading(rest[0].strip(), NUMERAL) if numeral_of(block) else None
        if heading is None:
            break
        found.append(heading)
        rest = rest[taken:]
    if found and rest and found[-1].level >= LEVELS["volume"] and is_caption(rest):
        last = found.pop()
        found.append(Heading(" ".join([last.title, *(line.strip() for line in rest)]), last.level))
        rest = []
    return found, rest


def read_heading(line: str, following: str | None = None) -> Heading | None:
    """The heading that a line is. `following` is the next line of its block: a title does not go on in lower case."""
    line = line.strip()
    if len(line) > LONGEST_TITLE:
        return None
    if found := MARKDOWN.fullmatch(line):
        return Heading(found[2].strip("*_ "), len(found[1])) if found[2] else None
    line = line.strip("*_ ")
    goes_on = following is not None and following.strip()[:1].islower()
    if NAMES.match(line) and (NAMES.fullmatch(line.rstrip(".: ")) or line.isupper()) and not goes_on:
        return Heading(line, NAMED)
    found = NUMBERED.fullmatch(line)
    if not found or not _is_number(found["number"], found["kind"]):
        return None
    title = found["title"]
    if not title:
        return Heading(line, LEVELS[found["kind"].lower()]) if found["kind"][0].isupper() or following is None else None
    told = found["stop"].strip() and re.match(r"[\"“‘'(_]*[A-Z0-9À-Þ]", title)
    if goes_on or found["kind"][0].islower() or not (told or found["stop"] and is_caption([title])):
        return None
    return Heading(line, LEVELS[found["kind"].lower()])


def _is_number(number: str, kind: str) -> bool:
    if number.isdigit() or re.fullmatch(WORD_NUMBER, number, re.IGNORECASE):
        return True
    return roman_value(number.upper()) is not None and (number.isupper() or kind.lower().startswith("chap"))


def _underlined(block: Block) -> Heading | None:
    """Markdown's other heading: a line with a rule right below it."""
    title, rule = block[0].strip(), block[1].strip()
    if len(rule) < 3 or not UNDERLINE.fullmatch(rule) or not title or len(title) > LONGEST_TITLE:
        return None
    return Heading(title, 1 if rule[0] == "=" else 2)


def is_caption(block: Block) -> bool:
    """Whether lines below a heading are its title: capitals, or Capitalised Words that end no sentence."""
    text = " ".join(line.strip() for line in block)
    words = re.findall(r"[^\W\d_]+", text)
    if len(block) > 2 or len(text) > LONGEST_TITLE or not words or text[0] in "\"“«":
        return False
    if text.isupper():
        return True
    return words[0][0].isupper() and text[-1] not in ".!?,;:—-…\"”" and all(w[0].isupper() for w in words if len(w) > 3)


def numeral_of(block: Block) -> int | None:
    """The value of a Roman number that stands alone (`IV.`) or before a title (`IV. The Oak`)."""
    found = re.fullmatch(r"\s*([IVXLCDM]+)(?:\.?|[.:]\s+(\S.*?))\s*", block[0]) if len(block) == 1 else None
    return roman_value(found[1]) if found and (not found[2] or is_caption([found[2]])) else None


def numerals_in_order(blocks: list[Block]) -> bool:
    """Whether the Roman numbers that stand alone count chapters: `I`, `II`, `III`, and again from `I`.

    One alone is trusted only at the top of the file: elsewhere it may be somebody's "I".
    """
    values = [v for v in map(numeral_of, blocks) if v]
    if len(values) < 2:
        return bool(blocks) and numeral_of(blocks[0]) is not None
    return all(after == 1 or 1 <= after - v <= 2 for v, after in zip(values, values[1:], strict=False))


def without_contents(blocks: list[Block]) -> tuple[list[Block], Block]:
    """The blocks without the table of contents, and its lines.

    It ends where its first chapter is named again, else before the last heading in it: that one has text below it.
    """
    start = next((i for i, b in enumerate(blocks[:CONTENTS_WITHIN]) if CONTENTS.fullmatch(b[0])), None)
    if start is None:
        return blocks, []
    end = start + 1
    while end < len(blocks) and all(_is_entry(line) for line in blocks[end]):
        end += 1
    entries = [blocks[start][1:], *blocks[start + 1 : end]]
    keys = [next((_entry_key(line) for line in block if line.strip()), "") for block in entries]
    first = next((key for key in keys if key), None)
    heads = [i for i, block in enumerate(entries) if i and headings_of(block, numerals=True)[0]]
    repeated = next((i for i, key in enumerate(keys) if key == first and first in keys[:i]), None)
    stop = repeated if repeated is not None else heads[-1] if heads and end < len(blocks) else len(entries)
    listed = [line for block in [blocks[start][:1], *entries[:stop]] for line in block]
    return blocks[:start] + blocks[start + max(stop, 1) :], listed


def _is_entry(line: str) -> bool:
    line = line.strip()
    return bool(read_heading(line) or re.search(r"(\.{2,}|\s)\d+$", line) or re.match(r"[A-Z]{4}", line)) or (
        len(line) <= 80 and not re.search(r"[.!?][\"”’')]*$|,$", re.sub(r"^\S+\.$", "", line)) and not line[:1].islower()
        and line[:1] not in "\"“")


def _entry_key(line: str) -> str:
    """What an entry and the heading of its chapter have in common: `chapter i`, or the title without the page."""
    found = NUMBERED.fullmatch(line.strip())
    title = re.sub(r"[\s.]+\d*$", "", line)
    return " ".join((found["kind"], found["number"]) if found else title.split()).casefold()
