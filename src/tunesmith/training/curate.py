"""Curate a recipe's training rows: prepare, measure each by the others, judge, write the proposal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from tunesmith.data import curation
from tunesmith.data.curate import judge, means, threshold
from tunesmith.data.dataset import TRAIN
from tunesmith.data.prepare import prepare
from tunesmith.errors import UsageError
from tunesmith.models.base import resolve
from tunesmith.recipe.load import load
from tunesmith.training.crossfit import crossfit
from tunesmith.training.run import tokenizer_for

SHOWN_WORST = 20


def curate(recipe: str | Path, out: Path, count: int | None, folds: int, say: Callable[[str], None]) -> dict:
    """As `verbs.curate_data`."""
    folder = out.expanduser().absolute()
    curation.refuse_existing(folder)
    loaded = load(recipe)
    if loaded.recipe.objective.type in ("dpo", "kto"):
        raise UsageError(f"rows of objective {loaded.recipe.objective.type} cannot be curated", where=str(loaded.path),
                         why="curating finds answers that their neighbours contradict, and some of these are bad on purpose",
                         fix="curate chat rows (objective.type: sft)")
    base = resolve(loaded.recipe.base, loaded.folder)
    tokenizer = tokenizer_for(base, loaded)
    dataset = prepare(loaded, tokenizer, say)
    rows, tokens = dataset.rows(TRAIN), dataset.tokens(TRAIN)
    records = curation.as_records(rows)
    found = crossfit(loaded, base, dataset, tokenizer, folds, say=say)
    scores = means(found.fitted, found.ends)
    judged = judge(rows, scores, means(found.base, found.ends), found.folds, threshold(scores, found.wrong), count)

    def pieces(i: int) -> curation.Runs:
        ids, trained = tokens[i]
        losses = found.fitted[found.ends[i] : found.ends[i + 1]].tolist()
        answer = [t for t, on in zip(ids, trained, strict=True) if on]
        return curation.runs(tokenizer.decode, answer, losses)

    curation.write(folder, loaded, dataset, records, judged, pieces)
    return {"path": str(folder), "recipe": str(folder / curation.RECIPE), "page": str(folder / curation.PAGE),
            "dataset_id": dataset.id, "rows": len(rows), "proposed": len(judged.chosen), "suspects": len(judged.suspects),
            "threshold": asdict(judged.threshold), "why": judged.threshold.why, "warning": judged.warning,
            "worst": [judged.record(i, rows[i].where) for i in judged.suspects[:SHOWN_WORST]]}
