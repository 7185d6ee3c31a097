"""What many texts of a corpus share, of a corpus that no machine holds: the steps of `data.boilerplate`, block by block.

    texts      folded prompts and answers go to buckets by hash, where each stays once: shares are of different texts
    holders    texts that have a shingle, added up                  -> which shingles are common
    meetings   windows of those, alone and with a neighbour, added  -> how often each stands there
    commonest  a window's commonest neighbour, the greatest of all  -> where texts part

The last two are not done when no shingle is common. Tables are sent as the places that are not 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from tunesmith.data.boilerplate import Boilerplate, commonest, decided, holders, meetings, widespread
from tunesmith.data.over_ray.blocks import COUNTED_ROWS, dense, grouped, library, mapped, rows, sparse
from tunesmith.data.rows import Row
from tunesmith.data.shingles import TABLE_BITS, sets
from tunesmith.data.similar import fold

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from ray.data import Dataset

SIDES = (0, 1)
"""Prompts and answers."""
PLACES = 1 << TABLE_BITS


def sides(found: list[Row]) -> list[list[str]]:
    """Folded prompts, and folded answers."""
    return [[fold(row.prompt) for row in found], [fold(row.answer) for row in found]]


def boilerplates(ds: Dataset, parts: int) -> list[Boilerplate | None]:
    """Boilerplate of all prompts and of all answers, as `Index` learns it from rows; None where no text shares any."""
    import numpy as np

    texts = grouped(mapped(ds, partial(_texts, parts=parts), COUNTED_ROWS), _once, parts).materialize()
    held = dense(_on_sides(texts, _holders), (2, PLACES + 1))
    numbers = held[:, PLACES].tolist()
    common = [widespread(held[n, :PLACES], numbers[n]) for n in SIDES]
    if not np.any(common):
        return [None, None]
    put = library().put
    met = dense(_on_sides(texts, meetings, common=[put(common)]), (2, 3, PLACES))
    if not met.any():
        return [None, None]
    most = dense(_on_sides(texts, commonest, common=[put(common)], met=[put(met)]), (2, 2, PLACES), np.maximum)
    return [decided(common[n], met[n], most[n], numbers[n]) if met[n].any() else None for n in SIDES]


def _texts(table: pa.Table, parts: int) -> pa.Table:
    """The different texts of a block, where each goes. Bytes, because a text may have half of a surrogate pair."""
    import pyarrow as pa

    found = [(side, text.encode("utf-8", "surrogatepass"))
             for side, texts in enumerate(sides(rows(table))) for text in dict.fromkeys(texts)]
    return pa.table({"side": pa.array([side for side, _ in found], pa.int8()),
                     "text": pa.array([text for _, text in found], pa.large_binary()),
                     "bucket": pa.array([int.from_bytes(hashlib.sha256(text).digest()[:4]) % parts for _, text in found],
                                        pa.int64())})


def _once(table: pa.Table) -> pa.Table:
    return table.group_by(["side", "text"]).aggregate([])


def _on_sides(texts: Dataset, count: Callable[..., np.ndarray], **tables: list) -> Dataset:
    return mapped(texts, partial(_counts, count=count, tables=tables), COUNTED_ROWS)


def _counts(table: pa.Table, count: Callable[..., np.ndarray], tables: dict[str, list]) -> Iterator[pa.Table]:
    """What `count` says of the texts of each side, given the tables of that side."""
    import pyarrow.compute as pc

    whole = {name: library().get(refs[0]) for name, refs in tables.items()}
    for side in SIDES:
        texts = table.filter(pc.equal(table["side"], side))["text"].to_pylist()
        counts = count([text.decode("utf-8", "surrogatepass") for text in texts],
                       **{name: both[side] for name, both in whole.items()})
        yield sparse(counts, side)


def _holders(texts: list[str]) -> np.ndarray:
    """How many texts have each shingle, and how many texts there are."""
    import numpy as np

    return np.append(holders(sets(texts, np.zeros(PLACES, np.uint8), 0).numbers), len(texts))
