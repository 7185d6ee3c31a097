"""`/v1/evals`: what is to be measured, and by which graders. Its runs are in `eval_runs`."""

from __future__ import annotations

from typing import Annotated, Literal

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Path, Query

from tunesmith.api.caller import Caller, may
from tunesmith.api.errors import BadParameter, not_found
from tunesmith.api.evals_schemas import CustomConfig, EvalCreate, EvalUpdate
from tunesmith.api.graders import check
from tunesmith.api.page import listed, page_of
from tunesmith.api.service import Service, service_of
from tunesmith.errors import DataError
from tunesmith.evals.graders.schema import TextSimilarity
from tunesmith.jobs import queue
from tunesmith.jobs.database import clock
from tunesmith.jobs.evaluation.rows import kept, schema_check
from tunesmith.jobs.ids import new_id
from tunesmith.jobs.tables import eval_runs, evals, output_items, work

router = APIRouter(prefix="/v1/evals")
Id = Annotated[str, Path(max_length=255, pattern=r"^[^\x00]*$")]
After = Annotated[str | None, Query(max_length=255, pattern=r"^[^\x00]*$")]
Limit = Annotated[int, Query(ge=1, le=100)]
Order = Literal["asc", "desc"]
SAMPLE_SCHEMA = {
    "type": "object", "required": ["model", "choices"],
    "properties": {"model": {"type": "string"}, "output_text": {"type": "string"}, "output_json": {"type": "object"},
                   "output_tools": {"type": "array", "items": {"type": "object"}},
                   "choices": {"type": "array", "items": {"type": "object", "properties": {
                       "message": {"type": "object", "properties": {"role": {"type": "string"},
                                                                    "content": {"type": ["string", "array", "null"]}}},
                       "finish_reason": {"type": "string"}}}}}}


@router.post("", status_code=201)
def create(body: EvalCreate, caller: Caller = Depends(may("train")), service: Service = Depends(service_of)) -> dict:
    config = body.data_source_config
    if not isinstance(config, CustomConfig):
        raise BadParameter(f"data_source_config of type {config.type} is not supported: no completions are stored here. Bring "
                           "the rows along, with one of type custom", "data_source_config.type", "unsupported")
    try:
        schema_check(config.item_schema)
    except DataError as error:
        raise BadParameter(error.what, "data_source_config.item_schema", "invalid_schema") from error
    for at, grader in enumerate(body.testing_criteria):
        check(grader, f"testing_criteria[{at}]", caller, service)
        if isinstance(grader, TextSimilarity) and grader.pass_threshold is None:
            param = f"testing_criteria[{at}].pass_threshold"
            raise BadParameter(f"{param}: Field required", param, "missing_required_parameter")
    with service.database.write() as connection:
        now, id = int(clock(connection)), new_id("eval_")
        connection.execute(evals.insert().values(
            id=id, project_id=caller.project_id, created_at=now, updated_at=now, name=body.name, metadata=body.metadata or {},
            data_source_config=config.model_dump(mode="json"),
            testing_criteria=[g.model_dump(mode="json", exclude_unset=True) for g in body.testing_criteria]))
        return shown(find(connection, caller.project_id, id))


@router.get("")
def list_(after: After = None, limit: Limit = 20, order: Order = "asc",
          order_by: Literal["created_at", "updated_at"] = "created_at", caller: Caller = Depends(may("train")),
          service: Service = Depends(service_of)) -> dict:
    with service.database.read() as connection:
        rows, more = page_of(connection, evals, [evals.c.project_id == caller.project_id, evals.c.deleted_at.is_(None)],
                             after=after, limit=limit, newest_first=order == "desc", by=(order_by, "id"))
    return listed([shown(row) for row in rows], more)


@router.get("/{eval_id}")
def retrieve(eval_id: Id, caller: Caller = Depends(may("train")), service: Service = Depends(service_of)) -> dict:
    with service.database.read() as connection:
        return shown(find(connection, caller.project_id, eval_id))


@router.post("/{eval_id}")
def update(eval_id: Id, body: EvalUpdate, caller: Caller = Depends(may("train")),
           service: Service = Depends(service_of)) -> dict:
    with service.database.write() as connection:
        find(connection, caller.project_id, eval_id)
        values = {name: getattr(body, name) for name in body.model_fields_set}
        if "metadata" in values:
            values["metadata"] = values["metadata"] or {}
        connection.execute(evals.update().where(evals.c.id == eval_id).values(updated_at=int(clock(connection)), **values))
        return shown(find(connection, caller.project_id, eval_id))


@router.delete("/{eval_id}")
def delete(eval_id: Id, caller: Caller = Depends(may("train")), service: Service = Depends(service_of)) -> dict:
    """With its runs: those that are on their way are cancelled."""
    with service.database.write() as connection:
        find(connection, caller.project_id, eval_id)
        runs = connection.execute(sa.select(eval_runs.c.id).where(eval_runs.c.eval_id == eval_id,
                                                                  eval_runs.c.deleted_at.is_(None))).scalars().all()
        for run_id in runs:
            delete_run(connection, run_id)
        connection.execute(evals.update().where(evals.c.id == eval_id).values(deleted_at=int(clock(connection))))
    service.nudge()
    return {"object": "eval.deleted", "deleted": True, "eval_id": eval_id}


def find(connection: sa.Connection, project_id: str, id: str) -> sa.RowMapping:
    """Raises BadParameter (404) for one that is not there, or is another project's."""
    row = connection.execute(sa.select(evals).where(evals.c.id == id, evals.c.project_id == project_id,
                                                    evals.c.deleted_at.is_(None))).mappings().first()
    if row is None:
        raise not_found("eval", id)
    return row


def delete_run(connection: sa.Connection, id: str) -> None:
    """Its items too. A worker that is at it is told to stop, and writes nothing more."""
    status = connection.execute(sa.select(work.c.status).where(work.c.id == id).with_for_update()).scalar_one()
    if status not in queue.ENDED:
        queue.ask(connection, id, "cancel")
    connection.execute(eval_runs.update().where(eval_runs.c.id == id).values(deleted_at=int(clock(connection))))
    connection.execute(output_items.delete().where(output_items.c.run_id == id))
    kept(id).unlink(missing_ok=True)


def shown(row: sa.RowMapping) -> dict:
    config = row["data_source_config"]
    sample = {"sample": SAMPLE_SCHEMA} if config.get("include_sample_schema") else {}
    schema = {"type": "object", "properties": {"item": config["item_schema"], **sample}, "required": ["item", *sample]}
    return {"object": "eval", "id": row["id"], "name": row["name"] or row["id"], "created_at": row["created_at"],
            "metadata": row["metadata"] or {}, "data_source_config": {"type": config["type"], "schema": schema},
            "testing_criteria": row["testing_criteria"]}
