"""A name such as `production` that points at a release, and remembers where it pointed before.

    channels/NAME.json   {"channel", "release_id", "history": [{"action", "release_id", "at", "by", "why"}]}

Moving is one atomic rename of that file. The history is only ever added to; where a channel can roll back to follows
from replaying it.
"""

from __future__ import annotations

import getpass
import os
import re
from pathlib import Path

from tunesmith.errors import NotFoundError, UsageError
from tunesmith.releases.bundle import Release
from tunesmith.store.files import read_json, write_json
from tunesmith.store.home import home
from tunesmith.training.run import now

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


def promote(release: Release, channel: str, why: str = "") -> dict:
    """Point `channel` at `release`. Returns `{channel, release_id, previous}`. Raises UsageError for a bad name."""
    if not NAME.fullmatch(channel):
        raise UsageError(f"channel name {channel!r}", fix="lower-case letters, digits, - and _, at most 63")
    state = _read(channel) or {"channel": channel, "release_id": None, "history": []}
    previous = state["release_id"]
    if previous != release.id:
        _move(state, "promote", release.id, why)
    return {"channel": channel, "release_id": release.id, "previous": previous}


def rollback(channel: str, why: str = "") -> dict:
    """Point `channel` at what it pointed at before. Returns as `promote`.

    Raises:
        NotFoundError: no such channel, or nothing before; the bundle that it would go back to must be whole.
    """
    previous, before = fallback(channel)
    target = Release.find(before)
    _move(current(channel), "rollback", target.id, why)
    return {"channel": channel, "release_id": target.id, "previous": previous}


def fallback(channel: str) -> tuple[str, str]:
    """Ids of the release that the channel points at, and of the one that a rollback goes back to. Raises NotFoundError."""
    stack = _stack(current(channel)["history"])
    if len(stack) < 2:
        raise NotFoundError(f"channel {channel!r} has nothing to roll back to", where=str(_path(channel)),
                            why="only one release was ever promoted to it")
    return stack[-1], stack[-2]


def current(channel: str) -> dict:
    """The channel's file. Raises NotFoundError."""
    state = _read(channel)
    if state is None:
        root = home() / "channels"
        names = sorted(p.stem for p in root.glob("*.json")) if root.is_dir() else []
        raise NotFoundError(f"no channel {channel!r}", where=str(root), why=f"there are: {', '.join(names) or 'none'}",
                            fix="tunesmith promote RELEASE --to CHANNEL")
    return state


def _stack(history: list[dict]) -> list[str]:
    """Releases that the channel stands on: a promotion puts one on top, a rollback takes one off."""
    stack: list[str] = []
    for move in history:
        if move["action"] == "promote":
            stack.append(move["release_id"])
        else:
            stack.pop()
    return stack


def _move(state: dict, action: str, release_id: str, why: str) -> None:
    entry = {"action": action, "release_id": release_id, "at": now(), "by": user(), "why": why}
    write_json(_path(state["channel"]), {"channel": state["channel"], "release_id": release_id,
                                         "history": [*state["history"], entry]})


def user() -> str:
    """Who moves a channel."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        return f"uid {os.getuid()}"


def _read(channel: str) -> dict | None:
    return read_json(_path(channel)) if NAME.fullmatch(channel) and _path(channel).is_file() else None


def _path(channel: str) -> Path:
    return home() / "channels" / f"{channel}.json"
