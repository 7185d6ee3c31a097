"""Verbs about releases as functions; `tunesmith.verbs` offers them beside the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Say = Callable[[str], None]


def _silent(_line: str) -> None:
    return None


def verify_release(release: str, *, key: str | Path | None = None) -> dict:
    """`{identical, release_id, signatures[{key_id, trusted}], trusted, here{same, differs[{what, released, here}], message},
    message}`. `trusted`: whether one of the keys that count signed it, null where no key was named; `key` is a public key that
    counts, in place of TUNESMITH_TRUSTED_KEYS. `here` (null without a lock) is information: this machine against the lock.

    Raises:
        StoreError: naming the first file that differs, or the signature that is wrong.
    """
    from tunesmith.releases.bundle import Release
    from tunesmith.releases.lock import here
    from tunesmith.releases.sign import key_id, public_key, trusted_keys

    counting = {key_id(public_key(Path(key))): str(key)} if key else trusted_keys()
    found = Release.find(release)
    signed, lock = found.verify(), found.lock()
    trusted = None if counting is None else bool(counting.keys() & set(signed))
    said = {None: f"{len(signed)} signatures, and no key is said to count", True: "signed by a trusted key",
            False: "not signed by a trusted key"}[trusted]
    return {"identical": True, "release_id": found.id, "trusted": trusted, "here": here(lock) if lock else None,
            "signatures": [{"key_id": k, "trusted": None if counting is None else k in counting} for k in signed],
            "message": f"{len(found.manifest['files'])} files of {found.id} are as they were released; {said}"}


def new_key(path: str | Path) -> dict:
    """`{key, public_key, key_id}`: a new ed25519 key to sign releases with. Raises UsageError when the file is there."""
    from tunesmith.releases.sign import new_key as make

    return make(Path(path))


def sign(release: str, *, key: str | Path | None = None) -> dict:
    """`{release_id, signed_by}`: a signature beside a release; its id stays. `key`: a private key, default
    TUNESMITH_SIGNING_KEY. Raises UsageError without one, or StoreError when the release is not as it was released."""
    from tunesmith.errors import UsageError
    from tunesmith.releases.bundle import Release
    from tunesmith.releases.sign import SIGNING_KEY, signing_key
    from tunesmith.releases.sign import sign as write

    private = signing_key(key)
    if private is None:
        raise UsageError("no key to sign with", fix=f"--key FILE, or set {SIGNING_KEY}; `tunesmith key new FILE` makes one")
    found = Release.find(release)
    return {"release_id": found.id, "signed_by": write(found, private)}


def push(release: str, url: str, *, say: Say = _silent) -> dict:
    """`{release_id, url, files, uploaded, bytes}`: a release copied to a directory, an object store or an OCI registry.

    Raises:
        UsageError: an address that cannot be opened, or has credentials in it. StoreError: the store refuses.
    """
    from tunesmith.releases.bundle import Release
    from tunesmith.releases.stores import push as copy

    return copy(Release.find(release), url, say)


def pull(release: str, url: str, *, say: Say = _silent) -> dict:
    """`{release_id, path, url, files, downloaded, bytes}`: a release fetched by its id and checked. Raises as `push`, and
    NotFoundError; what is not as it was released is not kept."""
    from tunesmith.releases.stores import pull as fetch

    return fetch(release, url, say)


def gc(*, keep: int = 5, dry_run: bool = False, say: Say = _silent) -> dict:
    """`{removed[{kind, id, bytes}], bytes, kept{releases, runs, datasets}, dry_run}`: what no channel's history, run, sweep or
    release needs, but the `keep` newest of each kind. Raises StoreError before anything is removed."""
    from tunesmith.releases.gc import collect

    return collect(keep, dry_run, say)
