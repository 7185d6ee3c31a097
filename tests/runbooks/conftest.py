"""A page of docs/runbooks, read as a test reads it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

PAGES = Path(__file__).parent.parent.parent / "docs" / "runbooks"
QUOTED = re.compile(r"^```text (\w+)\n(.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Page:
    """What a page quotes: `said[label]` are lines, with … for any text."""

    said: dict[str, list[str]]

    def missing(self, label: str, output: str) -> list[str]:
        """Lines of this quotation that the output does not have."""
        lines = [line.rstrip() for line in output.splitlines()]
        patterns = {q: ".*".join(re.escape(part) for part in q.rstrip().split("…")) for q in self.said[label]}
        return [q for q, pattern in patterns.items() if not any(re.fullmatch(pattern, line) for line in lines)]


@pytest.fixture
def page() -> Callable[[str], Page]:
    """`page("out-of-memory")`."""

    def read(name: str) -> Page:
        text = (PAGES / f"{name}.md").read_text(encoding="utf-8")
        return Page({label: body.strip("\n").split("\n") for label, body in QUOTED.findall(text)})

    return read
