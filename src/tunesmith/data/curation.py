"""A proposed subset on disk: rows that any recipe can read, why each row is in or out, a recipe over them, and a page.

    DIR/curated.jsonl     the proposed rows in chat format; `curated_from` is the place each came from
        test.NAME.jsonl   held-out rows, where the recipe drew them itself: they must stay the same
        scores.jsonl      every row that was judged: where, verdict, reason, losses
        recipe.yaml       the same recipe over curated.jsonl
        curation.html     the scores and the threshold, and the rows that cost most
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunesmith.data import hub
from tunesmith.data.curate import Judged
from tunesmith.data.dataset import TRAIN, Dataset
from tunesmith.data.messages import Bad
from tunesmith.data.read import SHOWN_PROBLEMS, find_files, is_text
from tunesmith.data.rows import Row
from tunesmith.data.write import write_row
from tunesmith.errors import DataError, Problem, UsageError
from tunesmith.recipe.load import Loaded
from tunesmith.store.files import publish_directory, write_text

CURATED, SCORES, RECIPE, PAGE = "curated.jsonl", "scores.jsonl", "recipe.yaml", "curation.html"
ORIGIN = "curated_from"
FORMAT = "openai"
SHOWN = 10
"""Suspects on the page."""
BINS = 60
HOTTEST = 6.0
"""Nats: the others gave the token one chance in 400."""
Runs = list[tuple[float, str]]
"""Pieces of an answer, each with how unexpected it was, 0 to 1."""


def refuse_existing(folder: Path) -> None:
    """Raises UsageError: nothing is overwritten, and nobody waits minutes to be told."""
    if folder.exists():
        raise UsageError("it is there already", where=str(folder), fix="give --out a new directory: nothing is overwritten")


def as_records(rows: Sequence[Row]) -> list[dict]:
    """Every row as it would be written.

    Raises:
        DataError: rows that the chat format cannot say; found before anything is scored.
    """
    records, problems = [], []
    for row in rows:
        try:
            records.append(write_row(replace(row, meta=row.meta | {ORIGIN: row.meta.get(ORIGIN, row.where)}), FORMAT))
        except Bad as bad:
            field, message, fix = bad.args
            where = f"{row.where}: {field}" if field else row.where
            problems.append(Problem(code="lossy", where=where, message=message, fix=fix))
    if problems:
        raise DataError(f"{len(problems)} rows cannot be written as chat", problems=problems[:SHOWN_PROBLEMS])
    return records


def write(folder: Path, loaded: Loaded, dataset: Dataset, records: Sequence[dict], judged: Judged,
          runs_of: Callable[[int], Runs]) -> None:
    """Write DIR, whole or not at all. `runs_of` gives the answer of a row in pieces, for the page.

    Raises:
        UsageError: DIR exists.
        StoreError: it cannot be written.
    """
    refuse_existing(folder)
    rows = dataset.rows(TRAIN)
    with publish_directory(folder) as staging:
        _lines(staging / CURATED, [records[i] for i in judged.chosen])
        _lines(staging / SCORES, [judged.record(i, rows[i].where) for i in range(len(rows))])
        tests = _own_tests(loaded, dataset)
        for name in tests:
            _lines(staging / tests[name], as_records(dataset.rows(name)))
        write_text(staging / RECIPE, recipe_text(loaded, tests))
        write_text(staging / PAGE, page(loaded, dataset, judged, runs_of))


def _lines(path: Path, records: Sequence[dict]) -> None:
    write_text(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))


def _own_tests(loaded: Loaded, dataset: Dataset) -> dict[str, str]:
    """Test sets that the recipe's files do not hold as they are: drawn from the training files, or made of text."""
    data = loaded.recipe.data
    if data.test and not any(is_text(f) for f in find_files(data.train, loaded.folder)):
        return {}
    return {name: f"test.{name}.jsonl" for name in dataset.tests}


def recipe_text(loaded: Loaded, tests: dict[str, str]) -> str:
    """The recipe as it was given, over curated.jsonl. Local paths become absolute; rows were mixed and repaired already."""
    import yaml

    said = loaded.recipe.model_dump(mode="json", exclude_unset=True)
    data = {k: v for k, v in said["data"].items() if k not in ("split", "mix", "format", "style", "repair")}
    data["train"] = CURATED
    if tests:
        data["test"] = tests
    elif isinstance(data["test"], dict):
        data["test"] = {name: _absolute(files, loaded) for name, files in data["test"].items()}
    else:
        data["test"] = _absolute(data["test"], loaded)
    if data.get("evals"):
        data["evals"] = _absolute(data["evals"], loaded)
    if data.get("template"):
        data["template"] = str(loaded.resolve(data["template"]))
    local = loaded.folder / Path(said["base"]).expanduser()
    base = str(local.resolve()) if not said["base"].startswith("pypi:") and local.exists() else said["base"]
    if (measured := said.get("eval", {})).get("suites"):
        measured["suites"] = _absolute(measured["suites"], loaded)
    if documents := measured.get("retrieval"):
        documents["documents"] = _absolute(documents["documents"], loaded)
    for part in filter(None, (measured, documents)):
        if (loaded.folder / Path(part.get("embedder", "pypi:")).expanduser()).is_dir():
            part["embedder"] = _absolute(part["embedder"], loaded)
    head = f"# Made by `tunesmith data curate` from {loaded.path}: the same recipe over the rows it proposed.\n"
    return head + yaml.safe_dump(said | {"base": base, "data": data}, sort_keys=False, allow_unicode=True, width=120)


def _absolute(files: str | list[str], loaded: Loaded) -> str | list[str]:
    if isinstance(files, list):
        return [str(_absolute(f, loaded)) for f in files]
    return files if files.startswith(hub.PREFIX) else str(loaded.folder / Path(files).expanduser())


def runs(decode: Callable[[list[int]], str], ids: Sequence[int], losses: Sequence[float]) -> Runs:
    """Tokens in pieces of like surprise: 0 below one nat, 1 from HOTTEST on, in steps of a fifth."""
    groups: list[tuple[float, list[int]]] = []
    for token, loss in zip(ids, losses, strict=True):
        heat = 0.0 if loss < 1 else min(1.0, math.ceil(5 * loss / HOTTEST) / 5)
        if not groups or groups[-1][0] != heat:
            groups.append((heat, []))
        groups[-1][1].append(token)
    return [(heat, decode(part)) for heat, part in groups]


def page(loaded: Loaded, dataset: Dataset, judged: Judged, runs_of: Callable[[int], Runs]) -> str:
    """The page, as HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader("tunesmith.data", "."), autoescape=True, trim_blocks=True,
                              lstrip_blocks=True, undefined=StrictUndefined)
    return environment.get_template("curation.html.jinja").render(c=view(loaded, dataset, judged, runs_of))


def view(loaded: Loaded, dataset: Dataset, judged: Judged, runs_of: Callable[[int], Runs]) -> dict[str, Any]:
    """Everything the page shows."""
    rows = dataset.rows(TRAIN)
    worst = judged.worst_first()[:SHOWN]
    shown = [{"where": rows[i].where, "prompt": rows[i].prompt, "runs": runs_of(i), **judged.record(i, rows[i].where)}
             for i in worst]
    return {"name": loaded.recipe.name, "base": loaded.recipe.base, "dataset": dataset.id, "rows": len(rows),
            "suspects": len(judged.suspects), "proposed": len(judged.chosen), "folds": len(set(judged.folds)), "shown": shown,
            "threshold": judged.threshold.value, "why": judged.threshold.why, "warning": judged.warning,
            "histogram": judged.histogram(BINS)}
