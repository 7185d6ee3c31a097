"""A rendered row in the terminal: its roles in the margin and in colour, what is trained bold, what the template wrote dim.

    ── train.jsonl:1  40 tokens, 8 trained
               │ <|im_start|>user
          user │ 12 Oak Street<|im_end|>
               │ <|im_start|>assistant
     assistant │ ⟦{"number": "12"}<|im_end|>⟧

`│` begins a line of the text, `┆` goes on with one: at the edge of the terminal, or where another role begins inside of it.
"""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata

COLOURS = {"system": "35", "user": "36", "assistant": "32", "tool": "33", "template": "2"}
"""Of the terminal's own palette, so that they suit it. A role that is not here has the colour of `tool`."""
TRAINED = "1;"
HEAVY = {"│": "┃", "┆": "┇"}
"""The sign of a line that holds trained tokens, where there is colour: bold is hard to see in some terminals."""
MARGIN = 10
LEAST_WIDTH = 30
"""Of the text, in a terminal that is narrower than the margin allows."""


def row_lines(row: dict, ids: bool, colour: bool | None = None, width: int | None = None) -> list[str]:
    """Lines of one row of `verbs.show_rows`.

    `colour` and `width` (cells of a line, None: never broken) are asked of the terminal where they are not given; NO_COLOR
    (https://no-color.org) is respected, and a pipe gets neither.
    """
    if colour is None:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    if width is None and sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
    page = _Page(colour, max(LEAST_WIDTH, width - MARGIN - 3) if width else None)
    for token in row["tokens"]:
        text = token["text"].rstrip("\n") if ids else token["text"]
        page.write(text, token["role"], token["trained"])
        if ids:
            page.write(f"‹{token['id']}›", "template", token["trained"], breaks=False)
            page.write(token["text"][len(text) :], token["role"], token["trained"])
    trained = sum(t["trained"] for t in row["tokens"])
    head = f"── {row['where']}  ({len(row['tokens'])} tokens, {trained} trained)"
    return [f"\033[1m{head}\033[0m" if colour else head, *page.lines(), ""]


class _Page:
    """Lines that grow by pieces of one style each."""

    def __init__(self, colour: bool, width: int | None):
        self.colour, self.width = colour, width
        self._done: list[str] = []
        self._on = False
        """Whether ⟦ stands open."""
        self._speaker = ""
        self._begin("│")

    def _begin(self, sign: str) -> None:
        self._sign, self._label, self._cells = sign, "", 0
        self._pieces: list[tuple[str, str]] = []

    def write(self, text: str, role: str, trained: bool, breaks: bool = True) -> None:
        turns = not self.colour and trained != self._on and bool(text)
        if turns and self._on:
            self._put("⟧", "")
        style = (TRAINED if trained else "") + COLOURS.get(role, COLOURS["tool"]) if self.colour else ""
        for i, line in enumerate(text.split("\n")):
            if i:
                self._end("│")
            if line and breaks and role not in ("template", self._speaker):
                if self._label:
                    self._end("┆")
                self._label = self._speaker = role
            if turns and trained and not i:
                self._put("⟦", "")
            for character in _visible(line):
                self._put(character, style)
        self._on = trained if turns else self._on
        if role == "template" and breaks:
            self._speaker = ""

    def _put(self, character: str, style: str) -> None:
        cells = _cells(character)
        if self.width and self._cells + cells > self.width:
            self._end("┆")
        self._cells += cells
        if self._pieces and self._pieces[-1][1] == style:
            self._pieces[-1] = self._pieces[-1][0] + character, style
        else:
            self._pieces.append((character, style))

    def _end(self, sign: str) -> None:
        label = f"{self._label[:MARGIN]:>{MARGIN}}"
        if self.colour:
            label = f"\033[{COLOURS.get(self._label, COLOURS['tool'])}m{label}\033[0m" if self._label else label
        text = "".join(f"\033[{style}m{piece}\033[0m" if style else piece for piece, style in self._pieces)
        rule = self._sign
        if self.colour:
            trained = any(style.startswith(TRAINED) for _, style in self._pieces)
            rule = f"\033[{COLOURS['assistant']}m{HEAVY[rule]}\033[0m" if trained else f"\033[2m{rule}\033[0m"
        self._done.append(f"{label} {rule} {text}" if text else f"{label} {rule}")
        self._begin(sign)

    def lines(self) -> list[str]:
        """All lines; a line feed at the very end begins none."""
        if self._on:
            self._put("⟧", "")
        if self._pieces:
            self._end("│")
        return self._done


def _visible(text: str) -> str:
    """Control characters as their pictures: a row must not steer the terminal it is shown in."""
    return "".join(chr(0x2400 + ord(c)) if ord(c) < 32 and c != "\t" else "␡" if c == "\x7f" else
                   f"‹U+{ord(c):04X}›" if "\x80" <= c < "\xa0" or c in _STEERING else c for c in text)


_STEERING = "\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Line separators and overrides of the direction of writing: they would reorder what stands beside them."""


def _cells(character: str) -> int:
    if len(character) > 1 or unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
