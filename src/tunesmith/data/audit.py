"""What would spoil a fine-tune, found before a step is trained: duplicates, contradictions, leaks, too little data."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

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
    """(hash of a row, equal in exact duplicates; hash of its turns, equal also under another system prompt or other tools).

    A rejected answer, or the label of an answer, is a part of its turns.
    """
    turns = key(row)
    if row.rejected is not None:
        turns = (*turns, "rejected", *(f"{fold(m['content'])}\0{canonical_json(m.get('tool_calls'))}" for m in row.rejected))
    if row.desirable is not None:
        turns = (*turns, f"desirable {row.desirable}")
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


@dataclass(frozen=True, slots=True)
class Audit:
    findings: list[Finding]
    quarrels: list[list[list[int]]]
    """As `quarrels` gives them."""
    groups: list[list[int]]
    """Near-duplicates, as `Index.groups` gives them; none when they are not looked for."""


def audit(train: Sequence[Row], held_out: dict[str, Sequence[Row]], near: float | None,
          pictures: Pictures | None = None) -> Audit:
    """Findings over the rows that will be trained on and the sets that must not leak into them, with the numbers of rows.

    `pictures` draws some of them.
    """
    index = Index(train, near) if near is not None else None
    disputed, groups = quarrels(train), index.groups() if index else []
    leaks = list(every_leak(train, held_out, index))
    if pictures:
        pictures.see(train, groups, leaks)
    findings = [*_contradictions(train, disputed), *(_near_duplicates(train, index, groups) if index else []),
                *leak_findings(leaks, held_out)]
    return Audit(findings, disputed, groups)


def _setting(row: Row) -> tuple[str, str]:
    """What a row is said under: its system prompts and its tools."""
    return "\0".join(fold(m["content"]) for m in row.messages if m["role"] == "system"), canonical_json(row.tools or [])


def quarrels(train: Sequence[Row]) -> list[list[list[int]]]:
    """Questions with several different answers, where only one can be right: `[[rows of one answer, ...], ...]` of each.

    A closed answer (a label, a name, a number, JSON) is right or wrong; free text can be said in many ways, and two
    passages under one prompt do not quarrel. More than three closed answers are a quarrel only if they are labels, which
    other questions have too: "Name a street." has as many right answers as streets.

    Two hashes and a mark are kept of each row: 17 bytes. An answer that is labelled bad quarrels with none.
    """
    import numpy as np

    asked, said, closed = array("Q"), array("Q"), bytearray()
    for i, row in enumerate(train):
        answer = fold(row.answer)
        asked.append(_short_hash(f"undesirable {i}") if row.desirable is False else
                     _short_hash(*(text for m in row.question for text in (m["role"], fold(m["content"])))))
        said.append(_short_hash(answer))
        closed.append(_closed(row.answer, answer))
    if not closed:
        return []
    # One run of `order` is the rows of one question and answer, the earliest first; runs of one question stand together.
    order = np.lexsort((said, asked))
    questions, answers = np.frombuffer(asked, np.uint64)[order], np.frombuffer(said, np.uint64)[order]
    new_question = np.append(True, questions[1:] != questions[:-1])
    begins = np.flatnonzero(new_question | np.append(True, answers[1:] != answers[:-1]))
    question = np.cumsum(new_question)[begins] - 1
    _, which, times = np.unique(answers[begins], return_inverse=True, return_counts=True)
    is_open = np.frombuffer(closed, np.uint8)[order[begins]] == 0
    count = np.bincount(question)
    labels = np.bincount(question, times[which] == 1) == 0
    quarrel = (count > 1) & (np.bincount(question, is_open) == 0) & ((count <= FEW_ANSWERS) | labels)
    ends, firsts = np.append(begins[1:], len(order)), np.append(0, np.cumsum(count))
    found = [sorted(order[begins[run] : ends[run]].tolist() for run in range(firsts[q], firsts[q + 1]))
             for q in np.flatnonzero(quarrel).tolist()]
    return sorted(found)


def _short_hash(*texts: str) -> int:
    """64 bits: two of a million different texts share them with a probability under 1e-7."""
    return int.from_bytes(_hash(*texts)[:8])


def _contradictions(train: Sequence[Row], disputed: list[list[list[int]]]) -> list[Finding]:
    if not disputed:
        return []
    shown = [" / ".join(f"{r.where} {mask(r.answer)[:40]!r}" for r in (train[rows[0]] for rows in answers))
             for answers in disputed[:EXAMPLES]]
    return [Finding("contradiction", "warning", len(disputed),
                    f"{len(disputed)} questions have several different answers in train", "decide for one answer each", shown)]


def _closed(answer: str, folded: str) -> bool:
    if len(folded.split()) <= CLOSED_WORDS and len(folded) <= CLOSED_WORDS * 12:  # scripts without spaces
        return True
    if not answer.lstrip().startswith(("{", "[")):
        return False
    try:
        return isinstance(json.loads(answer), dict | list)
    except ValueError:
        return False


def _near_duplicates(train: Sequence[Row], index: Index, groups: list[list[int]]) -> list[Finding]:
    """Groups of rows that near-duplicates connect, the largest first."""
    groups = sorted(groups, key=len, reverse=True)
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
