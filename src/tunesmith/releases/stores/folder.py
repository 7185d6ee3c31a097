"""A directory as a store: shared disks, USB sticks. `ROOT/RELEASE_ID` is a bundle as it is in a home, there in one rename."""

from __future__ import annotations

import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tunesmith.errors import StoreError
from tunesmith.releases.bundle import MANIFEST, Release, arrive
from tunesmith.releases.stores import Moved, listed, one_of, signature_files
from tunesmith.store.files import publish_directory, read_json


def push(release: Release, url: str, names: list[str]) -> Moved:
    root = _root(url)
    final = root / release.id
    before = set(signature_files(final)) if _whole(final) else None
    new = [n for n in names if n not in before] if before is not None else [*names, MANIFEST]
    new = [n for n in new if before is None or n not in release.manifest["files"]]
    if new:
        with publish_directory(final, arrive) as staging:
            for name in [*names, MANIFEST]:
                _copy(release.path / name, staging / name)
    return Moved(str(final), len(new), sum((release.path / n).stat().st_size for n in new))


def find(name: str, url: str) -> str:
    root = _root(url)
    return one_of(name, [p.parent.name for p in root.glob(f"*/{MANIFEST}")], str(root))


def pull(release_id: str, url: str, staging: Path) -> Moved:
    at = _root(url) / release_id
    names = [*listed(read_json(at / MANIFEST), signature_files(at)), MANIFEST]
    for name in names:
        _copy(at / name, staging / name)
    return Moved(str(at), len(names), sum((staging / n).stat().st_size for n in names))


def _root(url: str) -> Path:
    return Path(unquote(urlsplit(url).path) if url.startswith("file://") else url).absolute()


def _whole(path: Path) -> bool:
    try:
        return bool(Release.open(path))
    except StoreError:
        return False


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
