"""What earlier releases of the same name answered, as a suite: the new model should still say it, or have a reason not to.

A release keeps some questions with its answers (`golden.json`). They are references here, and the metrics say how much the
new model agrees with them; whether they were right is the test sets' matter. A file that is not as it was released is skipped
where `Release.find` would refuse it: nothing here is served.
"""

from __future__ import annotations

from tunesmith.evals.items import Item, Suite
from tunesmith.store.files import canonical_json, read_json
from tunesmith.store.home import home

NEWEST = 3
"""Releases that are asked about. Their questions are mostly the same test rows."""


def suite(name: str, run_id: str | None = None) -> Suite | None:
    """The goldens of the newest releases of this name; None when there are none. Those of this very run are no earlier ones.

    A question that several of them have is asked once, with the newest answer.
    """
    root = home() / "releases"
    paths = [p for p in root.glob("rel-*/manifest.json") if p.with_name("golden.json").is_file()] if root.is_dir() else []
    found = sorted(((m := read_json(p))["created"], m["release_id"], p) for p in paths
                   if (m := read_json(p))["name"] == name and m["run_id"] != run_id)
    items, limit = {}, 1
    for _, release, path in reversed(found[-NEWEST:]):
        for n, golden in enumerate(read_json(path.with_name("golden.json")), 1):
            if golden["answer"] is not None:
                limit = max(limit, golden["max_new_tokens"])
                items.setdefault(canonical_json([golden["messages"], golden["tools"]]), Item(
                    id=f"{release}:{n}", messages=golden["messages"], references=(golden["answer"],), tools=golden["tools"],
                    tags=(release,)))
    if not items:
        return None
    return Suite("goldens", "regression", list(items.values()), ("exact_match", "token_f1"),
                 f"answers of {len(found[-NEWEST:])} earlier releases", limit)
