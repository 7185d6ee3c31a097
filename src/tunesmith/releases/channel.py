"""A name such as `production` that points at a release, and remembers where it pointed before.

    channels/NAME.json   {"channel", "release_id", "history": [{"action", "release_id", "previous", "at", "by", "why",
                                                                "verdicts", "overrides", "signed_by"}]}

Moving is one atomic rename of that file, by one process at a time (`store.home.changing`). The history is only ever added to;
where a channel can roll back to follows from replaying it. An entry says who moved it, when and why, what each gate had said
of the release, what was overridden and by whom, and which keys had signed it.
"""

from __future__ import annotations

import getpass
import os
import re
from pathlib import Path

from tunesmith.errors import NotFoundError, UsageError
from tunesmith.releases.bundle import Release
from tunesmith.releases.sign import require
from tunesmith.store.files import read_json, write_json
from tunesmith.store.home import changing, home
from tunesmith.training.run import now

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
NOTHING = "nothing"
"""What `expect` says of a channel that points nowhere yet."""


def promote(release: Release, channel: str, why: str = "", *, by: str | None = None, expect: str | None = None) -> dict:
    """Point `channel` at `release`. Returns `{channel, release_id, previous}`.

    `by` is who answers for it (default: the user of this process). With `expect` (an id, the beginning of one, or `nothing`)
    it moves only from there: of two who looked at the same state, one wins.

    Raises:
        UsageError: a bad name, or the channel does not point at what was expected. NotFoundError: a bundle that lies elsewhere.
        GateRefused: trusted keys are configured, and none of them signed it.
    """
    if not NAME.fullmatch(channel):
        raise UsageError(f"channel name {channel!r}", fix="lower-case letters, digits, - and _, at most 63")
    with changing():
        release = Release.find(release.id)  # in this home: a channel knows no other
        signed_by = require(release, "promoted")
        state = _read(channel) or {"channel": channel, "release_id": None, "history": []}
        previous = state["release_id"]
        _expected(channel, previous, expect)
        if previous != release.id:
            _move(state, "promote", release, by, why, signed_by)
    return {"channel": channel, "release_id": release.id, "previous": previous}


def rollback(channel: str, why: str = "", *, by: str | None = None, expect: str | None = None) -> dict:
    """Point `channel` at what it pointed at before. Arguments and result as for `promote`.

    Raises:
        NotFoundError: no such channel, or nothing before; the bundle that it would go back to must be whole.
        UsageError, GateRefused: as for `promote`.
    """
    with changing():
        state = current(channel)
        _expected(channel, state["release_id"], expect)
        previous, before = fallback(channel)
        target = Release.find(before)
        _move(state, "rollback", target, by, why, require(target, "rolled back to"))
    return {"channel": channel, "release_id": target.id, "previous": previous}


def fallback(channel: str) -> tuple[str, str]:
    """Ids of the release that the channel points at, and of the one that a rollback goes back to. Raises NotFoundError."""
    found = stack(current(channel)["history"])
    if len(found) < 2:
        raise NotFoundError(f"channel {channel!r} has nothing to roll back to", where=str(_path(channel)),
                            why="only one release was ever promoted to it")
    return found[-1], found[-2]


def current(channel: str) -> dict:
    """The channel's file. Raises NotFoundError."""
    state = _read(channel)
    if state is None:
        names = [s["channel"] for s in all_channels()]
        raise NotFoundError(f"no channel {channel!r}", where=str(home() / "channels"),
                            why=f"there are: {', '.join(names) or 'none'}",
                            fix="tunesmith promote RELEASE --to CHANNEL")
    return state


def all_channels() -> list[dict]:
    """Every channel's file, by name. Raises StoreError when one cannot be read."""
    root = home() / "channels"
    return [read_json(p) for p in sorted(root.glob("*.json")) if NAME.fullmatch(p.stem)] if root.is_dir() else []


def stack(history: list[dict]) -> list[str]:
    """Releases that the channel stands on: a promotion puts one on top, a rollback takes one off."""
    found: list[str] = []
    for move in history:
        if move["action"] == "promote":
            found.append(move["release_id"])
        else:
            found.pop()
    return found


def _expected(channel: str, previous: str | None, expect: str | None) -> None:
    if expect is not None and not (previous or NOTHING).startswith(expect or " "):
        raise UsageError(f"channel {channel!r} does not point at {expect}", where=str(_path(channel)),
                         why=f"it points at {previous or NOTHING}: somebody moved it meanwhile",
                         fix=f"see `tunesmith show {channel}`, then decide again")


def _move(state: dict, action: str, release: Release, by: str | None, why: str, signed_by: list[str]) -> None:
    entry = {"action": action, "release_id": release.id, "previous": state["release_id"], "at": now(), "by": by or user(),
             "why": why, "verdicts": {g["name"]: g["verdict"] for g in release.manifest["gates"]},
             "overrides": [{k: o[k] for k in ("gate", "by", "reason")} for o in release.manifest.get("overrides", [])],
             "signed_by": signed_by}
    write_json(_path(state["channel"]), {"channel": state["channel"], "release_id": release.id,
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
