"""A file of rows in another format. What the other format cannot say is reported by its line and left out, never changed."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

from tunesmith.data.formats import FORMATS
from tunesmith.data.messages import Bad
from tunesmith.data.normalise import normalise
from tunesmith.data.read import SHOWN_PROBLEMS, find_files, name_of, read_records
from tunesmith.data.rows import Row
from tunesmith.data.write import write_row
from tunesmith.errors import DataError, Problem, UsageError
from tunesmith.store.files import write_bytes

CHAT = ("openai", "prompt_completion", "alpaca", "sharegpt")
WRITTEN = (".jsonl", ".ndjson")


def convert(source: str | list[str], target: str | Path, to: str) -> dict:
    """Write the rows of `source` (file, glob, directory or `hf:` name) to the JSON lines file `target`, in format `to`.

    Chat formats take preference rows by their preferred answer and KTO rows if their answer is desirable; `notes` says how
    many lost their other side. A preference row becomes two KTO rows. `lossy` lists the rows that `to` cannot say; each other
    row read is written, once or as its two halves.

    Returns:
        `{path, to, rows_read, rows, lossy[{code, where, message, fix}], notes[]}`.

    Raises:
        UsageError: no such format, or `target` is no new .jsonl file.
        DataError: rows of `source` cannot be read, or none of them can be said in `to`; nothing is written then.
    """
    path = Path(target).expanduser().absolute()
    _refuse_target(path, to)
    rows = _read(source)
    records, lossy, halved, parted = [], [], 0, 0
    for row in rows:
        pair = to == "kto" and row.rejected is not None
        said = _halves(row) if pair else [_as_chat(row) if to in CHAT else row]
        halved += not pair and said[0] is not row
        parted += pair
        try:
            records += [write_row(one, to) for one in said]
        except Bad as bad:
            lossy.append(_problem(row, bad))
    if not records:
        raise DataError(f"none of the {len(rows)} rows can be said in {to}", problems=lossy[:SHOWN_PROBLEMS],
                        fix="nothing was written")
    notes = [f"{to} has no place for rejected answers and labels: {halved} rows were taken by their good answer alone"] * (
        halved > 0) + [f"{parted} pairs became two labelled rows each"] * (parted > 0)
    write_bytes(path, _packed("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode(), path))
    return {"path": str(path), "to": to, "rows_read": len(rows), "rows": len(records),
            "lossy": [p.as_dict() for p in lossy], "notes": notes}


def _refuse_target(path: Path, to: str) -> None:
    if to not in FORMATS:
        raise UsageError(f"no format {to!r}", fix=f"one of {', '.join(FORMATS)}")
    if not path.name.lower().endswith(tuple(ending + packed for ending in WRITTEN for packed in ("", ".gz", ".zst"))):
        raise UsageError(f"rows are written as JSON lines, not to {path.name}", fix="give a name that ends in .jsonl, "
                         ".jsonl.gz or .jsonl.zst")
    if path.exists():
        raise UsageError("the file exists already", where=str(path), fix="give another name, or remove it first")


def _read(source: str | list[str]) -> list[Row]:
    """All rows, each file in its own format. Raises DataError listing every row that cannot be used."""
    rows, problems, here = [], [], Path.cwd()
    for path in find_files(source, here):
        try:
            rows += normalise(read_records(path, name_of(path, here)))
        except DataError as error:
            problems += error.problems or [Problem(code="unreadable", where=error.where, fix=error.fix,
                                                   message=f"{error.what}: {error.why}" if error.why else error.what)]
    if problems:
        raise DataError(f"{len(problems)} problem{'s' * (len(problems) > 1)} in the data; nothing was written",
                        problems=problems[:SHOWN_PROBLEMS])
    return rows


def _as_chat(row: Row) -> Row:
    """The row by its good answer alone; an answer to avoid stays what it is, and no chat format will say it."""
    if row.rejected is None and not row.desirable:
        return row
    return replace(row, rejected=None, desirable=None)


def _halves(row: Row) -> list[Row]:
    """The preferred answer as a good one, the rejected as a bad one."""
    bad = [*row.question, *row.rejected]
    return [replace(row, rejected=None, desirable=True), replace(row, messages=bad, rejected=None, desirable=False)]


def _problem(row: Row, bad: Bad) -> Problem:
    field, message, fix = bad.args
    return Problem(code="lossy", where=f"{row.where}: {field}" if field else row.where, message=message, fix=fix)


def _packed(data: bytes, path: Path) -> bytes:
    if path.suffix.lower() == ".gz":
        return gzip.compress(data, mtime=0)
    if path.suffix.lower() == ".zst":
        import zstandard

        return zstandard.compress(data)
    return data
