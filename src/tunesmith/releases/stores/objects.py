"""An object store as a store, through fsspec: `URL/RELEASE_ID/...` has the files of the bundle under their own names.

Single objects appear whole or not at all in S3, GCS, Azure and OCI; the manifest is written last. So whoever sees a manifest
sees all of its files, however many push the same release at once: they write the same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tunesmith.errors import StoreError
from tunesmith.releases.bundle import MANIFEST, Release
from tunesmith.releases.sign import FOLDER
from tunesmith.releases.stores import Moved, listed, one_of


def push(release: Release, url: str, names: list[str]) -> Moved:
    fs, root = _open(url)
    at = f"{root}/{release.id}"
    sizes = _sizes(fs, at)
    ours = (release.path / MANIFEST).read_bytes()
    if whole := MANIFEST in sizes:
        _same(fs.cat_file(f"{at}/{MANIFEST}"), ours, fs.unstrip_protocol(at))
    moved = total = 0
    for name in [*names, MANIFEST]:
        size = (release.path / name).stat().st_size
        if whole and sizes.get(name) == size:
            continue
        fs.put_file(str(release.path / name), f"{at}/{name}")
        moved, total = moved + 1, total + size
    return Moved(fs.unstrip_protocol(at), moved, total)


def find(name: str, url: str) -> str:
    fs, root = _open(url)
    folders = fs.ls(root, detail=False) if fs.exists(root) else []
    found = [n for n in (f.rstrip("/").rpartition("/")[2] for f in folders) if n.startswith(name)]
    return one_of(name, [n for n in found if fs.exists(f"{root}/{n}/{MANIFEST}")], fs.unstrip_protocol(root))


def pull(release_id: str, url: str, staging: Path) -> Moved:
    fs, root = _open(url)
    at = f"{root}/{release_id}"
    (staging / MANIFEST).write_bytes(fs.cat_file(f"{at}/{MANIFEST}"))
    names = listed(json.loads((staging / MANIFEST).read_bytes()), [n for n in _sizes(fs, at) if n.startswith(f"{FOLDER}/")])
    for name in names:
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        fs.get_file(f"{at}/{name}", str(staging / name))
    return Moved(fs.unstrip_protocol(at), len(names) + 1, sum((staging / n).stat().st_size for n in [*names, MANIFEST]))


def _open(url: str) -> tuple[Any, str]:
    """What is there is asked anew: a listing that fsspec remembers may be older than another's push."""
    import fsspec

    fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    fs.invalidate_cache()
    return fs, root.rstrip("/")


def _sizes(fs: Any, at: str) -> dict[str, int]:
    """Bytes of each object below `at`, by its name there."""
    try:
        found = fs.find(at, detail=True)
    except FileNotFoundError:
        return {}
    return {path.removeprefix(f"{at.lstrip('/')}/").removeprefix(f"{at}/"): int(info["size"]) for path, info in found.items()}


def _same(theirs: bytes, ours: bytes, where: str) -> None:
    if theirs != ours:
        raise StoreError("something else lies there under the id of this release", where=where, why="its manifest differs",
                         fix="find out who wrote it; then delete it, and push again")
