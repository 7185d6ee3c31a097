"""Reading, exact duplicates, split, leaks and rendering over Ray Data. See the package for what is equal to what."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.data.audit import duplicate_findings, identity
from tunesmith.data.finding import EXAMPLES, Finding
from tunesmith.data.leaks import WHOLE, find_leaks, whole_forms
from tunesmith.data.normalise import rows_of
from tunesmith.data.over_ray.blocks import BATCH_ROWS, FILE_BITS, PARTS, grouped, library, mapped, records, rows, tables
from tunesmith.data.over_ray.shared import boilerplates
from tunesmith.data.overflow import Overflow
from tunesmith.data.prepare import Problems, rendered_row, write_part
from tunesmith.data.read import SHOWN_PROBLEMS, is_text
from tunesmith.data.rows import Row, require_sft
from tunesmith.data.similar import Index
from tunesmith.data.split import content_digest, drawn, field, group_name, one_sided, rank
from tunesmith.data.spool import decode, encode
from tunesmith.errors import Problem, UsageError
from tunesmith.recipe.schema import Data, Split
from tunesmith.store.files import sha256_bytes
from tunesmith.template.render import Rendered

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset
    from transformers import PreTrainedTokenizerBase


# ---- reading


def read(named: dict[str, Path], fmt: str = "auto") -> Dataset:
    """Rows of files, by the name that messages call them; every worker reads the same paths. A file is read by one worker.

    Raises:
        DataError: rows that cannot be used, the first of them listed, as one machine lists them; or preference rows.
        UsageError: raw text.
    """
    import pyarrow as pa

    ray = library()
    if text := [name for name, path in named.items() if is_text(path)]:
        raise UsageError("raw text is not read over Ray", where=text[0], fix="make rows of it on one machine first")
    files = [pa.table({"file": [n], "name": [name], "path": [str(path)]}) for n, (name, path) in enumerate(named.items())]
    ds = mapped(ray.data.from_arrow(files), partial(_read, fmt=fmt), 1).materialize()
    odd = records(mapped(ds, _odd))
    problems = Problems()
    for record in odd:
        if record["problem"]:
            problems.add(Problem(**json.loads(record["problem"])))
    problems.count = sum(record["count"] for record in odd)
    problems.refuse()
    require_sft(decode(record["row"]) for record in odd)
    return ds.select_columns(["at", "row"])


def _read(files: pa.Table, fmt: str) -> Iterator[pa.Table]:
    for file in files.to_pylist():
        batch: list[Row | Problem] = []
        first = file["file"] << FILE_BITS
        for found in rows_of(Path(file["path"]), file["name"], fmt):
            batch.append(found)
            if len(batch) == BATCH_ROWS:
                yield _table(batch, first)
                first, batch = first + len(batch), []
        yield _table(batch, first)


def _table(batch: list[Row | Problem], first: int) -> pa.Table:
    import pyarrow as pa

    is_row = [isinstance(one, Row) for one in batch]
    return pa.table({
        "at": pa.array(range(first, first + len(batch)), pa.int64()),
        "row": pa.array([encode(one) if good else None for one, good in zip(batch, is_row, strict=True)], pa.large_string()),
        "problem": pa.array([None if good else json.dumps(one.as_dict()) for one, good in zip(batch, is_row, strict=True)],
                            pa.large_string()),
        "other": pa.array([good and (one.rejected is not None or one.desirable is not None)
                           for one, good in zip(batch, is_row, strict=True)], pa.bool_())})


def _odd(table: pa.Table) -> pa.Table:
    """The first rows of a block that are problems, with how many there are, and its first row that is not for SFT."""
    import pyarrow as pa
    import pyarrow.compute as pc

    bad = table.filter(pc.is_valid(table["problem"]))
    first = pa.concat_tables([bad.slice(0, SHOWN_PROBLEMS), table.filter(table["other"]).slice(0, 1)]).drop(["other"])
    counts = [len(bad), *[0] * len(first)][: len(first)] if len(bad) else [0] * len(first)
    return first.append_column("count", pa.array(counts, pa.int64()))


# ---- exact duplicates


def without_exact_duplicates(ds: Dataset, parts: int = PARTS) -> tuple[Dataset, list[Finding]]:
    """Rows that equal no earlier one, and what `audit.drop_exact_duplicates` says of the others."""
    marked = grouped(mapped(ds, partial(_identified, parts=parts)), _first, parts).materialize()
    told = records(mapped(marked, _told))
    found: list[list] = []
    for dropped in (True, False):
        ours = [record for record in told if record["dropped"] is dropped]
        found += [sum(record["count"] for record in ours), [(r["where"], r["twin"]) for r in ours][:EXAMPLES]]
    return mapped(marked, _kept).select_columns(["at", "row"]), duplicate_findings(*found)


def _identified(table: pa.Table, parts: int) -> pa.Table:
    import pyarrow as pa

    found = rows(table)
    hashes = [identity(row) for row in found]
    return pa.table({
        "at": table["at"], "row": table["row"].cast(pa.large_string()),
        "whole": pa.array([whole for whole, _ in hashes], pa.binary()),
        "said": pa.array([said for _, said in hashes], pa.binary()),
        "where": pa.array([row.where for row in found], pa.large_string()),
        "bucket": pa.array([int.from_bytes(said[:4]) % parts for _, said in hashes], pa.int64())})


def _first(table: pa.Table) -> pa.Table:
    """Rows of one bucket with whom they repeat (`twin`), and whether they are dropped for it."""
    import pyarrow as pa

    table = table.sort_by("at")
    wholes: dict[bytes, str] = {}
    turns: dict[bytes, str] = {}
    twins, dropped = [], []
    for whole, said, where in zip(*(table[name].to_pylist() for name in ("whole", "said", "where")), strict=True):
        dropped.append(whole in wholes)
        twins.append(wholes.get(whole) or turns.get(said))
        wholes.setdefault(whole, where)
        turns.setdefault(said, where)
    return pa.table({"at": table["at"], "row": table["row"], "where": table["where"],
                     "twin": pa.array(twins, pa.large_string()), "dropped": pa.array(dropped, pa.bool_())})


def _told(table: pa.Table) -> pa.Table:
    """How many of a block repeat another row, of each kind, and the first of them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = table.filter(pc.is_valid(table["twin"])).select(["at", "where", "twin", "dropped"]).sort_by("at")
    shown = []
    for dropped in (True, False):
        ours = found.filter(pc.equal(found["dropped"], dropped))
        first = ours.slice(0, EXAMPLES)
        shown.append(first.append_column("count", pa.array([len(ours), 0, 0][: len(first)], pa.int64())))
    return pa.concat_tables(shown)


