"""`/v1/fine_tuning/checkpoints/{model}/permissions`: which other projects may ask a fine-tuned model. It stays its project's:
they see the model, and nothing of the job, the files or the permissions."""

from __future__ import annotations

from typing import Annotated, Literal

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Query
from pydantic import Field

from tunesmith.api.caller import Caller, may
from tunesmith.api.errors import BadParameter, not_found
from tunesmith.api.fine_tuning import After, Limit
from tunesmith.api.fine_tuning_request import Id, Strict, unfit
from tunesmith.api.page import listed, page_of
from tunesmith.api.service import Service, service_of
from tunesmith.jobs.database import clock, insert_new
from tunesmith.jobs.ids import new_id, possible
from tunesmith.jobs.tables import models, permissions, projects

router = APIRouter()
AT = "/v1/fine_tuning/checkpoints/{model:path}/permissions"


class Grant(Strict):
    project_ids: Annotated[list[Id], Field(min_length=1, max_length=100)]


@router.post(AT)
def allow(model: str, body: Grant, caller: Caller = Depends(may("admin")), service: Service = Depends(service_of)) -> dict:
    if unfit(body.project_ids):
        raise BadParameter("project_ids has text that is no id", "project_ids")
    with service.database.write() as connection:
        _mine(connection, model, caller.project_id)
        known = set(connection.execute(sa.select(projects.c.id).where(projects.c.id.in_(body.project_ids))).scalars())
        if unknown := [p for p in body.project_ids if p not in known]:
            raise BadParameter(f"No such project: {unknown[0]}", "project_ids", "project_not_found")
        now = int(clock(connection))
        for project in dict.fromkeys(body.project_ids):
            insert_new(connection, permissions, {"id": new_id("cp_"), "created_at": now, "model": model, "project_id": project})
        rows = connection.execute(sa.select(permissions).where(
            permissions.c.model == model, permissions.c.project_id.in_(body.project_ids))
            .order_by(permissions.c.created_at, permissions.c.id)).mappings().all()
    return listed([_shown(r) for r in rows])


@router.get(AT)
def allowed(model: str, after: After = None, limit: Limit = 10,
            order: Literal["ascending", "descending"] = "descending",
            project_id: Annotated[str | None, Query(max_length=255, pattern=r"^[^\x00]*$")] = None,
            caller: Caller = Depends(may("admin")), service: Service = Depends(service_of)) -> dict:
    with service.database.read() as connection:
        _mine(connection, model, caller.project_id)
        where = [permissions.c.model == model] + ([permissions.c.project_id == project_id] if project_id is not None else [])
        rows, more = page_of(connection, permissions, where, after=after, limit=limit, newest_first=order == "descending")
    return listed([_shown(r) for r in rows], more)


@router.delete(AT + "/{id}")
def forbid(model: str, id: str, caller: Caller = Depends(may("admin")), service: Service = Depends(service_of)) -> dict:
    with service.database.write() as connection:
        _mine(connection, model, caller.project_id)
        gone = connection.execute(permissions.delete().where(
            permissions.c.id == id, permissions.c.model == model)).rowcount if possible(id) else 0
        if not gone:
            raise not_found("checkpoint permission", id[:255])
    return {"id": id, "object": "checkpoint.permission", "deleted": True}


def _mine(connection: sa.Connection, model: str, project_id: str) -> None:
    """Raises BadParameter (404): no fine-tuned model of this project."""
    row = None if "\0" in model or len(model) > 255 else connection.execute(sa.select(models.c.name).where(
        models.c.name == model, models.c.project_id == project_id, models.c.deleted_at.is_(None))).first()
    if row is None:
        raise BadParameter(f"The model `{model[:255]}` does not exist or you do not have access to it.", None,
                           "model_not_found", 404)


def _shown(row: sa.RowMapping) -> dict:
    return {"id": row["id"], "object": "checkpoint.permission", "created_at": row["created_at"],
            "project_id": row["project_id"]}
