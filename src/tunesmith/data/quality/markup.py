"""Remains of web pages in text that is not about code, and Markdown that only a few answers use."""

from __future__ import annotations

import re

from tunesmith.data.finding import Finding
from tunesmith.data.quality.evidence import Tally, last_answer, point, texts
from tunesmith.data.rows import Row

TAG = re.compile(
    r"</?(?:p|br|div|span|a|b|i|u|em|strong|small|sub|sup|ul|ol|li|dl|dt|dd|table|thead|tbody|tr|td|th|h[1-6]|hr|img|font|"
    r"center|blockquote|pre|script|style|section|article|header|footer|nav|iframe|button|label|input|form|html|head|body)"
    r"(?:\s[^<>]{0,500})?\s?/?>", re.IGNORECASE)
ENTITY = re.compile(r"&(?:[A-Za-z][A-Za-z0-9]{1,30}|#\d{1,7}|#[xX][0-9a-fA-F]{1,6});")
CODE = re.compile(r"```|`[^`\n]*<|<!DOCTYPE|<\?(?:php|xml)|=>|\b(?:html5?|xml|css|svg|jsx|javascript|typescript|markup|"
                  r"markdown|latex|php|python|java|sql|code|snippet|regex|script|tags?|web ?page|website|element|attribute|"
                  r"template|function|entity|entities|escape[ds]?|c\+\+)\b", re.IGNORECASE)
"""A row with one of these is about code, or shows some: its tags are there on purpose."""
MARKDOWN = re.compile(r"^#{2,6} \S|\*\*[^*\n]{1,200}\*\*|^\|.+\|\s*$|^\|?:?-{3,}:?\||\[[^\]\n]{1,200}\]\(https?://",
                      re.MULTILINE)
"""What renders badly as plain text. Lists are left out: `1.` and `-` are plain text as well."""
FEW, ENOUGH = 0.2, 20
"""Up to this share of the answers it is an exception; below this number of answers a share says nothing."""


def about_code(text: str) -> bool:
    return CODE.search(text) is not None


def residue(text: str) -> re.Match | None:
    """The first tag, or entity that HTML knows."""
    if match := TAG.search(text) if "<" in text else None:
        return match
    return next(entities(text), None)


def entities(text: str):
    """Entities that stand for a character; `&co;` stands for none."""
    if "&" not in text:
        return
    from html.entities import html5

    for match in ENTITY.finditer(text):
        if match[0][1] == "#" or match[0][1:] in html5:
            yield match


class Markup:
    """Rows with remains of HTML; answers with Markdown."""

    def __init__(self) -> None:
        self.html, self.markdown, self.answers = Tally(), Tally(), 0
        self.tallies = {"html_residue": self.html, "markdown_residue": self.markdown}

    def see(self, row: Row) -> None:
        self.answers += 1
        answer = row.answer
        if match := MARKDOWN.search(answer):
            self.markdown.add(lambda: point(row, last_answer(row), answer, *match.span()))
        for role, place, text in texts(row):
            # What a tool gave back is data; its tags are none of the author's.
            if role in ("tool", "call") or not (found := residue(text)):
                continue
            if not row.tools and not any(about_code(t) for _r, _p, t in texts(row)):
                self.html.add(lambda: point(row, place, text, *found.span()))  # noqa: B023
            break

    def findings(self) -> list[Finding]:
        found = self.html.finding("html_residue", "warning", f"{self.html.count} rows have remains of HTML in plain text",
                                  "take the text out of its page, and unescape entities")
        share = self.markdown.count / max(1, self.answers)
        if self.answers >= ENOUGH and share <= FEW:
            found += self.markdown.finding("markdown_residue", "info",
                                           f"{self.markdown.count} of {self.answers} answers use Markdown, the others none",
                                           "decide for one format: the model will mix them in these shares")
        return found
