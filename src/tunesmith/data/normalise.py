"""Records of any known format to rows. One file has one format; `data.formats` says what each looks like."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from tunesmith.data.formats import FORMATS, detect, read_row
from tunesmith.data.messages import Bad
from tunesmith.data.read import Record, read_records
from tunesmith.data.rows import Row
from tunesmith.errors import DataError, Problem

SHOWN_KEYS = 12


def stream(records: Iterable[Record | Problem], fmt: str = "auto") -> Iterator[Row | Problem]:
    """Rows of one file as they come. Every record is a row or a problem: its fields, or a format not that of the first."""
    first: tuple[str, str] | None = None
    for record in records:
        found = record if isinstance(record, Problem) else _format(record, fmt, first)
        if isinstance(found, Problem):
            yield found
            continue
        first = first or (found, record.where)
        try:
            yield read_row(record, found)
        except Bad as bad:
            field, message, fix = bad.args
            yield Problem(code="bad_row", where=f"{record.where}: {field}", message=message, fix=fix)


def rows_of(path: Path, name: str, fmt: str = "auto") -> Iterator[Row | Problem]:
    """`stream` of a file. What ends the file early (damage, raw text, nothing in it) comes as its last problems."""
    try:
        yield from stream(read_records(path, name), fmt)
    except DataError as error:
        yield from error.problems or [Problem(code="unreadable", where=error.where, fix=error.fix,
                                              message=f"{error.what}: {error.why}" if error.why else error.what)]


def normalise(records: Iterable[Record | Problem], fmt: str = "auto") -> list[Row]:
    """Rows of one file.

    Raises:
        DataError: listing each bad row as `file:line: field`, and each whose format is not that of the first.
    """
    found = list(stream(records, fmt))
    problems = [p for p in found if isinstance(p, Problem)]
    if problems:
        raise DataError(f"{len(problems)} of {len(found)} rows cannot be used", problems=problems)
    return [row for row in found if isinstance(row, Row)]


def _format(record: Record, fmt: str, first: tuple[str, str] | None) -> str | Problem:
    """The record's format; a problem when it has none, or not that of the first record with one."""
    found = detect(record.value) if fmt == "auto" else fmt
    if found is None:
        return _unknown(record)
    if first and found != first[0]:
        return Problem(code="mixed_formats", where=record.where, fix="put them into two files, or set data.format",
                       message=f"one file, two formats: {first[0]} at {first[1]} and {found} here")
    return found


def _unknown(record: Record) -> Problem:
    if isinstance(record.value.get("text"), str):
        return Problem(code="raw_text", where=record.where, message="raw text, and no question with its answer",
                       fix="put raw text into .txt files; or give " + "; or ".join(FORMATS.values()))
    keys = sorted(record.value)
    shown = f"{keys[:SHOWN_KEYS]} and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else str(keys)
    return Problem(code="unknown_format", where=record.where, message=f"none of the known formats: keys are {shown}",
                   fix="give " + "; or ".join(FORMATS.values()))
