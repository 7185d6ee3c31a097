"""What would spoil a fine-tune, found before a step is trained: duplicates, contradictions, leaks, too little data."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Sequence

from tunesmith.data.finding import EXAMPLES, Finding
from tunesmith.data.leaks import every_leak, leak_findings
from tunesmith.data.pictures import Pictures
from tunesmith.data.quality.evidence import mask
from tunesmith.data.rows import Row
from tunesmith.data.similar import Index, fold, key
from tunesmith.store.files import canonical_json

SHOWN_MEMBERS = 3
CLOSED_WORDS = 8
"""An answer of so many words or fewer is a label, a name, a number: it cannot be said in two ways."""
FEW_ANSWERS = 3
"""So many different answers to one question are a quarrel; more are a prompt that asks for something new each time."""


def drop_exact_duplicates(rows: Sequence[Row]) -> tuple[list[int], list[Finding]]:
    """Numbers of the rows without those that equal an earlier one after folding; what was dropped, and what was not.

    Rows that differ in their system prompt or their tools are different training examples: they are told and kept.
    """
    seen: dict[bytes, int] = {}
    said: dict[bytes, int] = {}
    numbers, dropped, kept = [], [], []
    for i, row in enumerate(rows):
        whole, turns = identity(row)
        first = seen.setdefault(whole, i)
        if first != i:
            dropped.append((i, first))
            continue
        numbers.append(i)
        if (other := said.setdefault(turns, i)) != i:
            kept.append((i, other))
    return numbers, duplicate_findings(len(dropped), [(rows[i].where, rows[j].where) for i, j in dropped[:EXAMPLES]],
                                       len(kept), [(rows[i].where, rows[j].where) for i, j in kept[:EXAMPLES]])


def identity(row: Row) -> tuple[bytes, bytes]:
    """(hash of a row, equal in exact duplicates; hash of its turns, equal also under another system prompt or other tools)."""
    turns = key(row)
    return _hash(*turns, *_setting(row)), _hash(*turns)


def duplicate_findings(dropped: int, dropped_where: list[tuple[str, str]], kept: int,
                       kept_where: list[tuple[str, str]]) -> list[Finding]:
    """What `drop_exact_duplicates` tells: how many, and the places of the first few, each with that of the earlier row."""
    findings = []
    if dropped:
        findings.append(Finding("exact_duplicate", "warning", dropped,
                                f"{dropped} training rows repeat an earlier one and are dropped",
                                "remove them from the file", [f"{here} = {there}" for here, there in dropped_where]))
    if kept:
        findings.append(Finding("duplicate_other_system", "info", kept,
                                f"{kept} training rows repeat the question and answer of an earlier one under another "
                                "system prompt or other tools", "keep them if that difference is meant",
                                [f"{here} ~ {there}" for here, there in kept_where]))
    return findings


def _hash(*texts: str) -> bytes:
    return hashlib.sha256("\0".join(texts).encode()).digest()[:16]


def audit(train: list[Row], held_out: dict[str, list[Row]], near: float | None,
          pictures: Pictures | None = None) -> list[Finding]:
    """Findings over the rows that will be trained on and the sets that must not leak into them; `pictures` draws some."""
    index = Index(train, near) if near is not None else None
    leaks = list(every_leak(train, held_out, index))
    if pictures:
        pictures.see(train, index.groups() if index else [], leaks)
    return [*_contradictions(train), *(_near_duplicates(train, index) if index else []), *leak_findings(leaks, held_out)]


def _setting(row: Row) -> tuple[str, str]:
    """What a row is said under: its system prompts and its tools."""
    return "\0".join(fold(m["content"]) for m in row.messages if m["role"] == "system"), canonical_json(row.tools or [])


def _contradictions(train: list[Row]) -> list[Finding]:
    """Questions with several different answers, where only one can be right.

    A closed answer (a label, a name, a number, JSON) is right or wrong; free text can be said in many ways, and two
    passages under one prompt do not quarrel. More than three closed answers are a quarrel only if they are labels, which
    other questions have too: "Name a street." has as many right answers as streets.
    """
    answers: dict[tuple, dict[str, Row]] = defaultdict(dict)
    for row in train:
        question = tuple((m["role"], fold(m["content"])) for m in row.question)
        answers[question].setdefault(fold(row.answer), row)
    asked = Counter(answer for group in answers.values() for answer in group)
    found = [list(group.values()) for group in answers.values() if len(group) > 1
             and all(_closed(row.answer, answer) for answer, row in group.items())
             and (len(group) <= FEW_ANSWERS or all(asked[answer] > 1 for answer in group))]
    if not found:
        return []
    shown = [" / ".join(f"{r.where} {mask(r.answer)[:40]!r}" for r in group) for group in found[:EXAMPLES]]
    return [Finding("contradiction", "warning", len(found), f"{len(found)} questions have several different answers in train",
                    "decide for one answer each", shown)]


def _closed(answer: str, folded: str) -> bool:
    if len(folded.split()) <= CLOSED_WORDS and len(folded) <= CLOSED_WORDS * 12:  # scripts without spaces
        return True
    try:
        return isinstance(json.loads(answer), dict | list)
    except ValueError:
        return False


def _near_duplicates(train: list[Row], index: Index) -> list[Finding]:
    """Groups of rows that near-duplicates connect, the largest first."""
    groups = sorted(index.groups(), key=len, reverse=True)
    if not groups:
        return []
    rows = sum(map(len, groups)) - len(groups)
    shown = []
    for group in groups[:EXAMPLES]:
        first = train[group[0]]
        others = [f" ~ {train[n].where} ({similarity:.2f})" for n, similarity in index.near(first) if n != group[0]]
        shown.append(f"{first.where}{''.join(others[: SHOWN_MEMBERS - 1])}, group of {len(group)}")
    return [Finding("near_duplicate", "info", rows,
                    f"{rows} training rows add little to others that are nearly the same (similarity >= {index.threshold}): "
                    f"{len(groups)} groups, the largest of {len(groups[0])}",
                    "keep them if the small difference matters, such as a number", shown)]
