"""Where things live.

    TUNESMITH_HOME (default ./.tunesmith)         this project's state
        runs/RUN_ID/   datasets/ID/   releases/ID/   channels/NAME.json   mlflow.db
    TUNESMITH_CACHE (default ~/.cache/tunesmith)  what can be fetched or computed again
        packages/   bases/DIGEST/
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tunesmith.errors import NotFoundError
from tunesmith.store.files import explain_os_errors

KINDS = ("runs", "datasets", "releases", "channels")
MODELS = "models"
"""A file for each model that a service answers for, which names its release: it is not collected."""


def home() -> Path:
    return Path(os.environ.get("TUNESMITH_HOME") or ".tunesmith").absolute()


def cache() -> Path:
    return Path(os.environ.get("TUNESMITH_CACHE") or Path.home() / ".cache" / "tunesmith").absolute()


@contextmanager
def changing() -> Iterator[None]:
    """One process at a time changes what refers to what: where channels point, which releases there are, what is collected.

    Waits for its turn; it comes, since the lock (flock(2)) goes with the process however it ends. It does not nest. On a file
    system without locks everybody goes on at once.
    """
    path = home() / ".lock"
    with explain_os_errors(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def new_run_id(name: str) -> str:
    """`addresses-20261122-004000-ab12cd`: sorts by time, unique without coordination."""
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"


def find(kind: str, name: str) -> Path:
    """Directory of a run, dataset or release by its id, a unique prefix of it, or its path.

    Raises:
        NotFoundError: when nothing, or more than one thing, goes by that name.
    """
    given = Path(name)
    if given.is_dir() and (given / "manifest.json").exists() | (given / "run.json").exists():
        return given.absolute()
    root = home() / kind
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")) if root.is_dir() else []
    matches = [n for n in names if n == name] or [n for n in names if n.startswith(name)]
    if len(matches) == 1:
        return root / matches[0]
    noun = kind.removesuffix("s")
    if matches:
        raise NotFoundError(f"{name!r} is the beginning of {len(matches)} {kind}", where=str(root),
                            why=", ".join(matches[:5]), fix="give more of the id")
    raise NotFoundError(f"no {noun} {name!r}", where=str(root),
                        why=f"there are: {', '.join(names[-5:])}" if names else f"there is no {noun} yet",
                        fix="see `tunesmith runs`, or set TUNESMITH_HOME to where it was made")
