"""The work of an eval's run: sample, grade, and write down, sixteen rows at a time.

    rows ── checked all before the first ──► sample ──► grade ──► output items and sums, one transaction a batch

A batch is there whole or not at all, and which rows share a batch is decided by their places. So a worker that takes over after
a kill does what is missing, in the batches of an uninterrupted run: greedy and seeded samples are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from pydantic import TypeAdapter

from tunesmith.errors import DataError, NotFoundError, TunesmithError
from tunesmith.evals.graders.grade import Graded, grade
from tunesmith.evals.graders.judges import Usage
from tunesmith.evals.graders.schema import AnyGrader, Grader
from tunesmith.evals.statistics import mean_interval
from tunesmith.jobs import files, queue
from tunesmith.jobs.database import clock
from tunesmith.jobs.evaluation import rows as rows_of
from tunesmith.jobs.evaluation import samples
from tunesmith.jobs.evaluation.served import Loader
from tunesmith.jobs.events import tell
from tunesmith.jobs.ids import new_id
from tunesmith.jobs.tables import eval_runs, evals, output_items

if TYPE_CHECKING:
    from tunesmith.jobs.worker import Task

BATCH = 16
"""Rows that are sampled together; the engine takes no more at once."""
MOST_RESAMPLED = 20_000
"""Items up to which a mean score gets its interval by the bootstrap."""
GRADERS = TypeAdapter(list[Grader])


def work(task: Task) -> None:
    """Raises DataError: rows that are none, or do not fit the schema; NotFoundError: the file or a model is gone."""
    with task.database.read() as connection:
        run = connection.execute(sa.select(eval_runs).where(eval_runs.c.id == task.id)).mappings().one()
        eval_ = connection.execute(sa.select(evals).where(evals.c.id == run["eval_id"])).mappings().one()
        done = set(connection.execute(sa.select(output_items.c.position).where(output_items.c.run_id == task.id)).scalars())
    task.tell("started", "The eval run started")
    criteria = GRADERS.validate_python(eval_["testing_criteria"])
    place = _place(task, run["data_source"]["source"])
    check = rows_of.schema_check(eval_["data_source_config"]["item_schema"])
    total = 0
    for where, row in _rows(run["data_source"]["source"], place):
        check(row, where)
        total += 1
    if not total:
        raise DataError("the data of the run has no rows")
    loader = Loader(run["models"])
    try:
        for batch in _batches(run["data_source"]["source"], place, done):
            _write(task, *_graded(run["data_source"], batch, criteria, loader))
            task.say(f"{batch[-1][0] + 1} of {total} rows")
    finally:
        loader.close()
    _finish(task, criteria)


def failed(connection: sa.Connection, task: Task, error: Exception) -> None:
    message = (f"{error.what}: {error.why}" if error.why else error.what) if isinstance(error, TunesmithError) else str(error)
    code = "invalid_data" if isinstance(error, DataError) else "not_found" if isinstance(error, NotFoundError) else "run_failed"
    connection.execute(eval_runs.update().where(eval_runs.c.id == task.id).values(error={"code": code, "message": message}))
    tell(connection, task.id, "failed", message, level="error")
    rows_of.kept(task.id).unlink(missing_ok=True)


def nothing_yet(criteria: Sequence) -> dict:
    """Sums of a run that has not begun."""
    return {"counts": dict.fromkeys(("total", "passed", "failed", "errored"), 0), "models": {},
            "criteria": [dict.fromkeys(("passed", "failed", "errored"), 0) for _ in criteria]}


def _place(task: Task, source: dict) -> Path | None:
    """A copy of the file, or another name of it, that stays when the file is deleted while the run goes on."""
    if source["type"] != "file_id":
        return None
    place = rows_of.kept(task.id)
    if not place.exists():
        with task.database.read() as connection:
            files.keep(files.find(connection, task.project_id, source["id"]), place)
    return place


def _rows(source: dict, place: Path | None) -> Iterator[tuple[str, Any]]:
    if place is not None:
        return rows_of.of_file(place)
    return ((f"content[{i}]", row) for i, row in enumerate(source["content"]))


def _batches(source: dict, place: Path | None, done: set[int]) -> Iterator[list[tuple[int, dict]]]:
    """Rows that are missing, with their positions, a batch at a time."""
    numbered = ((at, row) for at, (_, row) in enumerate(_rows(source, place)))
    for _, part in groupby(numbered, lambda pair: pair[0] // BATCH):
        if batch := [pair for pair in part if pair[0] not in done]:
            yield batch


def _graded(source: dict, batch: list[tuple[int, dict]], criteria: Sequence[AnyGrader], loader: Loader
            ) -> tuple[list[dict], list[list[Graded]], dict[str, Usage]]:
    """(output items, grades of each, tokens of each model) of a batch."""
    spent: dict[str, Usage] = {}
    if source["type"] == "jsonl":
        said = [samples.given(row.get("sample")) for _, row in batch]
        seen = [samples.with_json(row["sample"]) if row.get("sample") is not None else None for _, row in batch]
    else:
        said = samples.sampled(source, [row["item"] for _, row in batch], loader.find)
        seen = [samples.as_graders_see(s) if s["error"] is None else None for s in said]
        for sample in said:
            if sample["error"] is None:
                spent.setdefault(source["model"], Usage()).add(
                    Usage(1, sample["usage"]["prompt_tokens"], sample["usage"]["completion_tokens"]))
    good = [i for i, sample in enumerate(said) if sample["error"] is None]
    spaces = [{"item": batch[i][1]["item"]} | ({"sample": seen[i]} if seen[i] is not None else {}) for i in good]
    by_criterion = [grade(criterion, spaces, loader.find) for criterion in criteria] if good else []
    grades: list[list[Graded]] = [[] for _ in batch]
    for at, own in zip(good, zip(*by_criterion, strict=True), strict=True):
        grades[at] = list(own)
        for graded in own:
            for model, usage in graded.usage.items():
                spent.setdefault(model, Usage()).add(usage)
    items = [{"position": at, "item": row["item"], "sample": sample, "status": _status(own),
              "results": [_result(g) for g in own]}
             for (at, row), sample, own in zip(batch, said, grades, strict=True)]
    return items, grades, spent


def _status(grades: list[Graded]) -> str:
    if not grades or any(g.error for g in grades):
        return "error"
    return "pass" if all(g.passed for g in grades) else "fail"


def _result(graded: Graded) -> dict:
    """As an output item has it, and why there is no score."""
    said = {"name": graded.name, "type": graded.type, "score": graded.score, "passed": graded.passed, "sample": graded.sample}
    if graded.parts:
        said["sample"] = {"scores": {name: part.score for name, part in graded.parts.items()}}
    if graded.error:
        said["error"] = {"code": graded.error, "message": graded.details}
    if graded.note:
        said["note"] = graded.note
    return said


def _write(task: Task, items: list[dict], grades: list[list[Graded]], spent: dict[str, Usage]) -> None:
    """The batch and the sums that it changes, at once. Raises Lost."""
    with task.database.write() as connection:
        queue.progressed(connection, task.claim)
        run = connection.execute(sa.select(eval_runs.c.usage, eval_runs.c.deleted_at).where(eval_runs.c.id == task.id)).one()
        if run.deleted_at is not None:
            raise TunesmithError("the run was deleted")
        now, usage = int(clock(connection)), run.usage
        connection.execute(output_items.insert(), [
            {"id": new_id("outputitem_"), "created_at": now, "run_id": task.id, **item} for item in items])
        for item, own in zip(items, grades, strict=True):
            usage["counts"]["total"] += 1
            usage["counts"][{"pass": "passed", "fail": "failed", "error": "errored"}[item["status"]]] += 1
            for sums, graded in zip(usage["criteria"], own, strict=False):
                sums["errored" if graded.error else "passed" if graded.passed else "failed"] += 1
        for model, more in spent.items():
            before = usage["models"].get(model, {})
            whole = Usage(*(before.get(k, 0) for k in ("invocation_count", "prompt_tokens", "completion_tokens")))
            whole.add(more)
            usage["models"][model] = whole.as_dict(model)
        connection.execute(eval_runs.update().where(eval_runs.c.id == task.id).values(usage=usage))


def _finish(task: Task, criteria: Sequence[AnyGrader]) -> None:
    """Mean scores, and the end. Raises Lost."""
    scores: list[list[float]] = [[] for _ in criteria]
    with task.database.read() as connection:
        for results in connection.execute(sa.select(output_items.c.results).where(output_items.c.run_id == task.id)
                                          .order_by(output_items.c.position)).scalars():
            for own, result in zip(scores, results, strict=False):
                if "error" not in result:
                    own.append(result["score"])
    with task.database.write() as connection:
        queue.still_mine(connection, task.claim)
        usage = connection.execute(sa.select(eval_runs.c.usage).where(eval_runs.c.id == task.id)).scalar_one()
        for sums, own in zip(usage["criteria"], scores, strict=True):
            if own:
                sums["mean_score"] = sum(own) / len(own)
                sums["mean_score_ci95"] = list(map(float, mean_interval(own))) if len(own) <= MOST_RESAMPLED else None
        connection.execute(eval_runs.update().where(eval_runs.c.id == task.id).values(usage=usage))
        queue.end(connection, task.claim, "succeeded")
        tell(connection, task.id, "completed", "The eval run has completed")
    rows_of.kept(task.id).unlink(missing_ok=True)
