"""Files that are either there and whole, or not there.

Everything that another step reads later is written beside its final place, flushed to disk, and moved there
in one rename. A crash, a full disk or Ctrl-C leaves the old version or nothing, never a half.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith.errors import StoreError, TunesmithError

CHUNK_BYTES = 1 << 20
FULL_BYTES = 1 << 14
NO_SPACE = os.strerror(errno.ENOSPC)


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
    with explain_os_errors(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(fd, "wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Raises StoreError when the file is missing or is not JSON."""
    with explain_os_errors(path, "read"):
        text = path.read_text(encoding="utf-8")
    try:
        return json.loads(text)
    except ValueError as error:
        raise StoreError(f"{path} is not valid JSON", why=str(error), fix="the file was changed by hand or cut off: "
                         "delete what it belongs to and make it again") from error


@contextmanager
def publish_directory(final: Path) -> Iterator[Path]:
    """Yield an empty directory that becomes `final` when the block ends well, and vanishes when it does not.

    An existing `final` is replaced. Files are flushed before the rename, so that after a power cut the
    directory is there with all its bytes or not at all.
    """
    with explain_os_errors(final, "write"):
        final.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}.", suffix=".tmp"))
        try:
            os.chmod(staging, 0o755)
            yield staging
            for path in staging.rglob("*"):
                _fsync(path)
            _fsync(staging)
            if final.exists():
                old = staging.with_suffix(".old")
                os.replace(final, old)
                os.replace(staging, final)
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.replace(staging, final)
            _fsync(final.parent)
        except BaseException as error:
            full = _tells_of_full_disk(error, staging)
            shutil.rmtree(staging, ignore_errors=True)
            if full:
                raise OSError(errno.ENOSPC, NO_SPACE) from error
            raise


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
