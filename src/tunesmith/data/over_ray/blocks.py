"""Rows in Arrow blocks, and how functions over them are carried.

`at` is the number of a row's file times 2**40 plus its number in the file: sorting by it gives the order in which one machine
reads, whatever becomes of the blocks. `row` is the row as `data.spool` encodes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING

from tunesmith.data.rows import Row
from tunesmith.data.spool import decode
from tunesmith.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

FILE_BITS = 40
BATCH_ROWS = 4096
"""Rows that a worker holds decoded at a time."""
PARTS = 200
"""Buckets of a grouping: ten million rows of a kilobyte make 50 MB each."""


def library() -> ModuleType:
    """`ray`, with `ray.data`.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UsageError("Ray Data is not installed", why=str(error), fix="pip install 'tunesmith[ray]'") from error
    return ray


def rows(table: pa.Table) -> list[Row]:
    return [decode(line) for line in table["row"].to_pylist()]


def mapped(ds: Dataset, one: Callable, batch_rows: int | None = BATCH_ROWS) -> Dataset:
    """`one` maps a table to a table, or to several."""
    return ds.map_batches(one, batch_format="pyarrow", batch_size=batch_rows)


def grouped(ds: Dataset, one: Callable, parts: int) -> Dataset:
    """`one` maps all rows with the same `bucket` to a table."""
    return ds.groupby("bucket", num_partitions=parts).map_groups(one, batch_format="pyarrow")


def tables(ds: Dataset) -> Iterator[pa.Table]:
    """What is brought to this process, batch by batch."""
    yield from ds.iter_batches(batch_format="pyarrow", batch_size=BATCH_ROWS)


def records(ds: Dataset) -> list[dict]:
    """A small dataset as dictionaries, in the order of `at` where it has one."""
    found = [record for table in tables(ds) for record in table.to_pylist()]
    return sorted(found, key=lambda record: record["at"]) if found and "at" in found[0] else found
