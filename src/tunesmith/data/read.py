"""Raw records out of files, each with the place it came from. Our own reader: a user's error needs a line, not a trace.

    .jsonl .json      JSON objects, one a line or in one array; UTF-8, a BOM and CRLF are fine
    .txt .md          text: chapters or whole books; see `data.style`
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError, Problem

SHOWN_PROBLEMS = 20
JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
TEXT_SUFFIXES = (".txt", ".md")


@dataclass(frozen=True, slots=True)
class Record:
    value: dict
    where: str


def find_files(patterns: str | list[str], folder: Path) -> list[Path]:
    """Files named by paths, globs and directories, in a stable order.

    Of a directory's Markdown files: those of one that has nothing else to read. Beside other files they are notes on them.

    Raises:
        DataError: one of them names nothing, or a file of a kind that is not read.
    """
    files: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        name = Path(pattern).expanduser()
        found = [folder / name] if (folder / name).exists() else [
            folder / p for p in sorted(glob.glob(str(name), root_dir=folder, recursive=True))]
        if not found:
            raise DataError(f"data file {pattern!r} does not exist", where=str(folder / name),
                            fix="paths in a recipe are relative to the recipe")
        for path in found:
            files += _inside(path) if path.is_dir() else [path]
    bad = [f for f in files if not _readable(f)]
    if bad or not files:
        raise DataError("not a kind of file that is read" if bad else f"no data file in {patterns!r}",
                        where=str(bad[0] if bad else folder), fix=f"give {', '.join(JSON_SUFFIXES + TEXT_SUFFIXES)} files")
    return files


def _inside(directory: Path) -> list[Path]:
    found = sorted(p for p in directory.iterdir() if _readable(p))
    return [p for p in found if p.suffix.lower() != ".md"] or found


def _readable(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in JSON_SUFFIXES + TEXT_SUFFIXES and not path.name.startswith(".")


def read_text(path: Path, name: str | None = None) -> str:
    """Raises DataError when the file is not UTF-8, naming the line."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError("not UTF-8 text", where=f"{name or path}:{line}", why=f"byte 0x{data[error.start]:02x} {error.reason}",
                        fix="convert the file to UTF-8") from error


def read_records(path: Path, name: str | None = None) -> Iterator[Record | Problem]:
    """JSON objects of one file, which messages call `name`. A line that is none comes as a Problem.

    Raises:
        DataError: the file is empty, not UTF-8, or a broken array.
    """
    text = read_text(path, name)
    name = name or str(path)
    values = _array(name, text) if text.lstrip().startswith("[") else _lines(name, text)
    empty = True
    for where, value in values:
        empty = False
        if isinstance(value, Problem):
            yield value
        elif isinstance(value, dict):
            yield Record(value, where)
        else:
            yield Problem(code="not_an_object", where=where, message=f"a {kind_of(value)} where a JSON object belongs")
    if empty:
        raise DataError("the file is empty", where=name, fix="give it at least one row")


def _lines(name: str, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            yield where, _parse(line)
        except (ValueError, RecursionError) as error:
            yield where, Problem(code="malformed_json", where=where, message=f"not JSON: {error}",
                                 fix="one complete JSON object a line")


def _array(name: str, text: str) -> Iterator[tuple[str, Any]]:
    try:
        values = _parse(text)
    except (ValueError, RecursionError) as error:
        raise DataError("not JSON", where=f"{name}:{getattr(error, 'lineno', 1)}", why=str(error)) from error
    yield from ((f"{name}: item {i}", value) for i, value in enumerate(values, 1))


def _parse(text: str) -> Any:
    value = json.loads(text)
    if "\\ud" in text.lower():  # JSON can spell half of a surrogate pair; no tokenizer and no file takes one
        json.dumps(value, ensure_ascii=False).encode()
    return value


def kind_of(value) -> str:
    names = {list: "list", str: "text", type(None): "null", bool: "boolean", dict: "mapping"}
    return names.get(type(value), "number")
