"""Where bundles go and come from: a directory, an object store, an OCI registry.

    push(release, url)          pull(release id, url)

    /some/where, file:///...    a directory (`folder.py`)
    s3:// gs:// az:// oci://    whatever fsspec has a package for (`objects.py`); oci:// is Oracle's object store
    registry://HOST/REPO[:TAG]  an OCI registry (`registry.py`), as an artifact that `oras pull` reads too

In all of them the manifest arrives last, so that a push that was cut off is no release; pushing again goes on. A pull checks
every file against the manifest, the manifest against its id, and signatures against both, before the bundle takes its place in
one rename. Nobody has to trust a store, only the release id that he asks for.

Credentials are never part of a URL here: each library finds its own (AWS_*, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_*,
~/.oci/config, ~/.docker/config.json or TUNESMITH_REGISTRY_USER and _PASSWORD).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import NamedTuple

from tunesmith.errors import NotFoundError, StoreError, TunesmithError, UsageError
from tunesmith.releases.bundle import MANIFEST, Release, arrive_here
from tunesmith.releases.sign import ENVELOPE, FOLDER, PUBLIC
from tunesmith.store.files import publish_directory, read_json
from tunesmith.store.home import home

ID = re.compile(r"rel-[0-9a-f]{20}")
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az", "oci": "oci", "registry": "registry"}
"""URL scheme -> the extra of tunesmith that brings its package."""


class Moved(NamedTuple):
    """What a store did."""

    url: str
    """Of the release itself."""
    moved: int
    """Files that had to be moved; the others were there already."""
    bytes: int


def push(release: Release, url: str, say: Callable[[str], None] = lambda _line: None) -> dict:
    """Copy a release to a store. Returns `{release_id, url, files, uploaded, bytes}`. What is there already stays.

    Raises:
        UsageError: a URL that nothing here can open, or one with credentials in it.
        StoreError: the store refuses, or holds something else under this id.
    """
    store, release = _store(url), Release.open(release.path)
    names = [*sorted(release.manifest["files"]), *signature_files(release.path)]
    say(f"pushing {release.id}: {len(names) + 1} files")
    with _explained(url, "push to"):
        done = store.push(release, url, names)
    return {"release_id": release.id, "url": done.url, "files": len(names) + 1, "uploaded": done.moved, "bytes": done.bytes}


def pull(name: str, url: str, say: Callable[[str], None] = lambda _line: None) -> dict:
    """Fetch a release by its id, or the beginning of it, into this home: `{release_id, path, url, files, downloaded, bytes}`.

    One that is here already and whole is only given signatures that it does not have.

    Raises:
        UsageError: as for `push`. NotFoundError: no such release there, or more than one.
        StoreError: the store refuses, or what it holds is not what was released; nothing is left here then.
    """
    store, place = _store(url), home() / "releases"
    with _explained(url, "pull from"):
        release_id = store.find(name, url)
    with publish_directory(place / release_id, arrive_here) as staging:
        with _explained(url, "pull from"):
            done = store.pull(release_id, url, staging)
        _whole(staging, release_id, done.url)
    here = Release.open(place / release_id)
    files = len(here.manifest["files"]) + len(signature_files(here.path)) + 1
    say(f"pulled {release_id}: {files} files, all as they were released")
    return {"release_id": release_id, "path": str(here.path), "url": done.url, "files": files, "downloaded": done.moved,
            "bytes": done.bytes}


def signature_files(path: Path) -> list[str]:
    """Names below a bundle, public keys before their envelopes."""
    return [f"{FOLDER}/{p.name}" for p in sorted((path / FOLDER).iterdir(), reverse=True)] if (path / FOLDER).is_dir() else []


def listed(manifest: dict, signatures: list[str]) -> list[str]:
    """Names that may be fetched for a manifest from elsewhere. Raises StoreError for one that would leave the bundle."""
    names = list(manifest.get("files", {})) + [n for n in signatures if n.endswith((ENVELOPE, PUBLIC))]
    for name in names:
        parts = PurePosixPath(name).parts
        if not parts or name != "/".join(parts) or ".." in parts or name.startswith("/") or "\\" in name or "\0" in name:
            raise StoreError("the manifest names a file outside of its bundle", why=repr(name),
                             fix="do not use this store until you know who wrote that")
    return names


def one_of(name: str, found: list[str], where: str) -> str:
    """The one release id that begins with `name`. Raises NotFoundError."""
    matches = [n for n in sorted(found) if n.startswith(name) and ID.fullmatch(n)]
    if len(matches) != 1:
        raise NotFoundError(f"{name!r} is the beginning of {len(matches)} releases" if matches else f"no release {name!r}",
                            where=where, why=f"there are: {', '.join((matches or sorted(found))[-5:]) or 'none'}",
                            fix="give the whole id that `push` printed")
    return matches[0]


def redacted(text: str) -> str:
    """Without what stands before an @ in a URL."""
    return re.sub(r"(?<=://)[^/\s@]*@", "***@", text)


def _store(url: str) -> ModuleType:
    scheme = url.partition("://")[0] if "://" in url else ""
    if "@" in url.partition("://")[2].partition("/")[0]:
        raise UsageError("a store's address must not carry credentials", where=redacted(url),
                         why="it is printed, and kept in the history of a shell",
                         fix="leave them out; docs/release.md says where each library looks for them")
    if scheme in ("", "file"):
        from tunesmith.releases.stores import folder as store
    elif scheme == "registry":
        from tunesmith.releases.stores import registry as store
    else:
        from tunesmith.releases.stores import objects as store
    return store


def _whole(staging: Path, release_id: str, where: str) -> None:
    """Raises StoreError, with the file's place in the store, when what was fetched is not the release that was asked for."""
    found = Release(staging, read_json(staging / MANIFEST))
    try:
        found.verify()
    except StoreError as error:
        raise StoreError(f"what the store holds is not {release_id} as it was released",
                         where=f"{where}/{Path(error.where).relative_to(staging)}", why=error.why,
                         fix="delete it there, and push it again from where it is whole") from error
    if found.id != release_id:
        raise StoreError(f"another release lies where {release_id} should", where=where, why=f"it is {found.id}",
                         fix="delete it there, and push the right one")


@contextmanager
def _explained(url: str, doing: str) -> Iterator[None]:
    """Turn what libraries of stores raise into a StoreError: they have no common root."""
    try:
        yield
    except TunesmithError:
        raise
    except Exception as error:
        scheme, told = url.partition("://")[0], redacted((str(error) or type(error).__name__).splitlines()[0])
        if isinstance(error, ImportError) or "Protocol not known" in told:
            extra = EXTRAS.get(scheme)
            fix = f"pip install 'tunesmith[{extra}]'" if extra else f"one of {', '.join(EXTRAS)}, or a directory"
            raise UsageError(f"nothing here can open {scheme}://", where=url, why=told, fix=fix) from error
        raise StoreError(f"could not {doing} {url}", why=f"{type(error).__name__}: {told}",
                         fix="check the address, the network, and whether you may; then do it again") from error