def _kept(table: pa.Table) -> pa.Table:
    import pyarrow.compute as pc

    return table.filter(pc.invert(table["dropped"]))


# ---- split


def split(ds: Dataset, config: Split, seed: int, similar: Sequence[Sequence[int]] = (), parts: int = PARTS,
          ) -> tuple[Dataset, Dataset]:
    """Rows to train on and rows held out. `similar`: `at` of rows that must stay on one side.

    Brought to this process: the groups of the lowest ranks, about twice as many as are held out.

    Raises:
        DataError: one side would be empty, or rows do not say what they are split or stratified by.
        UsageError: a split by time.
    """
    if config.by == "time":
        raise UsageError("rows are not split by time over Ray", fix="name a test file in data.test, or split on one machine")
    merged = _merged(ds, config.by, similar)
    keyed = mapped(ds, partial(_keyed, by=config.by, stratify=config.stratify, merged=merged, parts=parts))
    ranked = grouped(keyed, partial(_ranked, seed=seed), parts).materialize()
    strata: dict[str, list] = {}  # label: [first row, rows, groups]
    for record in records(mapped(ranked, _strata)):
        stratum = strata.setdefault(record["stratum"], [record["at"], 0, 0])
        stratum[1], stratum[2] = stratum[1] + record["rows"], stratum[2] + record["groups"]
    total = sum(rows for _, rows, _ in strata.values())
    share = min(1.0, 2 * config.test)
    while True:
        fronts: dict[str, list] = defaultdict(list)
        for record in records(mapped(ranked, partial(_heads, share=share))):
            fronts[record["stratum"]].append((record["rank"], record["size"]))
        if share == 1.0 or all(sum(size for _, size in fronts[s]) > config.test * n for s, (_, n, _) in strata.items()):
            break
        share = min(1.0, 4 * share)
    ordered = [(strata[s][1], sorted((r, size) for r, size in fronts[s])) for s in sorted(strata, key=lambda s: strata[s][0])]
    borders: dict[str, bytes] = {}
    held_out = 0
    sizes = {r: (size, s) for s, front in fronts.items() for r, size in front}
    for taken in drawn([(n, [(size, r) for r, size in front]) for n, front in ordered], config.test, total):
        size, label = sizes[taken]
        borders[label], held_out = taken, held_out + size
    if held_out in (0, total):
        raise one_sided(config, sum(groups for _, _, groups in strata.values()), not records(mapped(ds, _without_chapter)))
    train, test = (mapped(ranked, partial(_side, borders=borders, inside=inside)).select_columns(["at", "row"])
                   for inside in (False, True))
    return train, test


