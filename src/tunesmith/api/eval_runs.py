"""`/v1/evals/{eval_id}/runs` and their output items. A run is work for the queue; its sums are written by its worker.

Rows are held to the eval's schema there, too: a stranger's schema can take any time, which must not be the server's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import sqlalchemy as sa
from fastapi import APIRouter, Depends
from pydantic import TypeAdapter

from tunesmith.api import evals as evals_api
from tunesmith.api.caller import Caller, may
from tunesmith.api.errors import BadParameter, not_found
from tunesmith.api.evals import After, Id, Limit, Order
from tunesmith.api.evals_schemas import (
    Completions,
    FileContent,
    FileId,
    Jsonl,
    ResponsesRun,
    RunCreate,
    TemplateMessages,
)
from tunesmith.api.page import listed, page_of
from tunesmith.api.service import Service, service_of
from tunesmith.errors import UsageError
from tunesmith.evals.graders import template
from tunesmith.evals.graders.schema import Grader, judges
from tunesmith.evals.statistics import wilson
from tunesmith.jobs import files, queue
from tunesmith.jobs.database import clock
from tunesmith.jobs.evaluate import nothing_yet
from tunesmith.jobs.evaluation.samples import schema_of_answers
from tunesmith.jobs.ids import new_id
from tunesmith.jobs.tables import eval_runs, output_items, work
from tunesmith.serving.grammar import check as check_schema

router = APIRouter(prefix="/v1/evals/{eval_id}/runs")
STATUS = {"queued": "queued", "paused": "queued", "running": "in_progress", "succeeded": "completed", "failed": "failed",
          "cancelled": "canceled"}
"""What the queue says, in the words of OpenAI's evals."""
GRADERS = TypeAdapter(list[Grader])


@router.post("", status_code=201)
def create(eval_id: Id, body: RunCreate, caller: Caller = Depends(may("train")),
           service: Service = Depends(service_of)) -> dict:
    source = body.data_source
    _refuse_unsupported(source)
    with service.database.read() as connection:
        eval_ = evals_api.find(connection, caller.project_id, eval_id)
        if isinstance(source.source, FileId):
            files.find(connection, caller.project_id, source.source.id)
    model = getattr(source, "model", None)
    asked = set().union({model} if model else (), *map(judges, GRADERS.validate_python(eval_["testing_criteria"])))
    models = {name: _meaning(service, name, caller.project_id) for name in sorted(asked)}
    with service.database.write() as connection:
        evals_api.find(connection, caller.project_id, eval_id)
        _refuse_too_many(connection, caller, service)
        id = new_id("evalrun_")
        queue.put(connection, id, "eval_run", caller.project_id)
        connection.execute(eval_runs.insert().values(
            id=id, project_id=caller.project_id, created_at=int(clock(connection)), eval_id=eval_id, name=body.name,
            model=model, data_source=source.model_dump(mode="json", exclude_unset=True, by_alias=True), models=models,
            metadata=body.metadata or {}, usage=nothing_yet(eval_["testing_criteria"])))
        reply = _one(connection, caller, eval_id, id)
    service.nudge()
    return reply


@router.get("")
def list_(eval_id: Id, after: After = None, limit: Limit = 20, order: Order = "asc",
          status: Literal["queued", "in_progress", "completed", "canceled", "failed"] | None = None,
          caller: Caller = Depends(may("train")), service: Service = Depends(service_of)) -> dict:
    with service.database.read() as connection:
        eval_ = evals_api.find(connection, caller.project_id, eval_id)
        where = [eval_runs.c.eval_id == eval_id, eval_runs.c.project_id == caller.project_id, eval_runs.c.deleted_at.is_(None)]
        if status is not None:
            meant = [own for own, theirs in STATUS.items() if theirs == status]
            where.append(eval_runs.c.id.in_(sa.select(work.c.id).where(work.c.status.in_(meant))))
        rows, more = page_of(connection, eval_runs, where, after=after, limit=limit, newest_first=order == "desc")
        return listed(_shown(connection, eval_, rows), more)


