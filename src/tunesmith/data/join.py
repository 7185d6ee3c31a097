"""Several prepared datasets as one: for a model that was made of models, each trained on its own.

    train       all their training rows: a test row of one must not stand in the training rows of another
    test sets   all of them, the first dataset's first; sets of one name are told apart by the name of their dataset

Nothing is rendered again: rows and tokens are those that the datasets have. Leaks, contradictions and near-duplicates are
looked for anew, over all training rows; every other finding is taken over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tunesmith.data.audit import audit
from tunesmith.data.dataset import TRAIN, Dataset, rows_file, write_tokens
from tunesmith.data.prepare import code_digest
from tunesmith.data.spool import Rows, encode
from tunesmith.store.files import publish_directory, sha256_file, sha256_json, sweep, write_json
from tunesmith.store.home import home
from tunesmith.template.render import Rendered

AUDITED = ("contradiction", "near_duplicate", "leak_")
"""Beginnings of the codes of findings that depend on all training rows together."""


def join(parts: Sequence[tuple[str, Dataset]], near: float | None,
         say: Callable[[str], None] = lambda _line: None) -> tuple[Dataset, list[dict[str, str]]]:
    """(the dataset, for each part `{its test set: what it is called there}`). `parts`: names for people, and datasets.

    Datasets that are the same are one, and so are test sets of one name and the same bytes. `near`: the similarity from which
    rows are near-duplicates, None: these are not looked for.
    """
    labels = _labels(parts)
    sets = _test_sets(parts, labels)
    different = {dataset.id: (label, dataset) for label, (_, dataset) in reversed(list(zip(labels, parts, strict=True)))}
    different = dict(reversed(different.items()))
    if len(different) == 1:
        return parts[0][1], [{name: name for name in dataset.tests} for _, dataset in parts]
    inputs = {"joined": [[label, dataset.id] for label, dataset in different.values()], "settings": {"near": near},
              "tests": list(dict.fromkeys(new for names in sets for new in names.values())), "seed": None,
              "template": parts[0][1].manifest["inputs"]["template"], "code": code_digest()}
    dataset_id = "ds-" + sha256_json(inputs).removeprefix("sha256:")[:20]
    path = home() / "datasets" / dataset_id
    if (path / "manifest.json").is_file():
        say(f"dataset {dataset_id} is already joined")
        return Dataset.open(path), sets
    sweep(path.parent)
    with publish_directory(path) as staging:
        made = _make(parts, labels, different, sets, inputs, near, staging)
        write_json(staging / "manifest.json", {"id": dataset_id, **made})
    counts = Dataset.open(path).manifest["counts"]
    say(f"dataset {dataset_id}: {counts['train']} training rows of {len(different)} datasets, {len(inputs['tests'])} test sets")
    return Dataset.open(path), sets


def _labels(parts: Sequence[tuple[str, Dataset]]) -> list[str]:
    """A name for each part; different datasets of one name are numbered, in the order they are given."""
    ids: dict[str, list[str]] = {}
    for label, dataset in parts:
        known = ids.setdefault(label, [])
        if dataset.id not in known:
            known.append(dataset.id)
    return [label if len(ids[label]) == 1 else f"{label}-{1 + ids[label].index(dataset.id)}" for label, dataset in parts]


def _test_sets(parts: Sequence[tuple[str, Dataset]], labels: list[str]) -> list[dict[str, str]]:
    bytes_of = [{name: sha256_file(dataset.path / rows_file(name)) for name in dataset.tests} for _, dataset in parts]
    meanings: dict[str, set[str]] = {}
    for found in bytes_of:
        for name, digest in found.items():
            meanings.setdefault(name, set()).add(digest)
    return [{name: name if len(meanings[name]) == 1 else f"{label}-{name}" for name in found}
            for label, found in zip(labels, bytes_of, strict=True)]


def _make(parts: Sequence[tuple[str, Dataset]], labels: list[str], different: dict, sets: list[dict[str, str]], inputs: dict,
          near: float | None, staging: Path) -> dict:
    files = {TRAIN: [(label, dataset, TRAIN) for label, dataset in different.values()]}
    for label, (_, dataset), names in zip(labels, parts, sets, strict=True):
        for old, new in names.items():
            files.setdefault(new, [(label, dataset, old)])
    counts = {part: _write(part, pieces, staging) for part, pieces in files.items()}
    trained = counts.pop(TRAIN)
    train, held_out = Rows(staging / rows_file(TRAIN)), {part: Rows(staging / rows_file(part)) for part in counts}
    findings = [f.as_dict() for f in audit(train, held_out, near).findings]
    sources: dict[str, list[str]] = {}
    hashes: dict[str, list[str]] = {}
    for label, dataset in different.values():
        findings += [f | {"message": f"{label}: {f['message']}", "examples": [f"{label}/{e}" for e in f["examples"]]}
                     for f in dataset.manifest["findings"] if not f["code"].startswith(AUDITED)]
    for part, pieces in files.items():
        key = part if part == TRAIN else f"test:{part}"
        for _, dataset, old in pieces:
            known = dict(zip(dataset.manifest["sources"], dataset.manifest["inputs"]["sources"], strict=True))
            old = old if old == TRAIN else f"test:{old}"
            sources.setdefault(key, []).extend(dataset.manifest["sources"].get(old, []))
            hashes.setdefault(key, []).extend(known.get(old, []))
    return {"inputs": inputs | {"sources": list(hashes.values())}, "sources": sources, "tests": list(counts),
            "counts": {"rows_read": sum(d.manifest["counts"]["rows_read"] for _, d in different.values()),
                       "train": trained.pop("rows"), **{f"test:{n}": c["rows"] for n, c in counts.items()}, **trained},
            "findings": findings, "mix": {}, "filters": [], "system": None, "text": None}


def _write(part: str, pieces: list[tuple[str, Dataset, str]], staging: Path) -> dict[str, int]:
    """Rows and tokens of one part, as they are. A row's place begins with the name of its dataset."""

    def rendered(file) -> Iterator[Rendered]:
        for label, dataset, old in pieces:
            tokens = dataset.tokens(old)
            for i, row in enumerate(dataset.rows(old)):
                file.write(encode(replace(row, where=f"{label}/{row.where}")))
                yield Rendered("", *tokens[i], [])

    with open(staging / rows_file(part), "w", encoding="utf-8", newline="\n") as file:
        return write_tokens(staging, part, rendered(file))
