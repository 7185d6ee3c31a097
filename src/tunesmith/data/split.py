"""Hold rows out, the same ones every time.

    rows      a1 a2 b1 c1 c1' d1          rows of one group (file, author, near-duplicates) never part
    groups    [a1 a2] [b1] [c1 c1'] [d1]
    ranked    by a hash of their content and the seed, so that neither order nor names decide
    test      groups from the front, until the share is reached; in every stratum, when there are strata

By time nothing is drawn: the newest rows are held out, as a model in use meets rows newer than those it learned from.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TypeVar

from tunesmith.data.rows import Row
from tunesmith.errors import DataError
from tunesmith.recipe.schema import Split

Group = TypeVar("Group")
TIME_KEYS = ("time", "timestamp", "date", "created", "created_at")


def split(rows: Sequence[Row], config: Split, seed: int, similar: Sequence[Sequence[int]] = ()) -> tuple[list[int], list[int]]:
    """Numbers of the rows to train on and of those held out, in order. `similar`: rows that must stay on one side.

    Raises:
        DataError: one side would be empty, or rows do not say what they are split or stratified by.
    """
    if config.by == "time":
        held_out = _newest(rows, config.test)
    else:
        groups = _groups(rows, config.by, similar)
        stratum = field(config.stratify) if config.stratify else None
        held_out = _drawn(rows, groups, config, seed, stratum)
    train = [i for i in range(len(rows)) if i not in held_out]
    if not train or not held_out:
        count = len(set(_groups(rows, config.by, similar))) if config.by != "time" else len(rows)
        raise one_sided(config, count, all("chapter" in row.meta for row in rows))
    return train, sorted(held_out)


def one_sided(config: Split, count: int, chapters: bool) -> DataError:
    """The error that nothing would be left on one side of so many groups, of rows that all say their chapter or do not."""
    what = {"source": "file", "random": "distinct row"}.get(config.by, f"group of {config.by!r}")
    return DataError(f"cannot hold out {config.test:.0%} of {count} {what}{'s' * (count != 1)}",
                     fix="hold out whole chapters with data.split.by: chapter, or name a test file in data.test"
                     if chapters and config.by == "source"
                     else "give more data, name a test file in data.test, or split by random")


def source(row: Row) -> str:
    """The file a row came from."""
    return row.where.rsplit(":", 1)[0]


def chapter(row: Row) -> str:
    """The chapter a row came from, of its `source` if it names one: two books may both have a first chapter."""
    return f"{row.meta.get('source', '')}\0{field('chapter')(row)}"


def _drawn(rows: Sequence[Row], groups: list[int], config: Split, seed: int, stratum: Callable[[Row], str] | None) -> set[int]:
    digest: dict[int, int] = defaultdict(int)
    labels: dict[int, Counter[str]] = defaultdict(Counter)
    for row, group in zip(rows, groups, strict=True):
        digest[group] += int.from_bytes(content_digest(row))  # a sum, so that the order of a group's rows does not matter
        labels[group][stratum(row) if stratum else ""] += 1
    members: dict[int, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)
    strata: dict[str, list[int]] = defaultdict(list)
    for group in members:
        strata[labels[group].most_common(1)[0][0]].append(group)
    ranked = [sorted(inside, key=lambda g: rank(seed, digest[g])) for inside in strata.values()]
    fronts = [(sum(len(members[g]) for g in inside), [(len(members[g]), g) for g in inside]) for inside in ranked]
    return {i for group in drawn(fronts, config.test, len(rows)) for i in members[group]}


def rank(seed: int, digest: int) -> bytes:
    """Where a group stands in the draw, by the sum of its rows' digests: evenly spread over all 32-byte strings."""
    return hashlib.sha256(f"{seed}/{digest}".encode()).digest()


def drawn(strata: list[tuple[int, list[tuple[int, Group]]]], share: float, rows: int) -> Iterator[Group]:
    """The groups to hold out of strata, each given as (its rows, [(size, group), the lowest rank first]).

    Of each list its front is enough: as many groups as have more than `share` of the stratum's rows.
    """
    held_out = 0
    for total, ranked in strata:
        taken = 0
        for size, group in ranked:
            enough = taken + size / 2 > share * total and (taken or len(strata) > 1)
            if enough or held_out + size == rows:
                break
            yield group
            taken, held_out = taken + size, held_out + size


def _groups(rows: Sequence[Row], by: str, similar: Sequence[Sequence[int]]) -> list[int]:
    """A group number for each row: the same content, file or key, and what hangs together by near-duplicates."""
    name = group_name(by)
    first: dict = {}
    parent = [first.setdefault(name(row), i) for i, row in enumerate(rows)]

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for cluster in similar:
        for i in cluster[1:]:
            a, b = sorted((root(cluster[0]), root(i)))
            parent[b] = a
    return [root(i) for i in range(len(rows))]


def group_name(by: str) -> Callable[[Row], str | bytes]:
    """What rows of one group have in common: their content, file or key."""
    return {"random": content_digest, "source": source, "chapter": chapter}.get(by) or field(by)


def _newest(rows: Sequence[Row], share: float) -> set[int]:
    times = [_time(row) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: times[i])
    if not order:
        return set()
    border = times[order[-max(1, round(share * len(order)))]]
    return {i for i, t in enumerate(times) if t >= border}


def _time(row: Row) -> float:
    """Seconds since 1970, of the first time key that the row has."""
    said = next((row.meta[k] for k in TIME_KEYS if row.meta.get(k) is not None), None)
    if isinstance(said, int | float) and not isinstance(said, bool):
        return float(said)
    try:
        when = datetime.fromisoformat(str(said))
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except ValueError:
        raise DataError(f"{said!r} is no time" if said else "a row without a time", where=row.where,
                        why="data.split.by is time",
                        fix=f"give every row one of {', '.join(TIME_KEYS)}: an ISO 8601 date or seconds since 1970") from None


def field(key: str) -> Callable[[Row], str]:
    """What a row says under this key; `answer` is its answer."""
    if key == "answer":
        return lambda row: row.answer

    def read(row: Row) -> str:
        if row.meta.get(key) is None:
            raise DataError(f"a row without {key!r}", where=row.where, why=f"data.split names {key!r}",
                            fix=f"give every row the key, or split by random; this one has {sorted(row.meta) or 'none'}")
        return str(row.meta[key])

    return read


def content_digest(row: Row) -> bytes:
    return hashlib.sha256("\0".join(m["content"] for m in row.messages).encode()).digest()
