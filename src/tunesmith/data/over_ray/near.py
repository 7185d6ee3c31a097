"""All near-duplicate pairs of a corpus that no machine holds: the prefix filter of `data.similar` as a join.

    count      shingles of every block, added up: one order for all, the rarest first
    prefix     each row sends the first shingles of both sides to buckets, and asks on the side where they are rarer
    join       in a bucket, who asks meets whoever has the shingle; sizes and signatures travel along and turn most away
    shared     what many texts have in common is told from all of them (over_ray.shared), and sent to every worker
    verify     what is left is compared in full and without what is shared, a pair of blocks at a time

Two rows that are near share a prefix shingle on each side, so one of them meets the other whichever side it asks on: no pair is
missed. Pairs are as many as they are: a text that stands a thousand times makes half a million of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from tunesmith.data.over_ray.blocks import BATCH_ROWS, COUNTED_ROWS, PARTS, dense, grouped, library, mapped, rows, sparse
from tunesmith.data.over_ray.shared import PLACES, boilerplates, sides
from tunesmith.data.shingles import HASH_BITS, at_most_different, count, levels, sets, spans, words_for
from tunesmith.data.similar import prefix_lengths, similarities
from tunesmith.data.spool import decode

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from ray.data import Dataset

POSITION_BITS = 32
PAIRS_AT_ONCE = 1 << 20


def near_pairs(ds: Dataset, threshold: float, parts: int = PARTS, told: dict | None = None) -> Dataset:
    """Pairs of rows as similar as that or more: columns at_a < at_b, similarity (the smaller of both sides').

    `told` is filled with how much was sent: prefixes and their bytes, candidates.
    """
    import pyarrow as pa

    ray = library()
    ds = ds.materialize()
    blocks = ds.to_arrow_refs()
    order, words = _counted(ds)
    common, shared = [ray.put(order)], [ray.put(boilerplates(ds, parts))]
    numbers = ray.data.from_arrow([pa.table({"block": [n]}) for n in range(len(blocks))])
    prefixes = partial(_prefixes, blocks=blocks, common=common, words=words, threshold=threshold, parts=parts)
    entries = mapped(numbers, prefixes, 1)
    if told is not None:
        entries = entries.materialize()
        told |= {"prefixes": entries.count(), "bytes": entries.size_bytes()}
    found = grouped(entries, partial(_joined, words=words, threshold=threshold, blocks=len(blocks)), parts)
    if told is not None:
        found = found.materialize()
        told |= {"candidates": found.count()}
    verified = partial(_verified, blocks=blocks, common=common, shared=shared, threshold=threshold)
    return grouped(found, verified, parts).materialize()


def _counted(ds: Dataset) -> tuple[list[np.ndarray], list[int]]:
    """Of prompts and of answers: the order of shingles, and the length of signatures."""
    counts = dense(mapped(ds, _counts, COUNTED_ROWS), (2, PLACES + 2))
    return [levels(one[:PLACES]) for one in counts], [words_for(*one[PLACES:].tolist()) for one in counts]


def _counts(table: pa.Table) -> Iterator[pa.Table]:
    """How many shingles of either side fall on each place; then their characters, and their texts."""
    import numpy as np

    for side, texts in enumerate(sides(rows(table))):
        yield sparse(np.append(count(texts), [sum(map(len, texts)), len(texts)]), side)


def _prefixes(numbers: pa.Table, blocks: list, common: list, words: list[int], threshold: float, parts: int):
    """One entry for each prefix shingle of each row: where it goes, who it is, whether it asks, sizes and signatures."""
    import numpy as np
    import pyarrow as pa

    ray = library()
    order = ray.get(common[0])
    for block in numbers["block"].to_pylist():
        whole = ray.get(blocks[block])
        for begin in range(0, max(1, len(whole)), BATCH_ROWS):
            texts = sides(rows(whole.slice(begin, BATCH_ROWS)))
            found = [sets(side, *using) for side, using in zip(texts, zip(order, words, strict=True), strict=True)]
            ids = (block << POSITION_BITS) + np.arange(begin, begin + len(texts[0]), dtype=np.int64)
            lengths = [prefix_lengths(one.sizes, threshold) for one in found]
            prefixes = [one.numbers[spans(one.starts[:-1], one.starts[:-1] + n)] for one, n in zip(found, lengths, strict=True)]
            who = [np.repeat(np.arange(len(ids)), n) for n in lengths]
            costs = [np.bincount(w, 2.0 ** ((p >> np.uint64(HASH_BITS)).astype(float) / 4), minlength=len(ids))
                     for w, p in zip(who, prefixes, strict=True)]
            asks = (costs[1] < costs[0]).astype(np.int8)
            side = np.repeat(np.arange(2, dtype=np.int8), [len(p) for p in prefixes])
            row, shingle = np.concatenate(who), np.concatenate(prefixes)
            columns = {"bucket": ((shingle & np.uint64((1 << HASH_BITS) - 1)) % np.uint64(parts)).astype(np.int64),
                       "side": side, "shingle": shingle, "id": ids[row], "asks": asks[row] == side}
            for n, one in enumerate(found):
                columns[f"size{n}"] = one.sizes[row].astype(np.int32)
                columns |= {f"word{n}.{w}": one.signatures[row, w] for w in range(words[n])}
            yield pa.table(columns)


def _joined(table: pa.Table, words: list[int], threshold: float, blocks: int) -> pa.Table:
    """(id_a < id_b) of the rows of one bucket that share a prefix shingle and may be near, each pair once."""
    import numpy as np
    import pyarrow as pa

    column = {name: table[name].to_numpy() for name in table.column_names}
    order = np.lexsort((column["shingle"], column["side"]))
    column = {name: values[order] for name, values in column.items()}
    ids, asks = column["id"], column["asks"]
    new = np.ones(len(ids), dtype=bool)
    new[1:] = (column["shingle"][1:] != column["shingle"][:-1]) | (column["side"][1:] != column["side"][:-1])
    starts = np.flatnonzero(new)
    stops = np.append(starts[1:], len(ids))
    run = np.cumsum(new) - 1
    askers = np.flatnonzero(asks & (stops[run] - starts[run] > 1))
    lengths = (stops - starts)[run[askers]]
    found = [np.zeros((0, 2), np.int64)]
    for part in np.split(askers, np.flatnonzero(np.diff(np.cumsum(lengths) // PAIRS_AT_ONCE)) + 1):
        a = np.repeat(part, (stops - starts)[run[part]])
        b = spans(starts[run[part]], stops[run[part]])
        keep = (ids[a] < ids[b]) | ((ids[a] != ids[b]) & ~asks[b])
        a, b = a[keep], b[keep]
        for n in (0, 1):
            limit = at_most_different(column[f"size{n}"][a], column[f"size{n}"][b], threshold)
            differ = sum((np.bitwise_count(column[f"word{n}.{w}"][a] ^ column[f"word{n}.{w}"][b]).astype(np.int64)
                          for w in range(words[n])), np.zeros(len(a), np.int64))
            a, b = a[differ <= limit], b[differ <= limit]
        pairs = np.stack([np.minimum(ids[a], ids[b]), np.maximum(ids[a], ids[b])], axis=1)
        found.append(np.unique(pairs, axis=0))
    pairs = np.unique(np.concatenate(found), axis=0)
    return pa.table({"bucket": (pairs[:, 0] >> POSITION_BITS) * blocks + (pairs[:, 1] >> POSITION_BITS),
                     "id_a": pairs[:, 0], "id_b": pairs[:, 1]})


def _verified(table: pa.Table, blocks: list, common: list, shared: list, threshold: float) -> pa.Table:
    """The candidates between two blocks that are near, with boilerplate and without it."""
    import numpy as np
    import pyarrow as pa

    ray = library()
    orders, told = ray.get(common[0]), ray.get(shared[0])
    pairs = np.unique(np.stack([table["id_a"].to_numpy(), table["id_b"].to_numpy()], axis=1), axis=0)
    known, inverse = np.unique(pairs, return_inverse=True)
    pairs = inverse.reshape(pairs.shape)
    lines, at = [], []
    for block in np.unique(known >> POSITION_BITS).tolist():
        positions = known[known >> POSITION_BITS == block] & ((1 << POSITION_BITS) - 1)
        some = ray.get(blocks[block]).take(pa.array(positions))
        lines += some["row"].to_pylist()
        at += some["at"].to_pylist()
    texts = sides([decode(line) for line in lines])
    found = [sets(side, order, 0) for side, order in zip(texts, orders, strict=True)]
    found += [sets(side, order, 0, one) for side, order, one in zip(texts, orders, told, strict=True) if one]
    least = np.ones(len(pairs))
    starts = np.flatnonzero(np.diff(pairs[:, 0], prepend=-1))
    for begin, end in zip(starts, np.append(starts[1:], len(pairs)), strict=True):
        for side in found:
            one = similarities(side[pairs[begin, 0]], side, pairs[begin:end, 1])
            least[begin:end] = np.minimum(least[begin:end], one)
    near = least >= threshold
    a, b = np.array(at)[pairs[near, 0]], np.array(at)[pairs[near, 1]]
    return pa.table({"at_a": np.minimum(a, b), "at_b": np.maximum(a, b), "similarity": least[near]})
