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
    import numpy as np
    import pyarrow as pa
    from ray.data import Dataset

FILE_BITS = 40
BATCH_ROWS = 4096
"""Rows that a worker holds decoded at a time."""
COUNTED_ROWS = 50_000
"""Rows whose counts are added up before they are sent."""
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


def sparse(counts: np.ndarray, side: int) -> pa.Table:
    """Counts of a block: where they are not 0, and how many. Those of side 1 follow those of side 0, of the same shape."""
    import numpy as np
    import pyarrow as pa

    there = np.flatnonzero(counts)
    return pa.table({"place": there + side * counts.size, "count": counts.ravel()[there]})


def dense(ds: Dataset, shape: tuple[int, ...], join: np.ufunc | None = None) -> np.ndarray:
    """`sparse` counts of all blocks in one array: added up, or joined by another ufunc whose neutral element is 0."""
    import numpy as np

    whole = np.zeros(shape, np.int64)
    for table in ds.iter_batches(batch_format="pyarrow", batch_size=None):
        (join or np.add).at(whole.reshape(-1), table["place"].to_numpy(), table["count"].to_numpy())
    return whole


def records(ds: Dataset) -> list[dict]:
    """A small dataset as dictionaries, in the order of `at` where it has one."""
    found = [record for table in tables(ds) for record in table.to_pylist()]
    return sorted(found, key=lambda record: record["at"]) if found and "at" in found[0] else found
