"""Raw records out of files, each with the place it came from. Our own reader: a user's error needs a line, not a trace.

    .jsonl .json      JSON objects, one a line or in one array; UTF-8, a BOM and CRLF are fine
    .txt, directory   text; see `data.style`
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import DataError, Problem

SHOWN_PROBLEMS = 20
JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")


@dataclass(frozen=True, slots=True)
class Record:
    value: dict
    where: str


def find_files(patterns: str | list[str], folder: Path) -> list[Path]:
    """Files named by paths, globs and directories, in a stable order.

    Raises:
        DataError: one of them names nothing, or a file of a kind that is not read.
    """
    files: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        full = str(folder / Path(pattern).expanduser())
        found = [Path(full)] if Path(full).exists() else [Path(p) for p in sorted(glob.glob(full, recursive=True))]
        if not found:
            raise DataError(f"data file {pattern!r} does not exist", where=full,
                            fix="paths in a recipe are relative to the recipe")
        for path in found:
            files += sorted(p for p in path.iterdir() if _readable(p)) if path.is_dir() else [path]
    bad = [f for f in files if not _readable(f)]
    if bad or not files:
        raise DataError("not a kind of file that is read" if bad else f"no data file in {patterns!r}",
                        where=str(bad[0] if bad else folder), fix=f"give {', '.join(JSON_SUFFIXES)} or .txt files")
    return files


def _readable(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in (*JSON_SUFFIXES, ".txt") and not path.name.startswith(".")


def read_text(path: Path, name: str | None = None) -> str:
    """Raises DataError when the file is not UTF-8, naming the line."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError("not UTF-8 text", where=f"{name or path}:{line}", why=f"byte 0x{data[error.start]:02x} {error.reason}",
                        fix="convert the file to UTF-8") from error


def read_records(path: Path, name: str | None = None) -> Iterator[Record]:
    """JSON objects of one file, which messages call `name`.

    Raises:
        DataError: naming every line that is not a JSON object (the first 20), or that the file is empty.
    """
    text = read_text(path, name)
    name = name or str(path)
    if not text.strip():
        raise DataError("the file is empty", where=name, fix="give it at least one row")
    if text.lstrip().startswith("["):
        yield from _array(name, text)
        return
    problems = []
    count = 0
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            value = json.loads(line)
        except ValueError as error:
            problems.append(Problem(code="malformed_json", where=where, message=f"not JSON: {error}",
                                    fix="one complete JSON object a line"))
            continue
        if isinstance(value, dict):
            count += 1
            yield Record(value, where)
        else:
            problems.append(Problem(code="not_an_object", where=where,
                                    message=f"a {kind_of(value)} where a JSON object belongs"))
    if problems:
        raise DataError(f"{len(problems)} of {count + len(problems)} lines cannot be read", where=name,
                        problems=problems[:SHOWN_PROBLEMS])


def _array(name: str, text: str) -> Iterator[Record]:
    try:
        values = json.loads(text)
    except ValueError as error:
        line = getattr(error, "lineno", 1)
        raise DataError("not JSON", where=f"{name}:{line}", why=str(error)) from error
    for i, value in enumerate(values):
        if not isinstance(value, dict):
            raise DataError(f"a {kind_of(value)} where a JSON object belongs", where=f"{name}: item {i + 1}")
        yield Record(value, f"{name}: item {i + 1}")


def kind_of(value) -> str:
    names = {list: "list", str: "text", type(None): "null", bool: "boolean", dict: "mapping"}
    return names.get(type(value), "number")
