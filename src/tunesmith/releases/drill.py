"""The rollback, rehearsed: is the release that a channel would go back to still the one that it was?

    drill(channel)          the release before the one that the channel points at
    replayed(name)          any release, or the one that a channel points at

      bundle --copy--> scratch directory          nothing of this home but the bundle
      python -m tunesmith.releases.drill COPY     a fresh process: every file against its digest, the base against its
                                                  digest, adapter and tokenizer of the bundle, every golden asked alone
      what it said == golden.json, text by text   and no channel is moved

What came of it is kept in `drills/RELEASE_ID.json`, and the gate `rollback` reads that (ADR 17). A drill that could not be
carried out, because a file is damaged or the base is gone, is kept there as one that failed.
"""

from __future__ import annotations

import calendar
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tunesmith import errors
from tunesmith.errors import NotFoundError, TunesmithError
from tunesmith.releases.bundle import MANIFEST, Release
from tunesmith.releases.channel import current, fallback, user
from tunesmith.releases.replay import Settings, answers, recorded
from tunesmith.store.files import read_json, write_json
from tunesmith.store.home import find, home
from tunesmith.training.run import environment, now

KEPT = 50
"""Drills of a release that are remembered."""
SHOWN = 100
"""Characters of a question in what a drill returns."""
Say = Callable[[str], None]


def drill(channel: str, why: str = "", say: Say = lambda _line: None) -> dict:
    """Replay the release that `rollback(channel)` would go back to.

    Returns `{channel, release_id, previous, identical, checked[{question, identical, expected, said}], environment{differs},
    seconds, message}`: `release_id` is where the channel points before and after, `previous` the release that was drilled.

    Raises:
        NotFoundError: no such channel, or nothing before.
        StoreError, BaseModelError, AdapterError, TemplateError: it could not be restored; that is kept as a failed drill.
    """
    now_at, before = fallback(channel)
    done = _rehearse(before, before, why, say)
    message = done["message"] if done["identical"] else f"{done['message']}; a rollback of {channel} would not bring it back"
    return {**done, "channel": channel, "release_id": now_at, "previous": before, "message": message}


def replayed(name: str, why: str = "", say: Say = lambda _line: None) -> dict:
    """Replay a release, by its id, or that of a channel. Returns and raises as `drill`, without `channel` and `previous`."""
    return _rehearse(*_named(name), why, say)


def _rehearse(name: str, release_id: str, why: str, say: Say) -> dict:
    """Drill what goes by `name`, and remember it under the id, whatever comes of it."""
    began = time.monotonic()
    try:
        release = Release.find(name)
        goldens, made = recorded(release.path)
        say(f"replaying {len(goldens)} goldens of {release.id} in a fresh process")
        said, here = _in_a_fresh_process(release)
    except TunesmithError as error:
        _remember(release_id, {"identical": False, "questions": 0, "message": error.what, "why": why,
                               "environment": environment()})
        raise
    checked = [{"question": _question(g), "identical": g["answer"] == text, "expected": g["answer"], "said": text}
               for g, text in zip(goldens, said, strict=True)]
    odd = [c for c in checked if not c["identical"]]
    differs = differences(made["environment"], here) if made else {}
    result = {"release_id": release.id, "identical": bool(checked) and not odd, "checked": checked,
              "environment": {"differs": differs}, "seconds": round(time.monotonic() - began, 1),
              "message": _message(release.id, checked, odd, differs, made)}
    _remember(release.id, {"identical": result["identical"], "questions": len(checked), "message": result["message"],
                           "why": why, "environment": here})
    return result


def last_drill(release_id: str) -> dict | None:
    """The newest `{at, by, identical, questions, message, why, environment}` of a release, or None."""
    path = _path(release_id)
    return read_json(path)["drills"][-1] if path.is_file() else None


def evidence(channel: str) -> dict:
    """`{channel, release_id, drill, age_days, differs}` of the release that the channel points at, for the gate: None where
    there is none. `differs`: of this environment from that of the drill."""
    try:
        release_id = current(channel)["release_id"]
    except NotFoundError:
        release_id = None
    found = last_drill(release_id) if release_id else None
    age = found and (time.time() - calendar.timegm(time.strptime(found["at"], "%Y-%m-%dT%H:%M:%SZ"))) / 86400
    return {"channel": channel, "release_id": release_id, "drill": found, "age_days": age,
            "differs": differences(found["environment"], environment()) if found else {}}


