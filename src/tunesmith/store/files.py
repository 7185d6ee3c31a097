"""Files that are either there and whole, or not there.

Everything that another step reads later is written beside its final place, flushed to disk, and moved there
in one rename. A crash, a full disk or Ctrl-C leaves the old version or nothing, never a half.

What is written beside its place carries a lock (flock(2)) of the process that writes it, which goes with the process however
it ends. So what a killed process left is known from what a living one is writing, and `sweep` takes it away.

    .NAME.xxxxxxxx.tmp   being written
    .NAME.xxxxxxxx.old   was NAME, being replaced or removed
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from tunesmith.errors import StoreError, TunesmithError

CHUNK_BYTES = 1 << 20
FULL_BYTES = 1 << 14
NO_SPACE = os.strerror(errno.ENOSPC)
LEFTOVER = re.compile(r"^\.(.+)\.[a-z0-9_]{8}\.(?:tmp|old)$")
"""A name beside its place, and the name of its place."""


def sha256_bytes(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while chunk := f.read(CHUNK_BYTES):
            digest.update(chunk)
    return "sha256:" + digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Digest of a JSON value in canonical form: sorted keys, no spaces, UTF-8."""
    return sha256_bytes(canonical_json(value).encode())


def sha256_tree(root: Path) -> dict[str, str]:
    """`{relative path: digest}` of every file below `root`, sorted by path."""
    return {str(p.relative_to(root)): sha256_file(p) for p in sorted(root.rglob("*")) if p.is_file()}


def canonical_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@contextmanager
def explain_os_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn what the operating system says into what the user should do.

    Raises:
        StoreError: for a full disk, missing permission, or any other OSError while `doing` at `path`.
    """
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise StoreError(
            f"could not {doing} {path}",
            why="no space left on the disk" if full else (error.strerror or str(error)),
            fix="free some space, or set TUNESMITH_HOME to a disk that has room" if full
            else f"check the path and whether you may {doing} it",
        ) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically and durably."""
    with beside(path) as (f, put_in_place):
        f.write(data)
        put_in_place()


@contextmanager
def beside(path: Path) -> Iterator[tuple[BinaryIO, Callable[[], None]]]:
    """(a new file beside `path`, what flushes it and renames it to `path`), for whoever writes piece by piece. It is gone at
    the end of the block unless it was put in its place, and locked until then: there, too, it is not finished with.

    Raises:
        StoreError: the disk is full, or may not be written to.
    """
    with explain_os_errors(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        name, fd = _locked(lambda: _new_file(path), os.O_RDWR)
        with os.fdopen(fd, "w+b") as f:

            def put_in_place() -> None:
                f.flush()
                os.fsync(f.fileno())
                os.chmod(name, 0o644)
                os.replace(name, path)

            try:
                yield f, put_in_place
            finally:
                name.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def json_text(value: Any) -> str:
    """The one way in which a JSON file is written here."""
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    write_text(path, json_text(value))


def read_json(path: Path) -> Any:
    """Raises StoreError when the file is missing or is not JSON."""
    with explain_os_errors(path, "read"):
        data = path.read_bytes()
    try:
        return json.loads(data.decode())
    except ValueError as error:  # of bytes that are no UTF-8, too
        raise StoreError(f"{path} is not valid JSON", why=str(error), fix="the file was changed by hand or cut off: "
                         "delete what it belongs to and make it again") from error


@contextmanager
def publish_directory(final: Path, settle: Callable[[Path, Path], None] | None = None) -> Iterator[Path]:
    """Yield an empty directory that becomes `final` when the block ends well, and vanishes when it does not.

    An existing `final` is replaced, unless `settle(staging, final)` does something else. Files are flushed before the
    rename, so that after a power cut the directory is there with all its bytes or not at all. What killed writes of `final`
    left is taken away first.
    """
    with explain_os_errors(final, "write"):
        final.parent.mkdir(parents=True, exist_ok=True)
        sweep(final.parent, final.name)
        staging, lock = _locked(lambda: Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}.", suffix=".tmp")))
        try:
            os.chmod(staging, 0o755)
            yield staging
            for path in staging.rglob("*"):
                _fsync(path)
            _fsync(staging)
            (settle or _replace)(staging, final)
            _fsync(final.parent)
        except BaseException as error:
            full = _tells_of_full_disk(error, staging)
            shutil.rmtree(staging, ignore_errors=True)
            if full:
                raise OSError(errno.ENOSPC, NO_SPACE) from error
            raise
        finally:
            os.close(lock)


def _replace(staging: Path, final: Path) -> None:
    """Two renames where `final` is there; it is put back when the second fails."""
    if not final.exists():
        os.replace(staging, final)
        return
    old = staging.with_suffix(".old")
    os.replace(final, old)
    try:
        os.replace(staging, final)
    except BaseException:
        os.replace(old, final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def remove_directory(path: Path) -> None:
    """It is gone in one rename; whoever is killed while deleting leaves nothing that looks like it."""
    with explain_os_errors(path, "remove"), suppress(FileNotFoundError):
        old = path.with_name(f".{path.name}.{secrets.token_hex(4)}.old")
        os.replace(path, old)
        shutil.rmtree(old, ignore_errors=True)


def sweep(folder: Path, name: str | None = None) -> list[str]:
    """Take away what killed processes left in `folder`, or of `folder / name` only, and return its names.

    What a living process is writing stays, here and on other machines where the file system shares its locks; where it has
    none, everything does. Killed between the two renames of a replacement, the new directory was whole: it is put in its place.
    """
    swept = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        match = LEFTOVER.match(path.name)
        if not match or name not in (None, match[1]):
            continue
        old, final = path.with_suffix(".old"), folder / match[1]
        if path == old:
            if not path.with_suffix(".tmp").exists():  # otherwise it goes with that
                _delete(path, swept)
            continue
        with suppress(OSError), held(path):
            if old.exists() and not final.exists():
                os.replace(path, final)
            _delete(path, swept)
            _delete(old, swept)
    return swept


def _delete(path: Path, deleted: list[str]) -> None:
    if path.exists():
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        deleted.append(path.name)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock of a file or directory. Raises BlockingIOError when another does, OSError when there are no locks here."""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def _locked(make: Callable[[], Path], flags: int = os.O_RDONLY) -> tuple[Path, int]:
    """What `make` made, and the open lock on it. A sweep may come between the two: then it is made again."""
    while True:
        path = make()
        with suppress(FileNotFoundError):
            fd = os.open(path, flags)
            with suppress(OSError):  # a file system without locks: nothing is swept there
                fcntl.flock(fd, fcntl.LOCK_EX)
            if path.exists():
                return path, fd
            os.close(fd)


def _new_file(path: Path) -> Path:
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(fd)
    return Path(name)


def _tells_of_full_disk(error: BaseException, place: Path) -> bool:
    """numpy, safetensors and torch each have an error of their own for it, and none of them its number."""
    if isinstance(error, TunesmithError) or not isinstance(error, Exception):
        return False
    return NO_SPACE in str(error) or (place.exists() and shutil.disk_usage(place).free < FULL_BYTES)


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
