"""Data of another tool's configuration, as `data.train` names it: local files, hub names; and how long its rows are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tunesmith.recipe.foreign.ledger import Ledger
from tunesmith.recipe.foreign.shared import find, relative

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
DATA_FILE = re.compile(r"\.(jsonl?|ndjson|csv|tsv|parquet|arrow|txt|md)(\.\w+)?$", re.IGNORECASE)
BUILDERS = ("json", "csv", "parquet", "text", "arrow")
"""Names with which the datasets library reads `data_files` instead of a hub dataset."""
SAMPLE = 2000
MOST_BYTES = 100_000_000
"""Of a JSON array that is read to measure it."""
CHARACTERS_A_TOKEN = 4
SAME_AS_OURS = ("system", "tools")


@dataclass(frozen=True, slots=True)
class Place:
    """What to write into the recipe, and the local files behind it."""

    names: list[str]
    files: list[Path]
    note: str = ""


def local(ledger: Ledger, given: list[str]) -> Place:
    """Local paths as the new recipe sees them, whether they are there or not."""
    found = [find(ledger, g) for g in given]
    missing = [g for g, f in zip(given, found, strict=True) if f is None]
    names = [relative(ledger, f or Path.cwd() / Path(g).expanduser()) for g, f in zip(given, found, strict=True)]
    return Place(names, [f for f in found if f], f"{missing[0]} is not there now" if missing else "")


def hub(name: str, revision: str | None, split: str | None, files: list[str]) -> Place:
    """`hf:owner/name[@revision]:split`, or one for each file. Both tools take the split `train` when none is named."""
    head = f"hf:{name}" + (f"@{revision}" if revision else "")
    return Place([f"{head}:{f}" for f in files] if files else [f"{head}:{split or 'train'}"], [])


def measure(ledger: Ledger, places: list[Place]) -> None:
    """Rows, and mean tokens of a row, into the ledger's facts, when all data is local JSON and can be read."""
    files = [f for p in places for f in p.files]
    if not files or any(not p.files or len(p.files) < len(p.names) for p in places):
        return
    rows = characters = sampled = 0
    for file in files:
        try:
            for i, row in enumerate(_rows(file)):
                rows += 1
                if i < SAMPLE:
                    sampled += 1
                    characters += _characters(json.loads(row) if isinstance(row, str) else row)
        except (OSError, ValueError, RecursionError, TypeError):
            return
    if characters:
        ledger.facts |= {"rows": rows, "mean_tokens": characters / sampled / CHARACTERS_A_TOKEN}


def _rows(file: Path) -> Iterator[Any]:
    """Lines of JSON as text, or the members of an array. Raises ValueError for other kinds."""
    with file.open(encoding="utf-8-sig") as opened:
        if file.suffix in (".jsonl", ".ndjson"):
            yield from (line for line in opened if line.strip())
            return
        if file.suffix != ".json" or file.stat().st_size > MOST_BYTES:
            raise ValueError("not measured")
        first = list(islice((line for line in opened if line.strip()), 1))
        opened.seek(0)
        if first and first[0].lstrip().startswith("{") and first[0].rstrip().endswith("}"):  # JSON lines named .json
            yield from (line for line in opened if line.strip())
            return
        yield from list(json.load(opened))


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, list) else 0


def chat_format(column: str | None, role: str | None, content: str | None) -> str | None:
    """The format of rows whose turns stand in `column`; None when a recipe has no name for it."""
    if (role, content) not in (("role", "content"), ("from", "value")):
        return None
    return {"messages": "openai", "conversations": "sharegpt", "conversation": "sharegpt"}.get(column or "")


def fields_format(ask: str | None, extra: str | None, answer: str | None) -> str | None:
    """The format of rows with a question, perhaps its input, and an answer."""
    if (ask, answer) == ("instruction", "output") and extra in ("input", None):
        return "alpaca"
    return "prompt_completion" if (ask, answer, extra) == ("prompt", "completion", None) else None


RENAME = ("rename the keys of the rows to messages (role, content), instruction and output, or prompt and completion; "
          "docs/formats.md has them all")
