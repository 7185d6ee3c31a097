"""What changed between two datasets: inputs, settings, and rows by content."""

from __future__ import annotations

import difflib
import hashlib
from collections import defaultdict

from tunesmith.data.dataset import TRAIN, Dataset
from tunesmith.data.rows import Row
from tunesmith.store.files import canonical_json

SHOWN = 3


def diff(a: Dataset, b: Dataset) -> dict:
    """`{identical, inputs{}, parts{name: {rows, added, removed, changed, examples}}, counts{}}`, from `a` to `b`.

    A row that is gone and a row with the same question (or, failing that, from the same place) that is new are one
    changed row, shown as the words that differ.
    """
    names = [TRAIN, *a.tests, *(t for t in b.tests if t not in a.tests)]
    parts = {n: _part(a.rows(n) if n in (TRAIN, *a.tests) else (), b.rows(n) if n in (TRAIN, *b.tests) else ()) for n in names}
    before, after = a.manifest["counts"], b.manifest["counts"]
    return {
        "a": a.id, "b": b.id, "identical": a.id == b.id, "inputs": _inputs(a.manifest["inputs"], b.manifest["inputs"]),
        "parts": parts,
        "counts": {k: [before.get(k), after.get(k)] for k in {**before, **after} if before.get(k) != after.get(k)},
    }


def _inputs(a: dict, b: dict, path: str = "") -> dict[str, list]:
    """`{dotted key: [in a, in b]}` of everything that differs."""
    found: dict[str, list] = {}
    for key in {**a, **b}:
        x, y, at = a.get(key), b.get(key), f"{path}{key}"
        if isinstance(x, dict) and isinstance(y, dict):
            found |= _inputs(x, y, f"{at}.")
        elif x != y:
            found[at] = [x, y]
    return found


def _part(a, b) -> dict:
    before, after = _numbers_by_content(a), _numbers_by_content(b)
    gone = [i for key, numbers in before.items() for i in numbers[len(after.get(key, ())) :]]
    new = [i for key, numbers in after.items() for i in numbers[len(before.get(key, ())) :]]
    pairs, gone, new = _changed(a, sorted(gone), b, sorted(new))
    examples = [f"changed {b[j].where}: {_words(a[i], b[j])}" for i, j in pairs[:SHOWN]]
    examples += [f"removed {a[i].where}: {a[i].prompt[:60]!r}" for i in gone[:SHOWN]]
    examples += [f"added {b[j].where}: {b[j].prompt[:60]!r}" for j in new[:SHOWN]]
    return {"rows": [len(a), len(b)], "added": len(new), "removed": len(gone), "changed": len(pairs), "examples": examples}


def _numbers_by_content(rows) -> dict[bytes, list[int]]:
    found: dict[bytes, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        found[_hash(canonical_json([row.messages, row.tools]))].append(i)
    return found


def _changed(a, gone: list[int], b, new: list[int]) -> tuple[list[tuple[int, int]], list[int], list[int]]:
    pairs: list[tuple[int, int]] = []
    for name in (lambda r: _hash(r.prompt), lambda r: _hash(r.where)):
        waiting: dict[bytes, list[int]] = defaultdict(list)
        for j in reversed(new):
            waiting[name(b[j])].append(j)
        found = {i: waiting[key].pop() for i in gone if waiting.get(key := name(a[i]))}
        pairs += found.items()
        gone = [i for i in gone if i not in found]
        new = sorted(set(new) - set(found.values()))
    return sorted(pairs, key=lambda p: p[1]), gone, new


def _words(a: Row, b: Row) -> str:
    """The first place where two rows differ, as `-old +new`."""
    x, y = ([w for m in r.messages for w in m["content"].split()] for r in (a, b))
    for op, i, j, k, m in difflib.SequenceMatcher(None, x, y, autojunk=False).get_opcodes():
        if op != "equal":
            return " ".join([f"-{' '.join(x[i:j])[:60]!r}"] * (j > i) + [f"+{' '.join(y[k:m])[:60]!r}"] * (m > k))
    return "white space, weights, tools or roles"


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:16]
