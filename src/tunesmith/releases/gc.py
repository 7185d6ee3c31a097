"""What can go: releases, runs and datasets that nothing needs any more.

    roots      every release in any channel's history; models of fine-tuning jobs (`models/*.json`); runs that go on or can be
               resumed; sweeps; the newest `keep` of each kind
    needed     a root, or anything that something needed names (its id stands in the other's files)
    collected  the rest, each in one rename, and not while a channel is moved or a release made

So every rollback and every drill that was possible before is possible after: a channel's history never shrinks, and all that it
names stays, with the runs and datasets behind it. Bases lie in the cache and are not touched, nor is MLflow's store.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import UsageError
from tunesmith.releases.channel import all_channels
from tunesmith.store.files import explain_os_errors, held, read_json, remove_directory, sweep
from tunesmith.store.home import MODELS, changing, home

KEEP = 5
TOLD_BY = {"releases": ("manifest.json", "recipe.resolved.json", "dataset.json"),
           "runs": ("run.json", "recipe.resolved.json", "recipe.yaml"), "datasets": ("manifest.json",)}
"""Files that name what a thing needs; the first is what makes a directory one of its kind."""
GOING_ON = ("running", "stopped")
"""Of a run that can go on where it was. A killed one still says that it is running."""
WORD = re.compile(r"[\w-]+")


@dataclass(frozen=True)
class Thing:
    """A release, a run or a dataset on disk."""

    kind: str
    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    def age_key(self) -> str | float:
        """Sorts by when it was made."""
        first = self.path / TOLD_BY[self.kind][0]
        return first.stat().st_mtime if self.kind == "datasets" else read_json(first)["created"]

    def words(self) -> set[str]:
        return words(self.path / name for name in TOLD_BY[self.kind])


def collect(keep: int = KEEP, dry_run: bool = False, say: Callable[[str], None] = lambda _line: None) -> dict:
    """Remove what nothing needs. Returns `{removed[{kind, id, bytes}], bytes, kept{releases, runs, datasets}, dry_run}`.

    `keep`: so many of the newest of each kind stay though nothing names them. With `dry_run` nothing is removed.

    Raises:
        UsageError: `keep` is below 0.
        StoreError: a file that could name something cannot be read; nothing was removed then.
    """
    if keep < 0:
        raise UsageError("--keep is below 0", fix="0 keeps only what is needed")
    with changing():
        things = [Thing(kind, path) for kind in TOLD_BY for path in sorted(_folders(kind))]
        stays = needed(things, keep)
        removed = []
        for thing in things:  # releases first: killed half-way, no release names a run that is gone
            if thing.id in stays or not _free(thing.path):
                continue
            removed.append({"kind": thing.kind, "id": thing.id, "bytes": size(thing.path)})
            say(f"{'would remove' if dry_run else 'removing'} {thing.kind.removesuffix('s')} {thing.id}")
            if not dry_run:
                remove_directory(thing.path)
        if not dry_run:
            for kind in TOLD_BY:
                sweep(home() / kind)
    gone = {r["id"] for r in removed}
    return {"removed": removed, "bytes": sum(r["bytes"] for r in removed), "dry_run": dry_run,
            "kept": {kind: sum(t.kind == kind and t.id not in gone for t in things) for kind in TOLD_BY}}


def needed(things: list[Thing], keep: int) -> set[str]:
    """Ids of what stays."""
    by_id = {t.id: t for t in things}
    roots = {move["release_id"] for channel in all_channels() for move in channel["history"]}
    for kind in TOLD_BY:
        same = sorted((t for t in things if t.kind == kind), key=Thing.age_key, reverse=True)
        roots |= {t.id for t in same[:keep]}
    roots |= {t.id for t in things if t.kind == "runs" and read_json(t.path / "run.json")["status"] in GOING_ON}
    roots |= words((home() / "sweeps").glob("*/sweep.json")) | words((home() / MODELS).glob("*.json"))
    found, queue = set(), [i for i in roots if i in by_id]
    while queue:
        one = queue.pop()
        if one not in found:
            found.add(one)
            queue += by_id[one].words() & by_id.keys()
    return found


def words(paths: Iterator[Path]) -> set[str]:
    """Every word of some text files; ids are words."""
    found: set[str] = set()
    for path in paths:
        if path.is_file():
            with explain_os_errors(path, "read"):
                found |= set(WORD.findall(path.read_text(encoding="utf-8", errors="replace")))
    return found


def size(path: Path) -> int:
    """Bytes of all files below `path`."""
    return sum(p.lstat().st_size for p in path.rglob("*") if not p.is_dir())


def _folders(kind: str) -> Iterator[Path]:
    """What is one of its kind. What is not, such as a half copied by hand, is nobody's to remove."""
    root = home() / kind
    for path in root.iterdir() if root.is_dir() else ():
        if not path.name.startswith(".") and not path.is_symlink() and (path / TOLD_BY[kind][0]).is_file():
            yield path


def _free(path: Path) -> bool:
    """Nobody writes there now."""
    try:
        with held(path):
            return True
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