def _group(row: Row, by: str) -> bytes:
    name = group_name(by)(row)
    return name if isinstance(name, bytes) else bytes.fromhex(sha256_bytes(name.encode()).removeprefix("sha256:"))


def _merged(ds: Dataset, by: str, similar: Sequence[Sequence[int]]) -> dict[bytes, bytes]:
    """Which groups hang together by similar rows: a name for each of those that do."""
    if not similar:
        return {}
    wanted = {at for cluster in similar for at in cluster}
    group = {record["at"]: record["group"] for record in records(mapped(ds, partial(_groups_of, by=by, wanted=wanted)))}
    parent = {name: name for name in group.values()}

    def root(name: bytes) -> bytes:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for cluster in similar:
        for at in cluster[1:]:
            parent[root(group[at])] = root(group[cluster[0]])
    return {name: root(name) for name in parent}


def _groups_of(table: pa.Table, by: str, wanted: set[int]) -> pa.Table:
    import pyarrow as pa

    found = [(at, _group(row, by)) for at, row in zip(table["at"].to_pylist(), rows(table), strict=True) if at in wanted]
    return pa.table({"at": pa.array([at for at, _ in found], pa.int64()),
                     "group": pa.array([name for _, name in found], pa.binary())})


def _keyed(table: pa.Table, by: str, stratify: str | None, merged: dict[bytes, bytes], parts: int) -> pa.Table:
    import pyarrow as pa

    found = rows(table)
    names = [_group(row, by) for row in found]
    names = [merged.get(name, name) for name in names]
    labels = [field(stratify)(row) for row in found] if stratify else [""] * len(found)
    return pa.table({
        "at": table["at"], "row": table["row"].cast(pa.large_string()), "group": pa.array(names, pa.binary()),
        "digest": pa.array([content_digest(row) for row in found], pa.binary()), "label": pa.array(labels, pa.large_string()),
        "bucket": pa.array([int.from_bytes(name[:4]) % parts for name in names], pa.int64())})


def _ranked(table: pa.Table, seed: int) -> pa.Table:
    """Rows of one bucket with the rank and stratum of their group; its first row carries the group's size, others 0."""
    import pyarrow as pa

    table = table.sort_by("at")
    names, digests, labels = (table[name].to_pylist() for name in ("group", "digest", "label"))
    sums: Counter[bytes] = Counter()
    said: dict[bytes, Counter[str]] = defaultdict(Counter)
    for name, digest, label in zip(names, digests, labels, strict=True):
        sums[name] += int.from_bytes(digest)
        said[name][label] += 1
    ranks = {name: rank(seed, digest) for name, digest in sums.items()}
    strata = {name: count.most_common(1)[0][0] for name, count in said.items()}
    seen: set[bytes] = set()
    sizes = [0 if name in seen or seen.add(name) else said[name].total() for name in names]
    return pa.table({"at": table["at"], "row": table["row"], "rank": pa.array([ranks[n] for n in names], pa.binary()),
                     "stratum": pa.array([strata[n] for n in names], pa.large_string()), "size": pa.array(sizes, pa.int64())})


def _without_chapter(table: pa.Table) -> pa.Table:
    return table.filter(["chapter" not in row.meta for row in rows(table)]).select(["at"]).slice(0, 1)


