"""Repairs that cannot change what a text says. Everything else is a finding for a person to decide.

    fixed, done = fix(row)      # done: names of the repairs, [] and the same row when there was nothing to do

Left alone: what tools were called with and gave back (machines read it), text with markup or code (its entities are
there on purpose), and letters that were lost (U+FFFD).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from tunesmith.data.quality import damage, markup
from tunesmith.data.rows import Row

LINE_END = re.compile(r"\r\n?")
NEW_LINE = re.compile("[\x0b\x0c\u2028\u2029]")
REPAIRED_ROLES = ("system", "user", "assistant")


def fix(row: Row) -> tuple[Row, list[str]]:
    """The row with safe repairs, and their names in the order they were made. `fix(fix(row))` changes nothing more."""
    done: list[str] = []
    messages = [m | {"content": _fixed(m["content"], m["role"], done)} if m["role"] in REPAIRED_ROLES else m
                for m in row.messages]
    return (replace(row, messages=messages), done) if done else (row, [])


def _fixed(text: str, role: str, done: list[str]) -> str:
    """Repairs until none applies: an entity may hide a control character, and `&amp;amp;` another entity."""
    made, current = [], text
    while (step := next(_applicable(current, role), None)) is not None:
        name, current = step
        made.append(name)
    if not current and text:
        return text  # a turn of nothing but noise: dropping the row is not ours to decide
    done += [name for name in dict.fromkeys(made) if name not in done]
    return current


def _applicable(text: str, role: str) -> Iterator[tuple[str, str]]:
    """Each repair that changes `text`, with what it makes of it. All of them shorten it or lessen its odd characters."""
    for name, repair in REPAIRS.items():
        if (name != TRAILING or role == "assistant") and (repaired := repair(text)) != text:
            yield name, repaired


def _mojibake(text: str) -> str:
    return text if damage.mojibake(text) is None else damage.decoded(text)


def _control(text: str) -> str:
    return damage.CONTROL.sub(lambda m: "\n" if NEW_LINE.match(m[0]) else "", text)


def _invisible(text: str) -> str:
    for match in reversed(list(damage.invisible(text))):
        text = text[:match.start()] + text[match.end():]
    return text


def _entities(text: str) -> str:
    """Only in plain text, and only when it stays plain: `&lt;b&gt;` is how one writes about tags."""
    found = list(markup.entities(text))
    if not found or markup.TAG.search(text) or markup.about_code(text):
        return text
    import html

    plain = text
    for match in reversed(found):
        plain = plain[:match.start()] + html.unescape(match[0]) + plain[match.end():]
    return text if "\ufffd" in plain or markup.TAG.search(plain) or markup.about_code(plain) else plain


TRAILING = "trailing white space"
REPAIRS: dict[str, Callable[[str], str]] = {
    "mojibake": _mojibake,
    "line endings": lambda text: LINE_END.sub("\n", text),
    "control characters": _control,
    "invisible characters": _invisible,
    "HTML entities": _entities,
    TRAILING: str.rstrip,
}
