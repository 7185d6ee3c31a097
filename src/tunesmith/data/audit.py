"""What would spoil a fine-tune, found before a step is trained: duplicates, contradictions, leaks, too little data."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice

from tunesmith.data.rows import Row
from tunesmith.data.similar import Index, fold, key

EXAMPLES = 3
FEW_ROWS = 50


@dataclass(frozen=True, slots=True)
class Finding:
    code: str
    severity: str
    """error, warning or info."""
    count: int
    message: str
    fix: str
    examples: list[str] = field(default_factory=list)
    """The first few, as `file:line ...`."""

    def as_dict(self) -> dict:
        return asdict(self)


def drop_exact_duplicates(rows: Sequence[Row]) -> tuple[list[int], list[Finding]]:
    """Numbers of the rows without those that equal an earlier one after folding, and what was dropped."""
    seen: dict[bytes, int] = {}
    kept, dropped = [], []
    for i, row in enumerate(rows):
        first = seen.setdefault(hashlib.sha256("\0".join(key(row)).encode()).digest()[:16], i)
        if first == i:
            kept.append(i)
        else:
            dropped.append(f"{row.where} = {rows[first].where}")
    if not dropped:
        return kept, []
    return kept, [Finding("exact_duplicate", "warning", len(dropped),
                                         f"{len(dropped)} training rows repeat an earlier one and are dropped",
                                         "remove them from the file", dropped[:EXAMPLES])]


def audit(train: list[Row], held_out: dict[str, list[Row]], near: float | None) -> list[Finding]:
    """Findings over the rows that will be trained on and the sets that must not leak into them."""
    findings = [*_contradictions(train), *_size(train)]
    index = Index(train, near) if near is not None else None
    if index:
        findings += _near_duplicates(train, index)
    for name, rows in held_out.items():
        findings += _leaks(train, name, rows, index)
    return findings


def leaked_rows(findings: list[dict], name: str) -> int:
    """Rows of test set `name` that were found in train, exactly or nearly."""
    return sum(f["count"] for f in findings if f["code"] in (f"leak_exact:{name}", f"leak_near:{name}"))


def _contradictions(train: list[Row]) -> list[Finding]:
    answers: dict[tuple, dict[str, Row]] = defaultdict(dict)
    for row in train:
        context = tuple((m["role"], fold(m["content"])) for m in row.question)
        answers[context].setdefault(fold(row.answer), row)
    several = [list(group.values()) for group in answers.values() if len(group) > 1]
    # A prompt that asks for free text ("Continue the narrative.") has as many right answers as rows.
    few = [group for group in several if len(group) <= 3]
    if not few:
        return []
    shown = [" / ".join(f"{r.where} {r.answer[:40]!r}" for r in group) for group in few[:EXAMPLES]]
    return [Finding("contradiction", "warning", len(few), f"{len(few)} questions have several different answers in train",
                    "decide for one answer each", shown)]


def _size(train: list[Row]) -> list[Finding]:
    if len(train) >= FEW_ROWS:
        return []
    return [Finding("few_rows", "warning", len(train), f"only {len(train)} training rows",
                    f"expect a proof of concept; {FEW_ROWS} to 100 good rows is where tuning usually starts to show")]


def _near_duplicates(train: list[Row], index: Index) -> list[Finding]:
    pairs = []
    for i, row in enumerate(train):
        pairs += [f"{row.where} ~ {other.where} ({s:.2f})" for other, s in islice(index.near(row, before=i), 1)]
    if not pairs:
        return []
    return [Finding("near_duplicate", "info", len(pairs),
                    f"{len(pairs)} training rows are nearly the same as an earlier one (similarity >= {index.threshold})",
                    "keep them if the small difference matters, such as a number", pairs[:EXAMPLES])]


def _leaks(train: list[Row], name: str, rows: list[Row], index: Index | None) -> list[Finding]:
    trained = {key(r): r for r in train}
    exact, near = [], []
    for row in rows:
        if key(row) in trained:
            exact.append(f"{row.where} = {trained[key(row)].where}")
        elif index:
            near += [f"{row.where} ~ {other.where} ({s:.2f})" for other, s in islice(index.near(row), 1)]
    found = []
    for kind, pairs, how in (("exact", exact, "stand in train"), ("near", near, "nearly stand in train")):
        if pairs:
            found.append(Finding(f"leak_{kind}:{name}", "error", len(pairs),
                                 f"{len(pairs)} of {len(rows)} rows of {name!r} {how}: "
                                 "their score would measure memory", "remove them from one side", pairs[:EXAMPLES]))
    return found
