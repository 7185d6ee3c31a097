"""Datasets on the Hugging Face hub: `hf:owner/name[@revision][:split or glob]`.

    hf:owner/name                 all data files, if they are of one split
    hf:owner/name:train           files of that split, by their names
    hf:owner/name@abc123:data/a*  files that match, at a commit or tag: the same bytes tomorrow
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

from tunesmith.errors import DataError

PREFIX = "hf:"
NAME = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^:@]+))?(:(?P<chosen>.+))?")
SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")
DESCRIBES = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files beside the data that have the ending of data."""
SNAPSHOT = re.compile(r"datasets--(?P<repo>[^/]+)/snapshots/(?P<commit>[^/]+)/(?P<file>.+)$")


def fetch(name: str, endings: list[str]) -> list[Path]:
    """The data files in the hub's local cache, fetched if they are not there.

    Raises:
        DataError: the name cannot be read, the hub cannot be reached or refuses, no file matches, or files of several
            splits do.
    """
    found = NAME.fullmatch(name)
    if not found:
        raise DataError(f"{name!r} names no dataset on the hub", fix="write hf:owner/name, hf:owner/name@revision, and "
                        "optionally :split or :glob after it")
    chosen = found["chosen"]
    folder = _snapshot(name, found["repo"], found["revision"], _patterns(chosen, endings))
    files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    data = {rel: p for rel, p in files.items() if rel.endswith(tuple(endings)) and p.name not in DESCRIBES
            and not any(part.startswith(".") for part in rel.split("/"))}
    taken = {rel: p for rel, p in data.items() if chosen is None or _matches(rel, chosen)}
    if not taken:
        raise DataError(f"no data file for {name!r}", where=str(folder), why=f"it has {', '.join(data) or 'none that is read'}",
                        fix=f"name a split or a glob of files that end in {', '.join(endings)}")
    if chosen is None:
        _refuse_several_splits(name, list(taken))
    return list(taken.values())


def name_of(path: Path) -> str | None:
    """`hf:owner/name@commit/file` for a file in the hub's cache, None for others."""
    found = SNAPSHOT.search(path.as_posix())
    return f"{PREFIX}{found['repo'].replace('--', '/', 1)}@{found['commit'][:8]}/{found['file']}" if found else None


def _snapshot(name: str, repo: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise DataError(f"dataset {name!r} could not be had from the Hugging Face hub", where=name,
                        why=(str(error).strip() or type(error).__name__).splitlines()[0],
                        fix="check the name; a gated dataset needs `hf auth login`; without a network give local "
                        "files") from error


def _patterns(chosen: str | None, endings: list[str]) -> list[str]:
    if chosen is not None and _is_glob(chosen):
        return [chosen]
    return [f"*{chosen or ''}*{ending}" for ending in endings]


def _is_glob(chosen: str) -> bool:
    return any(c in chosen for c in "*?[./")


def _matches(file: str, chosen: str) -> bool:
    return fnmatchcase(file, chosen) if _is_glob(chosen) else _is_of_split(file, chosen)


def _is_of_split(file: str, split: str) -> bool:
    """`train` is in train.jsonl, data/train-00000-of-00002.parquet and train/a.csv, not in train_sft-00000.parquet."""
    return re.search(rf"(?:^|[/._-]){re.escape(split)}(?=$|[/.-]|_?\d)", file) is not None


def _refuse_several_splits(name: str, files: list[str]) -> None:
    of = {split: file for split in SPLITS for file in files if _is_of_split(file, split)}
    if len(of) > 1:
        raise DataError(f"{name!r} has several splits: {', '.join(of)}", why="its test rows would be trained on",
                        fix=f"name one: {name}:{next(iter(of))}")
