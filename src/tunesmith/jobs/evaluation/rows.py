"""Rows of an eval's data: `{"item": {...}, "sample": {...}?}`, from a request or a file, each held to the eval's schema."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError, NotMeasured
from tunesmith.evals.metrics.checks import validator
from tunesmith.jobs import places
from tunesmith.store.files import canonical_json, explain_os_errors

Check = Callable[[Any, str], None]
DEEPEST = 100
"""Levels of nesting of what a request or a row holds."""


def schema_check(item_schema: Mapping) -> Check:
    """`check(row, where)` raises DataError. Nothing that a schema refers to is fetched.

    Raises:
        DataError: it is no JSON schema, or refers to what is not in it.
    """
    if _names_patterns(item_schema):
        raise DataError("patternProperties in item_schema is not supported: a name could be matched without end")
    try:
        holds = validator(canonical_json(item_schema))
    except Exception as error:  # a stranger's schema: whatever comes of reading it is about the schema
        raise DataError(f"item_schema is no JSON schema: {getattr(error, 'message', error)}") from error

    def check(row: Any, where: str) -> None:
        if not isinstance(row, dict) or not isinstance(row.get("item"), dict):
            raise DataError(f'{where} is no object with an `item`: every row is {{"item": {{...}}}}')
        if row.get("sample") is not None and not isinstance(row["sample"], dict):
            raise DataError(f"{where}: `sample` is no object")
        plain(row, where)
        try:
            wrong = next(iter(holds.iter_errors(row["item"])), None)
        except RecursionError as error:
            raise DataError(f"{where}: the item is nested too deeply for the schema") from error
        except NotMeasured as error:
            raise DataError(f"{where}: {error.what}") from error
        if wrong is not None:
            path = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in wrong.absolute_path)
            raise DataError(f"{where}: item{path} does not match the eval's item_schema: {wrong.message[:300]}")

    return check


def plain(value: Any, where: str) -> None:
    """Raises DataError for what JSON cannot say again: NaN and infinities, halves of characters, nesting without end."""
    waiting = [(value, 0)]
    while waiting:
        part, depth = waiting.pop()
        if depth > DEEPEST:
            raise DataError(f"{where} is nested more than {DEEPEST} levels deep")
        if isinstance(part, dict | list):
            waiting += [(p, depth + 1) for p in part]
            waiting += [(p, depth + 1) for p in part.values()] if isinstance(part, dict) else []
        elif isinstance(part, float) and (part != part or abs(part) == float("inf")):
            raise DataError(f"{where} holds {part}, which is no JSON")
        elif isinstance(part, str):
            try:
                part.encode()
            except UnicodeEncodeError as error:
                raise DataError(f"{where} holds half of a character (an unpaired surrogate)") from error


def kept(run_id: str) -> Path:
    """Where a run has its file's rows while it goes on, whatever becomes of the file."""
    return places.job_dir(run_id) / "rows.jsonl"


def of_file(path: Path) -> Iterator[tuple[str, Any]]:
    """(where, row) of each line that is not blank. Raises DataError."""
    with explain_os_errors(path, "read"), open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield f"line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"line {number} is no JSON: {error}") from error


def _names_patterns(schema: Any) -> bool:
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            if isinstance(part.get("patternProperties"), dict):
                return True
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
    return False