def differences(then: dict, here: dict) -> dict[str, list]:
    """`{name: [then, here]}` of two environments, packages by their own names."""
    a, b = ({k: v for k, v in e.items() if k != "packages"} | e["packages"] for e in (then, here))
    return {k: [a.get(k), b.get(k)] for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)}


def _message(release_id: str, checked: list[dict], odd: list[dict], differs: dict, made: dict) -> str:
    if not checked:
        return f"{release_id} holds no goldens: nothing could be compared"
    message = (f"{len(checked)} of {len(checked)} goldens of {release_id} came back word for word" if not odd else
               f"{len(odd)} of {len(checked)} goldens of {release_id} came back otherwise; the first is the answer to "
               f"{odd[0]['question']!r}: {odd[0]['said']!r} instead of {odd[0]['expected']!r}")
    if differs:
        named = ", ".join(f"{k} {a} -> {b}" for k, (a, b) in differs.items())
        message += f" (this is not the environment that it was made in: {named})"
    if odd and not made:
        message += " (it was released before goldens were asked one by one: near ties may part)"
    return message


def _named(name: str) -> tuple[str, str]:
    """(What a release is found by, its id) of a release or channel. Damaged or not: that is for the drill to say."""
    try:
        return (current(name)["release_id"],) * 2
    except NotFoundError:
        path = find("releases", name)
        return name, read_json(path / MANIFEST).get("release_id", path.name)


def _question(golden: dict) -> str:
    text = str(next((m["content"] for m in reversed(golden["messages"]) if m["role"] == "user"), ""))
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _in_a_fresh_process(release: Release) -> tuple[list[str], dict]:
    """What the bundle says to its goldens, and where. Raises what the process raised."""
    with tempfile.TemporaryDirectory(prefix="tunesmith-drill-") as scratch:
        copy, out = Path(scratch) / release.id, Path(scratch) / "out.json"
        shutil.copytree(release.path, copy)
        threads = recorded(copy)[1].get("threads")
        alone = os.environ | {"TUNESMITH_HOME": str(Path(scratch) / "home")} | (
            {"OMP_NUM_THREADS": str(threads)} if threads else {})
        done = subprocess.run([sys.executable, "-m", "tunesmith.releases.drill", copy, out], env=alone, check=False,
                              capture_output=True, text=True)
        if not out.is_file():
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise TunesmithError("the drill's process ended before it was done", where=str(release.path),
                                 why="the system killed it: it had too little memory" if done.returncode == -signal.SIGKILL
                                 else f"exit code {done.returncode}: {last}")
        found = read_json(out)
    if "error" in found:
        raise _same_error(found)
    return found["said"], found["environment"]


def _same_error(document: dict) -> TunesmithError:
    """An error as it was raised in the other process."""
    kind = getattr(errors, document["error"], TunesmithError)
    return kind(document["what"], where=document["where"], why=document["why"], fix=document["fix"])


def restored(folder: Path) -> list[str]:
    """What the bundle in `folder` answers to its goldens, from nothing but its own files and its base.

    Raises:
        StoreError: a file, or the base, is not what it was. AdapterError, TemplateError: they do not fit together.
    """
    import torch

    release = Release(folder, read_json(folder / MANIFEST))
    release.verify()
    goldens, made = recorded(folder)
    settings = Settings(made.get("dtype", release.manifest["dtype"]), made.get("device", "cpu"),
                        made.get("threads") or torch.get_num_threads())
    return answers(release.base(), release.adapter, release.tokenizer(), release.manifest["template_fingerprint"], settings,
                   goldens)


def _remember(release_id: str, facts: dict) -> None:
    path = _path(release_id)
    drills = read_json(path)["drills"] if path.is_file() else []
    write_json(path, {"release_id": release_id, "drills": [*drills, {"at": now(), "by": user(), **facts}][-KEPT:]})


def _path(release_id: str) -> Path:
    return home() / "drills" / f"{release_id}.json"


def _child(folder: Path, out: Path) -> None:
    try:
        write_json(out, {"said": restored(folder), "environment": environment()})
    except TunesmithError as error:
        write_json(out, error.as_dict())


if __name__ == "__main__":
    _child(*map(Path, sys.argv[1:]))
