"""Rows on disk, read as a sequence: a million of them take no more memory than one.

    train.jsonl     one row a line, as `Row.as_record` gives it

Where each line begins is found by one scan of the file when the sequence is first used: 8 bytes a row.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, overload

from tunesmith.data.rows import Row

if TYPE_CHECKING:
    import numpy as np

SCAN_BYTES = 1 << 22


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    """Write rows as they come. Returns how many; the caller publishes the directory."""
    count = 0
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(encode(row))
            count += 1
    return count


class Rows(Sequence[Row]):
    """The rows of a file that `write_rows` wrote, decoded one at a time when they are asked for."""

    def __init__(self, path: Path):
        self.path = path

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> list[Row]: ...

    def __getitem__(self, at):
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        i = range(len(self))[at]  # an IndexError, and negative numbers, as lists have them
        begin = int(self._ends[i - 1]) + 1 if i else 0
        return decode(self._bytes[begin : int(self._ends[i])].tobytes())

    def __iter__(self) -> Iterator[Row]:
        with open(self.path, "rb") as lines:
            yield from map(decode, lines)

    @cached_property
    def _bytes(self) -> np.ndarray:
        import numpy as np

        if not self.path.stat().st_size:  # an empty file cannot be mapped
            return np.zeros(0, np.uint8)
        return np.memmap(self.path, np.uint8, "r")

    @cached_property
    def _ends(self) -> np.ndarray:
        """Where the line feeds are. JSON escapes those inside of a text."""
        import numpy as np

        blocks = range(0, len(self._bytes), SCAN_BYTES)
        found = [np.flatnonzero(self._bytes[b : b + SCAN_BYTES] == ord("\n")) + b for b in blocks]
        return np.concatenate(found) if found else np.zeros(0, np.int64)


class Chosen(Sequence[Row]):
    """Some rows of a sequence, by number, in that order."""

    def __init__(self, rows: Sequence[Row], numbers: Sequence[int]):
        self.rows, self.numbers = rows, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, at):
        if isinstance(at, slice):
            return [self.rows[int(n)] for n in self.numbers[at]]
        return self.rows[int(self.numbers[at])]

    def __iter__(self) -> Iterator[Row]:
        return (self.rows[int(n)] for n in self.numbers)


def encode(row: Row) -> str:
    return json.dumps(row.as_record(), ensure_ascii=False) + "\n"


def decode(line: bytes | str) -> Row:
    return Row.from_record(json.loads(line))
