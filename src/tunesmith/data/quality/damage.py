"""Text that was damaged on its way: decoded with the wrong alphabet, cut bytes, control and invisible characters.

A model learns damaged letters as faithfully as sound ones, and writes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tunesmith.data.finding import Finding
from tunesmith.data.quality.evidence import Tally, point, texts
from tunesmith.data.rows import Row

CONTROL = re.compile("\x1b\\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029]")
"""Colours of a terminal count as one. Tab, line feed and carriage return are text."""
RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff]")
_NO_SPACES = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
"""Thai, Lao, Burmese, Khmer: their words are parted by zero-width spaces."""
INVISIBLE = re.compile(
    "[\u00ad\u2060-\u2064\u206a-\u206f\u3164\ufeff\ufff9-\ufffb]"
    f"|(?<![{_NO_SPACES}])\u200b(?![{_NO_SPACES}])"
    "|(?<![\u1800-\u18af])\u180e"
    # Joiners shape Arabic and Indic letters and hold emoji together; after a Latin letter they do nothing.
    "|(?<![\u0300-\U0010ffff])[\u200c\u200d]"
    # Tag characters spell the flags of England, Scotland and Wales; elsewhere they hide text from the reader.
    "|(?<![\U0001f3f4\U000e0020-\U000e007f])[\U000e0001-\U000e007f]+")
DIRECTION = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def invisible(text: str) -> Iterator[re.Match]:
    """Characters without a shape that do nothing for the text around them."""
    if text.isascii():
        return
    yield from INVISIBLE.finditer(text)
    if DIRECTION.search(text) and not RIGHT_TO_LEFT.search(text):
        yield from DIRECTION.finditer(text)


def mojibake(text: str) -> tuple[int, int] | None:
    """Where text was decoded with the wrong alphabet, as `don\u00e2\u20ac\u2122t` for `don\u2019t`."""
    if text.isascii():
        return None
    from ftfy.badness import BADNESS_RE

    match = BADNESS_RE.search(text)
    # Rare letters side by side, as in a transliteration, look bad too, but are no other text in a wrong alphabet.
    return match.span() if match and decoded(text) != text else None


def decoded(text: str) -> str:
    """`text` with what was decoded wrongly decoded anew, and nothing guessed for letters that were lost."""
    import ftfy

    return ftfy.fix_encoding(text, ftfy.TextFixerConfig(replace_lossy_sequences=False))


class Damage:
    """Rows with each kind of damaged text."""

    def __init__(self) -> None:
        self.mojibake, self.replaced, self.control, self.unseen = Tally(), Tally(), Tally(), Tally()
        self.tallies = {"mojibake": self.mojibake, "replacement_character": self.replaced,
                        "control_character": self.control, "invisible_character": self.unseen}

    def see(self, row: Row) -> None:
        places: dict[Tally, tuple[str, str, int, int]] = {}
        for _role, place, text in texts(row):
            if found := mojibake(text):
                places.setdefault(self.mojibake, (place, text, *_word(text, *found)))
            if (at := text.find("\ufffd")) >= 0:
                places.setdefault(self.replaced, (place, text, *_word(text, at, at + 1)))
            # Some of the wrong alphabet's letters are control characters: reported once.
            if match := next((m for m in CONTROL.finditer(text) if not (found and "\x80" <= m[0] <= "\x9f")), None):
                places.setdefault(self.control, (place, text, *_word(text, *match.span())))
            if match := next(invisible(text), None):
                places.setdefault(self.unseen, (place, text, *_word(text, *match.span())))
        for tally, (place, text, start, end) in places.items():
            tally.add(lambda: point(row, place, text, start, end))  # noqa: B023

    def findings(self) -> list[Finding]:
        return [
            *self.mojibake.finding("mojibake", "warning", f"{self.mojibake.count} rows have text in the wrong encoding",
                                   "read the source as UTF-8 and write it again, or repair the rows"),
            *self.replaced.finding("replacement_character", "warning",
                                   f"{self.replaced.count} rows have letters that were lost (U+FFFD)",
                                   "read the source again in its own encoding: what was lost cannot be repaired"),
            *self.control.finding("control_character", "warning", f"{self.control.count} rows have control characters",
                                  "repair the rows: they are noise to the model"),
            *self.unseen.finding("invisible_character", "warning",
                                 f"{self.unseen.count} rows have characters that nobody sees and the tokenizer does",
                                 "repair the rows: invisible characters split words into rare tokens, or hide text"),
        ]


def _word(text: str, start: int, end: int) -> tuple[int, int]:
    """The piece with a few characters around it, to be found again by eye."""
    return max(0, start - 8), min(len(text), end + 8)