@router.get("/{run_id}")
def retrieve(eval_id: Id, run_id: Id, caller: Caller = Depends(may("train")), service: Service = Depends(service_of)) -> dict:
    with service.database.read() as connection:
        return _one(connection, caller, eval_id, run_id)


@router.post("/{run_id}/cancel")
@router.post("/{run_id}", include_in_schema=False)
def cancel(eval_id: Id, run_id: Id, caller: Caller = Depends(may("train")), service: Service = Depends(service_of)) -> dict:
    """The path without `/cancel` is what clients of before 2.0 ask for."""
    with service.database.write() as connection:
        before = _one(connection, caller, eval_id, run_id)["status"]
        if before in ("completed", "failed", "canceled"):
            raise BadParameter(f"The run {run_id} cannot be canceled: it is {before}", None, "invalid_state")
        queue.ask(connection, run_id, "cancel")
        reply = _one(connection, caller, eval_id, run_id)
    service.nudge()
    return reply


@router.delete("/{run_id}")
def delete(eval_id: Id, run_id: Id, caller: Caller = Depends(may("train")), service: Service = Depends(service_of)) -> dict:
    with service.database.write() as connection:
        _one(connection, caller, eval_id, run_id)
        evals_api.delete_run(connection, run_id)
    service.nudge()
    return {"object": "eval.run.deleted", "deleted": True, "run_id": run_id}


@router.get("/{run_id}/output_items")
def items(eval_id: Id, run_id: Id, after: After = None, limit: Limit = 20, order: Order = "asc",
          status: Literal["pass", "fail", "error"] | None = None, caller: Caller = Depends(may("train")),
          service: Service = Depends(service_of)) -> dict:
    with service.database.read() as connection:
        _find(connection, caller, eval_id, run_id)
        where = [output_items.c.run_id == run_id] + ([output_items.c.status == status] if status else [])
        rows, more = page_of(connection, output_items, where, after=after, limit=limit, newest_first=order == "desc",
                             by=("position",))
    return listed([_item(row, eval_id) for row in rows], more)


@router.get("/{run_id}/output_items/{item_id}")
def item(eval_id: Id, run_id: Id, item_id: Id, caller: Caller = Depends(may("train")),
         service: Service = Depends(service_of)) -> dict:
    with service.database.read() as connection:
        _find(connection, caller, eval_id, run_id)
        row = connection.execute(sa.select(output_items).where(output_items.c.id == item_id,
                                                               output_items.c.run_id == run_id)).mappings().first()
    if row is None:
        raise not_found("output item", item_id)
    return _item(row, eval_id)


def _refuse_unsupported(source: Jsonl | Completions | ResponsesRun) -> None:
    """Raises BadParameter for what would need something that is not here, and for what the run would not know."""
    if not isinstance(source.source, FileContent | FileId):
        raise BadParameter(f"a source of type {source.source.type} is not supported: nothing that was asked before is stored "
                           "here. Bring the rows along, as file_content or file_id", "data_source.source.type", "unsupported")
    if isinstance(source, Jsonl):
        return
    for name in ("model", "input_messages"):
        if getattr(source, name) is None:
            raise BadParameter(f"data_source.{name}: Field required", f"data_source.{name}", "missing_required_parameter")
    if isinstance(source.input_messages, TemplateMessages):
        for message in source.input_messages.template:
            if any(path[0] != "item" for path in template.paths(message.text)):
                raise BadParameter("a prompt can only hold what an item holds: {{item.NAME}}", "data_source.input_messages",
                                   "invalid_template")
    params = source.sampling_params
    if params is None:
        return
    if params.tools:
        raise BadParameter("sampling_params.tools is not supported by this server's evals", "data_source.sampling_params.tools",
                           "unsupported")
    schema = schema_of_answers(params.model_dump(mode="json", by_alias=True, exclude_unset=True))
    if schema is not None:
        try:
            check_schema(schema)
        except UsageError as error:
            raise BadParameter(error.what, "data_source.sampling_params", "invalid_schema") from error


