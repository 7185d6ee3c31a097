"""`{{item.name}}` and `{{sample.output_text}}` in texts of graders and prompts: looked up, and nothing else.

    item.answer   item.turns[0].content   item["two words"]   sample.output_json.street   sample.choices[0].message.content

No expression, no filter, no call: what stands between the braces is a path. A value that is put in is never read again, so data
cannot name a variable. Text is put in as it is, anything else as JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

STEP = r"\.[^\W\d][\w-]*|\.\d+|\[\d+\]|\['[^'\]]*'\]|\[\"[^\"\]]*\"\]"
PATH = re.compile(rf"(item|sample)((?:{STEP})*)")
Path = tuple[str, ...]
LONGEST = 1_000_000
"""Characters of a text with its variables put in: one that names a long value a thousand times would take all memory."""


class MissingVariable(LookupError):
    """A path that leads nowhere. `path` says which."""

    def __init__(self, path: Path):
        self.path = path
        super().__init__(f"there is no {{{{{'.'.join(path)}}}}}")


def paths(text: str) -> list[Path]:
    """The variables of a template. Raises ValueError for one that is no path, or has no namespace that is known."""
    return [part for part in _parts(text) if isinstance(part, tuple)]


def render(text: str, namespace: Mapping[str, Any]) -> str:
    """The template with its variables put in. Raises MissingVariable; ValueError: it is no template, or gets too long."""
    pieces, length = [], 0
    for part in _parts(text):
        pieces.append(part if isinstance(part, str) else as_text(lookup(part, namespace)))
        length += len(pieces[-1])
        if length > LONGEST:
            raise ValueError(f"the text has more than {LONGEST} characters once its variables are put in")
    return "".join(pieces)


def lookup(path: Path, namespace: Mapping[str, Any]) -> Any:
    """Raises MissingVariable."""
    value: Any = namespace
    for step in path:
        if isinstance(value, Mapping) and step in value:
            value = value[step]
        elif isinstance(value, list | tuple) and step.isdecimal() and len(step) < 9 and int(step) < len(value):
            value = value[int(step)]
        else:
            raise MissingVariable(path)
    return value


def read_path(text: str) -> Path:
    """`item.turns[0]` as ("item", "turns", "0"). Raises ValueError."""
    found = PATH.fullmatch(text.strip())
    if not found:
        raise ValueError(f"{{{{{text[:80]}}}}} is no variable: write item.NAME or sample.NAME")
    return (found[1], *(_step(s) for s in re.findall(STEP, found[2])))


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@lru_cache(maxsize=256)
def _parts(text: str) -> tuple[str | Path, ...]:
    return tuple(_split(text))


def _split(text: str) -> Iterator[str | Path]:
    at = 0
    while (begin := text.find("{{", at)) >= 0 and (end := text.find("}}", begin + 2)) >= 0:
        yield text[at:begin]
        yield read_path(text[begin + 2 : end])
        at = end + 2
    yield text[at:]


def _step(written: str) -> str:
    return written[1:] if written[0] == "." else written[1:-1].strip("'\"") if written[1] in "'\"" else written[1:-1]
