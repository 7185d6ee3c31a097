"""Hold rows out, the same ones every time."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import Literal

from tunesmith.data.rows import Row
from tunesmith.errors import DataError


def split(rows: list[Row], share: float, by: Literal["random", "source"], seed: int) -> tuple[list[Row], list[Row]]:
    """(train, test). Which side a row is on depends on its content (or its file's) and the seed, not on its place.

    `source` keeps a file's rows together; the share is then that of files.

    Raises:
        DataError: one side would be empty.
    """
    def group(row: Row) -> str:
        return row.where.rsplit(":", 1)[0] if by == "source" else text(row)

    def text(row: Row) -> str:
        return "\0".join(m["content"] for m in row.messages)

    texts: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        texts[group(row)].append(text(row))

    def rank(name: str) -> tuple[bytes, str]:
        return hashlib.sha256("\0".join([str(seed), *sorted(texts[name])]).encode()).digest(), name

    ranked = sorted(texts, key=rank)
    held_out = set(ranked[: max(1, round(share * len(ranked)))])
    train = [r for r in rows if group(r) not in held_out]
    test = [r for r in rows if group(r) in held_out]
    if not train:
        what = "file" if by == "source" else "distinct row"
        raise DataError(f"cannot hold out {share:.0%} of {len(ranked)} {what}{'s' * (len(ranked) > 1)}",
                        fix="give more data, name a test file in data.test, or split by random")
    return train, test
