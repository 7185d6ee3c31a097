"""Words of a text, and cutting a text so that two can be compared fairly.

    fit("One two. Three four five. Six", 6)  ->  "One two. Three four five."
"""

from __future__ import annotations

from tunesmith.data.passages import sentences
from tunesmith.data.voice import WORD

ENDS = (".", "!", "?", "…", "\"", "”", "»", "’", "'", ")", "*")
SHORT = 20
"""Words to which a text is not cut further."""
KEEP = 0.5
"""An unfinished last sentence is dropped unless more than this share of the words would go with it."""


def words_of(text: str) -> list[str]:
    """Words in lower case, with one kind of apostrophe."""
    return [w.lower().replace("’", "'") for w in WORD.findall(text)]


def paragraphs_of(text: str) -> list[str]:
    return [p.strip() for p in text.split("\n\n") if p.strip()]


def fit(text: str, words: int) -> str:
    """At most so many words of a text, up to the end of a sentence where that leaves most of them."""
    found = list(WORD.finditer(text))
    shorter = text.rstrip() if len(found) <= words else text[: found[words].start()].rstrip()
    if not words:
        return ""
    whole = _whole_sentences(shorter)
    return whole if len(WORD.findall(whole)) > KEEP * min(words, len(found)) else shorter


def _whole_sentences(text: str) -> str:
    """The text without a last sentence that has no end."""
    if text.endswith(ENDS):
        return text
    blocks = text.rsplit("\n\n", 1)
    last = sentences(blocks[-1])
    kept = "".join(gap + sentence for gap, sentence in last[:-1]).rstrip()
    return "\n\n".join([*blocks[:-1], kept]).rstrip()


def even(one: str, other: str) -> tuple[str, str]:
    """Two texts, both as long as the shorter one; not below SHORT words, so that an empty one stays what it is."""
    words = max(SHORT, min(len(words_of(one)), len(words_of(other))))
    return fit(one, words), fit(other, words)
