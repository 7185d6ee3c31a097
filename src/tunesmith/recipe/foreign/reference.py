"""The tables of docs/import.md, from the tables of the code.

    python -m tunesmith.recipe.foreign.reference          # prints them; a test holds docs/import.md to it
"""

from __future__ import annotations

import sys

from tunesmith.recipe.foreign.convert import TOOLS
from tunesmith.recipe.foreign.rules import Tool


def markdown() -> str:
    return "\n".join(_of(tool) for tool in TOOLS.values())


def _of(tool: Tool) -> str:
    def keys(text: str) -> str:
        return " ".join(f"`{k}`" for k in text.split())

    lines = [f"## {tool.title} {tool.version}", "", "### Carried over", "", "| key | recipe | how |", "|---|---|---|"]
    lines += [f"| `{k}` | {c.to} | {c.note or 'as it is'} |" for k, c in tool.copies.items()]
    lines += [f"| {keys(j.keys) or '(not set)'} | {j.to or '-'} | {j.how} |" for j in tool.joints]
    lines += ["", "### No equal", "", "| key | what it would have done | what happens here | what to do |", "|---|---|---|---|"]
    lines += [f"| {keys(n.keys)} | {n.why} | {n.consequence} | {n.fix} |" for n in tool.no_equal]
    lines += ["", "### Changes nothing here", "", "| key | why |", "|---|---|"]
    lines += [f"| {keys(s.keys)} | {s.why} |" for s in tool.skipped]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown())
