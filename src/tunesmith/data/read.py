"""Raw records out of files, each with the place it came from. Our own reader: a user's error needs a line, not a trace.

    .jsonl .ndjson .json   JSON objects, one a line or in one array            file:line or file: item N
    .csv                   a header, then a row a record                       file:line on which the row begins
    .parquet               columns as keys                                     file:row N
    .txt .md               text, of which `data.style` makes rows

Each also as .gz or .zst. UTF-8; a byte order mark and CRLF are fine. Lines are read one at a time: a file may be larger
than memory. Only an array, and text, are held whole. `hf:owner/name` names a dataset on the Hugging Face hub.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from tunesmith.data import hub, stream
from tunesmith.data.strict import kind_of, parse
from tunesmith.data.table import csv_rows, parquet_rows
from tunesmith.errors import DataError, Problem

SHOWN_PROBLEMS = 20
KINDS = {".jsonl": "JSON", ".ndjson": "JSON", ".json": "JSON", ".csv": "CSV", ".parquet": "Parquet", ".txt": "text",
         ".md": "text"}
READABLE = f"{', '.join(KINDS)} files, plain or with {' or '.join(stream.COMPRESSED)} added"


@dataclass(frozen=True, slots=True)
class Record:
    value: dict
    where: str


def find_files(patterns: str | list[str], folder: Path) -> list[Path]:
    """Files named by paths, globs, directories and `hf:owner/name`, in a stable order.

    Markdown beside files of rows, and a directory's README.md, is about the data and not of it.

    Raises:
        DataError: one of them names nothing, a file of a kind that is not read, or a directory of several kinds.
    """
    files: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        files += _from_hub(pattern) if pattern.startswith(hub.PREFIX) else _from_disk(pattern, folder)
    bad = [f for f in files if not _readable(f)]
    if bad or not files:
        raise DataError("not a kind of file that is read" if bad else f"no data file in {patterns!r}",
                        where=str(bad[0] if bad else folder), fix=f"give {READABLE}")
    return files


def _from_disk(pattern: str, folder: Path) -> list[Path]:
    name = Path(pattern).expanduser()
    found = [folder / name] if (folder / name).exists() else [
        folder / p for p in sorted(glob.glob(str(name), root_dir=folder, recursive=True))]
    if not found:
        raise DataError(f"data file {pattern!r} does not exist", where=str(folder / name),
                        fix="paths in a recipe are relative to the recipe")
    files: list[Path] = []
    for path in found:
        files += _one_kind(_inside(path), str(path)) if path.is_dir() else [path]
    return files


def _inside(directory: Path) -> list[Path]:
    found = sorted(p for p in directory.iterdir() if _readable(p))
    rows = [p for p in found if not is_text(p)]
    about = {".md"} if rows else set()
    return [p for p in found if _ending(p) not in about and p.name.lower() != "readme.md"]


def _from_hub(name: str) -> list[Path]:
    endings = [kind + packed for kind in KINDS if kind != ".md" for packed in ("", *stream.COMPRESSED)]
    return _one_kind(hub.fetch(name, endings), name)


def _one_kind(files: list[Path], where: str) -> list[Path]:
    first = {kind_of_file(f): f for f in reversed(files)}
    if len(first) > 1:
        named = ", ".join(f"{f.name} ({kind})" for kind, f in sorted(first.items(), key=lambda pair: str(pair[0])))
        raise DataError("files of several kinds in one directory", where=where, why=named,
                        fix="name the files that are meant, such as data/*.jsonl")
    return files


def kind_of_file(path: Path) -> str | None:
    """JSON, CSV, Parquet or text by the file's ending; None for others."""
    return KINDS.get(_ending(path))


def is_text(path: Path) -> bool:
    """Raw text (.txt, .md), rather than rows."""
    return kind_of_file(path) == "text"


def name_of(path: Path, folder: Path) -> str:
    """What messages call a file: its path relative to the recipe, or its place on the hub."""
    return hub.name_of(path) or str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def _ending(path: Path) -> str:
    return Path(path.stem if path.suffix.lower() in stream.COMPRESSED else path.name).suffix.lower()


def _readable(path: Path) -> bool:
    return path.is_file() and kind_of_file(path) is not None and not path.name.startswith(".")


def read_text(path: Path, name: str | None = None) -> str:
    """Raises DataError when the file is damaged or not UTF-8, naming the line."""
    name = name or str(path)
    data = stream.content(path, name).removeprefix(stream.BOM)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return stream.decode(data, f"{name}:{line}")


def read_records(path: Path, name: str | None = None) -> Iterator[Record | Problem]:
    """Records of one file of rows, which messages call `name`. What is none comes as a Problem at its place.

    Raises:
        DataError: the file is empty, damaged, a broken array, or holds raw text.
    """
    name = name or str(path)
    if is_text(path):
        raise DataError("raw text where rows belong", where=name, fix="give rows, as .jsonl")
    readers = {"CSV": csv_rows, "Parquet": parquet_rows}
    empty = True
    for where, value in readers.get(kind_of_file(path), _json_values)(path, name):
        empty = False
        if isinstance(value, Problem):
            yield value
        elif isinstance(value, dict):
            yield Record(value, where)
        else:
            yield Problem(code="not_an_object", where=where, message=f"a {kind_of(value)} where a JSON object belongs")
    if empty:
        raise DataError("the file is empty", where=name, fix="give it at least one row")


def _json_values(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    numbered = stream.lines(path, name)
    first = next((pair for pair in numbered if pair[1].strip()), None)
    if first is None:
        return
    if first[1].lstrip().startswith(b"["):
        yield from _array(name, read_text(path, name))
    elif _ending(path) == ".json":
        yield from _document(name, read_text(path, name))
    else:
        yield from _lines(name, chain([first], numbered))


def _document(name: str, text: str) -> Iterator[tuple[str, Any]]:
    """One object over many lines, or one a line under the wrong ending."""
    try:
        yield f"{name}: item 1", parse(text)
    except (ValueError, RecursionError):
        yield from _lines(name, ((n, line.encode()) for n, line in enumerate(text.split("\n"), 1)))


def _lines(name: str, numbered: Iterable[tuple[int, bytes]]) -> Iterator[tuple[str, Any]]:
    for number, line in numbered:
        where = f"{name}:{number}"
        try:
            text = stream.decode(line, where)
            if text.strip():
                yield where, parse(text)
        except DataError as error:
            yield where, Problem(code="not_utf8", where=where, message=f"{error.what}: {error.why}", fix=error.fix)
        except (ValueError, RecursionError) as error:
            yield where, Problem(code="malformed_json", where=where, message=f"not JSON: {error}",
                                 fix="one complete JSON object a line")


def _array(name: str, text: str) -> Iterator[tuple[str, Any]]:
    try:
        values = parse(text)
    except (ValueError, RecursionError) as error:
        raise DataError("not JSON", where=f"{name}:{getattr(error, 'lineno', 1)}", why=str(error)) from error
    yield from ((f"{name}: item {i}", value) for i, value in enumerate(values, 1))
