"""Rows of tables: CSV and Parquet, as mappings that look like the records of a JSON file.

Every value comes as JSON could have written it. In CSV all cells are text, but lists of messages and tools stand as
JSON text there, and KTO's label as true or false; these are read as what they are.
"""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Iterator
from datetime import date, datetime, time
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any

from tunesmith.data import stream
from tunesmith.data.strict import parse
from tunesmith.errors import DataError, Problem

LISTS = {"messages", "conversations", "conversation", "history", "functions", "preferred_output", "non_preferred_output"}
"""Columns that hold lists, as JSON text."""
TURNS = {"prompt", "completion", "chosen", "rejected"}
"""Columns that hold text, or a list of messages as JSON text. An answer may be JSON of its own and stays what it is."""
BATCH_ROWS = 256


def csv_rows(path: Path, name: str) -> Iterator[tuple[str, dict | Problem]]:
    """(`file:line`, row). A cell may hold line ends: the line is that on which its row begins.

    Raises:
        DataError: no header, a column named twice, a quotation mark that is not closed, or not UTF-8.
    """
    csv.field_size_limit(sys.maxsize)  # of the process; the default refuses an answer of 131,072 characters
    text = _text_lines(path, name)
    header_line = next(text)
    reader = csv.reader(chain([header_line], text), delimiter=_delimiter(header_line), strict=True)
    header: list[str] | None = None
    begin = 1
    try:
        for cells in reader:
            where, begin = f"{name}:{begin}", reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = _header(cells, where)
            else:
                yield where, _csv_row(header, cells, where)
    except csv.Error as error:
        raise DataError("not CSV", where=f"{name}:{begin}", why=str(error),
                        fix='put cells that hold commas, quotation marks or line ends between ", and double each " in them') \
            from error


def _text_lines(path: Path, name: str) -> Iterator[str]:
    for number, line in stream.lines(path, name):
        yield stream.decode(line, f"{name}:{number}") + "\n"


def _delimiter(header: str) -> str:
    """A comma, or what spreadsheets write in countries whose decimals have one."""
    return next((d for d in ",;\t" if d in header), ",")


def _header(cells: list[str], where: str) -> list[str]:
    header = [cell.strip() for cell in cells]
    twice = next((c for c in header if header.count(c) > 1), None)
    if twice is not None:
        raise DataError(f"column {twice!r} stands twice in the header", where=where, fix="give each column a name of its own")
    return header


def _csv_row(header: list[str], cells: list[str], where: str) -> dict | Problem:
    if len(cells) != len(header):
        return Problem(code="ragged_row", where=where, message=f"{len(cells)} cells under {len(header)} columns",
                       fix='put cells that hold the delimiter between "')
    row: dict[str, Any] = dict(zip(header, cells, strict=True))
    for column in row:
        row[column] = _cell(column, row[column])
    return row


def _cell(column: str, cell: str) -> Any:
    """What the cell holds: JSON in the columns above, true or false under `label`, text otherwise."""
    if column == "label" and cell.strip().lower() in ("true", "false"):
        return cell.strip().lower() == "true"
    if column not in LISTS | TURNS | {"input"} or not cell.lstrip().startswith(("[", "{")):
        return cell
    try:
        value = parse(cell)
    except (ValueError, RecursionError):
        return cell
    if column == "input":
        return value if isinstance(value, dict) and "messages" in value else cell
    if column in TURNS:
        return value if isinstance(value, list) and value and all(isinstance(m, dict) and "role" in m for m in value) else cell
    return value


def parquet_rows(path: Path, name: str) -> Iterator[tuple[str, dict | Problem]]:
    """(`file:row N`, row), counted from 1.

    Raises:
        DataError: the file is damaged, or not Parquet.
    """
    import pyarrow
    from pyarrow import parquet

    packed = path.suffix.lower() in stream.COMPRESSED
    source = io.BytesIO(stream.content(path, name)) if packed else str(path)
    number = 0
    try:
        with parquet.ParquetFile(source) as file:
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{name}:row {number}", _plain(row, f"{name}:row {number}")
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DataError("the Parquet file cannot be read", where=name if not number else f"{name}:row {number + 1}",
                        why=str(error).splitlines()[0] if str(error) else type(error).__name__,
                        fix="write it again, or give the rows as .jsonl") from error


def _plain(row: dict, where: str) -> dict | Problem:
    try:
        return {column: _json_value(value, column) for column, value in row.items()}
    except ValueError as error:
        return Problem(code="not_json", where=where, message=str(error), fix="drop the column, or write it as text")


def _json_value(value: Any, column: str) -> Any:
    """Times and decimals as text. pandas writes a missing number as NaN: null here."""
    if isinstance(value, dict):
        return {k: _json_value(v, f"{column}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(v, f"{column}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        if math.isnan(value):
            return None
        raise ValueError(f"{column} is infinite")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    raise ValueError(f"{column} holds {type(value).__name__}, which is no JSON value")
