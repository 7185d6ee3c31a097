"""Shape the mix: how many rows of each source, task, language or length are trained on.

    rows of a group        caps: the most that a group may give
    weights {a: 3, b: 1}   shares of the mix; rows are left out until they hold (never repeated)

What is left out is drawn by content and seed, so the same rows stay whatever their order, and a larger cap keeps
all that a smaller one kept.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence

from tunesmith.data.quality.language import UNKNOWN, language_of
from tunesmith.data.rows import Row
from tunesmith.data.split import source
from tunesmith.data.spool import Chosen
from tunesmith.errors import DataError
from tunesmith.recipe.schema import Mix

LENGTHS = (200, 500, 1000, 2000, 5000, 10000)
"""Borders of the length groups, in characters of the whole row."""


def mix_all(rows: Sequence[Row], configs: Mix | list[Mix], seed: int) -> tuple[list[int], dict[str, list[int]]]:
    """`mix` by each of these in order, each of what the one before kept. With several, groups are named `task: a`.

    Raises:
        DataError: as `mix` does.
    """
    if isinstance(configs, Mix):
        return mix(rows, configs, seed)
    numbers, tables = list(range(len(rows))), {}
    for config in configs:
        kept, table = mix(Chosen(rows, numbers), config, seed)
        numbers = [numbers[i] for i in kept]
        tables |= {f"{config.by}: {group}": counts for group, counts in table.items()}
    return numbers, tables


def mix(rows: Sequence[Row], config: Mix, seed: int) -> tuple[list[int], dict[str, list[int]]]:
    """Numbers of the rows to keep, in order, and `{group: [rows there, rows kept]}`, the largest group first.

    Raises:
        DataError: a weight or cap names a group that no row is in, or a row does not say its group.
    """
    group_of = _grouping(config.by)
    members: dict[str, list[tuple[bytes, int]]] = defaultdict(list)
    for i, row in enumerate(rows):
        members[group_of(row)].append((rank(row, seed), i))
    caps = config.caps if isinstance(config.caps, dict) else dict.fromkeys(members, config.caps) if config.caps else {}
    unknown = sorted((set(config.weights) | set(caps)) - set(members))
    if unknown:
        raise DataError(f"data.mix names {unknown[0]!r}, and no row is of it", why=f"by {config.by} there are "
                        f"{', '.join(sorted(members)[:10])}", fix="correct the name, or take it out")
    sizes = {g: min(len(m), caps.get(g, len(m))) for g, m in members.items()}
    if config.weights:
        scale = min(sizes[g] / w for g, w in config.weights.items())
        sizes = {g: max(1, int(scale * config.weights[g] + 1e-9)) if g in config.weights else 0 for g in sizes}
    kept = sorted(i for g, m in members.items() for _rank, i in sorted(m)[: sizes[g]])
    return kept, {g: [len(members[g]), sizes[g]] for g in sorted(members, key=lambda g: (-len(members[g]), g))}


def _grouping(by: str) -> Callable[[Row], str]:
    if by == "source":
        return lambda row: str(row.meta.get("source") or source(row))
    if by == "length":
        return _length_group
    if by == "language":
        return _language

    def read(row: Row) -> str:
        if row.meta.get(by) is None:
            raise DataError(f"a row without {by!r}", where=row.where, why=f"data.mix.by is {by!r}",
                            fix="give every row the key, or mix by source, length or language")
        return str(row.meta[by])

    return read


def _length_group(row: Row) -> str:
    length = sum(len(m["content"]) for m in row.messages)
    at = bisect_right(LENGTHS, length)
    return f"up to {LENGTHS[at]}" if at < len(LENGTHS) else f"over {LENGTHS[-1]}"


def _language(row: Row) -> str:
    """The language that the row says it is in, else that of its answer, else of its prompt, as far as they can be told."""
    if said := row.meta.get("language") or row.meta.get("lang"):
        return str(said)
    answer = language_of(row.answer)
    return answer if answer != UNKNOWN else language_of(row.prompt)


def rank(row: Row, seed: int) -> bytes:
    text = "\0".join(m["content"] for m in row.messages)
    return hashlib.sha256(f"{seed}/{text}".encode()).digest()