def _meaning(service: Service, name: str, project_id: str) -> dict:
    """What a model's name means now, for a process that knows nothing of this one. Raises NotFoundError."""
    engines = service.engines
    if engines.given and name in engines.given.served:
        served = engines.given.find(name)
        return {"base": engines.given.base.ref, "dtype": engines.given.dtype} | (
            {"adapter": served.root} if served.adapter else {})
    if (row := engines.model(name, project_id)) is not None:
        return {"base": row["base"], "adapter": row["adapter"], "tokenizer": row["tokenizer"], "dtype": row["dtype"],
                "fingerprint": row["template_fingerprint"]}
    engines.describe(name, project_id)
    base = engines.settings.base_of(name)
    return {"base": base, "dtype": next((e.dtype for e in engines.all if e.base.ref == base), None)}


def _refuse_too_many(connection: sa.Connection, caller: Caller, service: Service) -> None:
    waiting = connection.execute(sa.select(sa.func.count()).select_from(work).where(
        work.c.project_id == caller.project_id, work.c.kind == "eval_run", work.c.status.not_in(queue.ENDED))).scalar_one()
    if waiting >= service.settings.limits.active_jobs:
        raise BadParameter(f"{waiting} eval runs of this project have not ended, which is the limit", None,
                           "rate_limit_exceeded", 429)


def _find(connection: sa.Connection, caller: Caller, eval_id: str, run_id: str) -> sa.RowMapping:
    """Raises BadParameter (404)."""
    row = connection.execute(sa.select(eval_runs).where(
        eval_runs.c.id == run_id, eval_runs.c.eval_id == eval_id, eval_runs.c.project_id == caller.project_id,
        eval_runs.c.deleted_at.is_(None))).mappings().first()
    if row is None:
        raise not_found("eval run", run_id)
    return row


def _one(connection: sa.Connection, caller: Caller, eval_id: str, run_id: str) -> dict:
    eval_ = evals_api.find(connection, caller.project_id, eval_id)
    return _shown(connection, eval_, [_find(connection, caller, eval_id, run_id)])[0]


def _shown(connection: sa.Connection, eval_: sa.RowMapping, rows: Sequence[sa.RowMapping]) -> list[dict]:
    statuses = dict(connection.execute(sa.select(work.c.id, work.c.status).where(
        work.c.id.in_([row["id"] for row in rows]))).all())
    return [{"object": "eval.run", "id": row["id"], "eval_id": row["eval_id"], "report_url": None,
             "status": STATUS[statuses[row["id"]]], "model": row["model"] or "", "name": row["name"] or row["id"],
             "created_at": row["created_at"], "result_counts": row["usage"]["counts"],
             "per_model_usage": list(row["usage"]["models"].values()),
             "per_testing_criteria_results": [_criterion(grader["name"], sums) for grader, sums in
                                              zip(eval_["testing_criteria"], row["usage"]["criteria"], strict=True)],
             "data_source": row["data_source"], "error": row["error"], "metadata": row["metadata"] or {}} for row in rows]


def _criterion(name: str, sums: dict) -> dict:
    """How often a criterion was met. What is ours stands under `tunesmith`: how sure that is, and of the mean score."""
    passed, judged = sums["passed"], sums["passed"] + sums["failed"]
    share = {"pass_rate": passed / judged, "pass_rate_ci95": list(wilson(passed, judged))} if judged else {}
    means = {key: sums[key] for key in ("mean_score", "mean_score_ci95") if key in sums}
    return {"testing_criteria": name, "passed": passed, "failed": sums["failed"],
            "tunesmith": {"errored": sums["errored"], **share, **means}}


def _item(row: sa.RowMapping, eval_id: str) -> dict:
    return {"object": "eval.run.output_item", "id": row["id"], "created_at": row["created_at"], "run_id": row["run_id"],
            "eval_id": eval_id, "status": row["status"], "datasource_item_id": row["position"], "datasource_item": row["item"],
            "results": row["results"], "sample": row["sample"]}