def _strata(table: pa.Table) -> pa.Table:
    import pyarrow.compute as pc

    heads = table.filter(pc.greater(table["size"], 0))
    sums = heads.group_by("stratum").aggregate([("at", "min"), ("size", "sum"), ("size", "count")])
    return sums.rename_columns({"at_min": "at", "size_sum": "rows", "size_count": "groups"})


def _heads(table: pa.Table, share: float) -> pa.Table:
    import pyarrow.compute as pc

    heads = table.filter(pc.greater(table["size"], 0)).select(["at", "rank", "stratum", "size"])
    return heads if share == 1.0 else heads.filter([int.from_bytes(r[:6]) < share * 2**48 for r in heads["rank"].to_pylist()])


def _side(table: pa.Table, borders: dict[str, bytes], inside: bool) -> pa.Table:
    return table.filter([(r <= borders.get(s, b"")) is inside
                         for r, s in zip(table["rank"].to_pylist(), table["stratum"].to_pylist(), strict=True)])


# ---- leaks


def leaks(train: Dataset, held_out: dict[str, Sequence[Row]], near: float | None, parts: int = PARTS) -> list[Finding]:
    """Findings of `leaks.find_leaks` from leak_exact to leak_near. The rows held out are few enough to be sent to every worker.

    Workers pass on the training rows that match any of them in whole; what they match is then decided here. What rows
    share is told from all of `train`: neither the rows held out nor those passed on are it.
    """
    shared = boilerplates(train, parts) if near else ()
    asked = [row for part in held_out.values() for row in part]
    forms = frozenset(form for row in asked for form in whole_forms(row))
    ref = library().put((forms, Index(asked, near, shared) if near else None))
    found = [decode(record["row"]) for record in records(mapped(train, partial(_touching, broadcast=[ref])))]
    findings = find_leaks(found, dict(held_out), Index(found, near, shared) if near else None)
    return [finding for finding in findings if finding.code.split(":")[0] in WHOLE]


def _touching(table: pa.Table, broadcast: list) -> pa.Table:
    forms, index = library().get(broadcast[0])
    found = rows(table)
    near = index.near_each(found) if index else ([] for _ in found)
    return table.filter([bool(hits) or not forms.isdisjoint(whole_forms(row)) for row, hits in zip(found, near, strict=True)])


# ---- rendering


class _Renderer:
    """A worker's own tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer

    def __call__(self, table: pa.Table) -> pa.Table:
        import pyarrow as pa

        found = [rendered_row(self.tokenizer, row) for row in rows(table)]
        good = [one if isinstance(one, Rendered) else None for one in found]
        return pa.table({
            "at": table["at"], "row": table["row"].cast(pa.large_string()),
            "ids": pa.array([one.ids if one else [] for one in good], pa.list_(pa.uint32())),
            "trained": pa.array([one.trained if one else [] for one in good], pa.list_(pa.bool_())),
            "turns": pa.array([[n for turn in one.turns for n in turn] if one else [] for one in good], pa.list_(pa.int64())),
            "problem": pa.array([json.dumps(one.as_dict()) if isinstance(one, Problem) else None for one in found],
                                pa.large_string())})


def rendered(ds: Dataset, tokenizer: PreTrainedTokenizerBase, workers: int = 1) -> Dataset:
    """Rows with `ids`, `trained` (one a token) and `turns` (begin and end of each), or `problem`. Long rows are not cut."""
    ray = library()
    return ds.map_batches(_Renderer, fn_constructor_args=(tokenizer,), batch_format="pyarrow", batch_size=BATCH_ROWS,
                          compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers))


def write(ds: Dataset, folder: Path, part: str, config: Data, dropped: Overflow,
          tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Write rendered rows in the order of `at`, on this machine, as `prepare.write_part` does. Returns its counts.

    Raises:
        DataError: rows that cannot be trained on, or none is left.
    """
    return write_part(part, (pair for table in tables(ds.sort("at")) for pair in _pairs(table)), config, folder, dropped,
                      tokenizer)


def _pairs(table: pa.Table) -> Iterator[tuple[Row, Rendered | Problem]]:
    for record in table.to_pylist():
        turns = record["turns"]
        yield decode(record["row"]), (
            Problem(**json.loads(record["problem"])) if record["problem"] else
            Rendered("", record["ids"], record["trained"], list(zip(turns[::2], turns[1::2], strict=True))))
