"""`/v1/fine_tuning/jobs`: create, list, look, cancel, pause, resume. What is done with a job its worker does (`jobs.finetune`).

    status    work.status, and what is wanted of it
    validating_files   its files are not checked yet
    queued, running, succeeded, failed
    paused, cancelled  also while its worker still writes its last checkpoint: nothing else will come of it
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Query, Request

from tunesmith.api.caller import Caller, may
from tunesmith.api.errors import BadParameter, not_found
from tunesmith.api.fine_tuning_request import CreateJob
from tunesmith.api.page import listed, page_of
from tunesmith.api.service import Service, service_of
from tunesmith.errors import NotFoundError, RecipeError
from tunesmith.jobs import events as told
from tunesmith.jobs import files, names, places, queue, recipes
from tunesmith.jobs.database import clock
from tunesmith.jobs.ids import new_id, possible
from tunesmith.jobs.settings import Settings
from tunesmith.jobs.tables import checkpoints, events, fine_tuning_jobs, models, work

router = APIRouter()
KIND = "fine_tuning"
JOBS = fine_tuning_jobs.join(work, work.c.id == fine_tuning_jobs.c.id)
ROW = (fine_tuning_jobs, work.c.status, work.c.wanted, work.c.ended_at)
Limit = Annotated[int, Query(ge=1, le=100)]
After = Annotated[str | None, Query(max_length=255, pattern=r"^[^\x00]*$")]


@router.post("/v1/fine_tuning/jobs")
def create(body: CreateJob, caller: Caller = Depends(may("train")), service: Service = Depends(service_of)) -> dict:
    database, settings = service.database, service.settings
    with database.read() as connection:
        base, parent = _trainable(connection, settings, body.model, caller.project_id)
    try:
        extensions = recipes.extensions(body.tunesmith, body.metadata)
        if parent and "method" in extensions:
            raise RecipeError("method: it is that of the model that the job goes on from")
        job = {"id": new_id("ftjob-"), "project_id": caller.project_id, "model": body.model, "base": base, "parent": parent,
               "training_file": body.training_file, "validation_file": body.validation_file, "method": body.asked(),
               "suffix": body.suffix, "seed": secrets.randbelow(2**31) if body.seed is None else body.seed,
               "metadata": body.metadata or sa.null(), "extensions": extensions, "result_files": [],
               "integrations": [i.model_dump(mode="json", exclude_none=True) for i in body.integrations or []]}
        recipes.refuse(recipes.recipe_of(settings, job))
    except RecipeError as error:
        raise BadParameter(error.what, "tunesmith", "invalid_extension") from error
    job["hyperparameters"] = job["method"]["supervised"]["hyperparameters"] if "supervised" in job["method"] else sa.null()
    _keep_files(service, job)
    with database.write() as connection:
        active = connection.execute(sa.select(sa.func.count()).select_from(work).where(
            work.c.project_id == caller.project_id, work.c.kind == KIND, work.c.status.not_in(queue.ENDED))).scalar_one()
        if active >= settings.limits.active_jobs:
            raise BadParameter(f"This project has {active} fine-tuning jobs that have not ended, which is the most it may have",
                               None, "rate_limit_exceeded", 429, headers={"x-should-retry": "false"})
        queue.put(connection, job["id"], KIND, caller.project_id)
        connection.execute(fine_tuning_jobs.insert().values(created_at=int(clock(connection)), **job))
        told.tell(connection, job["id"], "created", f"Created fine-tuning job: {job['id']}")
        validation = f" and validation file: {body.validation_file}" if body.validation_file else ""
        told.tell(connection, job["id"], "validating", f"Validating training file: {body.training_file}{validation}")
        shown = _shown(find(connection, caller.project_id, job["id"]), settings)
    service.nudge()
    return shown


@router.get("/v1/fine_tuning/jobs")
def jobs(request: Request, after: After = None, limit: Limit = 20, caller: Caller = Depends(may("train")),
         service: Service = Depends(service_of)) -> dict:
    """Newest first. `metadata[key]=value` keeps those that have it, `metadata=null` those that have none."""
    with service.database.read() as connection:
        where = [fine_tuning_jobs.c.project_id == caller.project_id, *_metadata(connection, request)]
        rows, more = page_of(connection, fine_tuning_jobs, where, after=after, limit=limit, newest_first=True)
        whole = connection.execute(sa.select(*ROW).select_from(JOBS).where(
            fine_tuning_jobs.c.id.in_([r["id"] for r in rows]))).mappings().all()
    by_id = {r["id"]: r for r in whole}
    return listed([_shown(by_id[r["id"]], service.settings) for r in rows], more)


@router.get("/v1/fine_tuning/jobs/{id}")
def job(id: str, caller: Caller = Depends(may("train")), service: Service = Depends(service_of)) -> dict:
    with service.database.read() as connection:
        return _shown(find(connection, caller.project_id, id), service.settings)


@router.post("/v1/fine_tuning/jobs/{id}/cancel")
def cancel(id: str, caller: Caller = Depends(may("train")), service: Service = Depends(service_of)) -> dict:
    return _ask(service, caller, id, "cancel")


@router.post("/v1/fine_tuning/jobs/{id}/pause")
def pause(id: str, caller: Caller = Depends(may("train")), service: Service = Depends(service_of)) -> dict:
    return _ask(service, caller, id, "pause")


@router.post("/v1/fine_tuning/jobs/{id}/resume")
def resume(id: str, caller: Caller = Depends(may("train")), service: Service = Depends(service_of)) -> dict:
    return _ask(service, caller, id, "run")


@router.get("/v1/fine_tuning/jobs/{id}/events")
def job_events(id: str, after: After = None, limit: Limit = 20, caller: Caller = Depends(may("train")),
               service: Service = Depends(service_of)) -> dict:
    """Newest first."""
    with service.database.read() as connection:
        find(connection, caller.project_id, id)
        rows, more = page_of(connection, events, [events.c.job_id == id], after=after, limit=limit, newest_first=True,
                             by=("seq",))
    return listed([{"id": r["id"], "object": "fine_tuning.job.event", "created_at": r["created_at"], "level": r["level"],
                    "message": r["message"], "type": r["type"], "data": r["data"]} for r in rows], more)


@router.get("/v1/fine_tuning/jobs/{id}/checkpoints")
def job_checkpoints(id: str, after: After = None, limit: Limit = 10, caller: Caller = Depends(may("train")),
                    service: Service = Depends(service_of)) -> dict:
    """Newest first; the last three epochs, each a model that can be asked."""
    with service.database.read() as connection:
        find(connection, caller.project_id, id)
        rows, more = page_of(connection, checkpoints, [checkpoints.c.job_id == id], after=after, limit=limit,
                             newest_first=True, by=("step",))
    return listed([{"id": r["id"], "object": "fine_tuning.job.checkpoint", "created_at": r["created_at"],
                    "fine_tuned_model_checkpoint": r["model"], "fine_tuning_job_id": id, "step_number": r["step"],
                    "metrics": r["metrics"]} for r in rows], more)


def find(connection: sa.Connection, project_id: str, id: str) -> sa.RowMapping:
    """A job with its status. Raises BadParameter (404): there is none, or it is another project's."""
    row = connection.execute(sa.select(*ROW).select_from(JOBS).where(
        fine_tuning_jobs.c.id == id, fine_tuning_jobs.c.project_id == project_id)).mappings().first() if possible(id) else None
    if row is None:
        raise not_found("fine-tuning job", id[:255])
    return row


def status_of(row: sa.RowMapping) -> str:
    if row["status"] == "running" and row["wanted"] != "run":
        return {"pause": "paused", "cancel": "cancelled"}[row["wanted"]]
    if row["status"] in ("queued", "running") and row["validated_at"] is None:
        return "validating_files"
    return row["status"]


def _ask(service: Service, caller: Caller, id: str, wanted: str) -> dict:
    with service.database.write() as connection:
        row = find(connection, caller.project_id, id)
        status = status_of(row)
        if status in queue.ENDED:
            raise BadParameter(f"Job has already {'been cancelled' if status == 'cancelled' else 'completed'}: {id}", None,
                               "invalid_state")
        if wanted == "pause" and status == "paused" or wanted == "run" and status != "paused":
            raise BadParameter(f"Job is {status}: it cannot be {'paused' if wanted == 'pause' else 'resumed'}: {id}", None,
                               "invalid_state")
        queue.ask(connection, id, wanted)
        if wanted == "cancel" and row["status"] != "running":
            told.tell(connection, id, "cancelled", "The job was cancelled")
        shown = _shown(find(connection, caller.project_id, id), service.settings)
    service.nudge()
    return shown


def _trainable(connection: sa.Connection, settings: Settings, model: str, project_id: str) -> tuple[str, str | None]:
    """(the base here, the `ft:` model to go on from). Raises BadParameter (404) for what this project may not train."""
    base = settings.base_of(model)
    if base is not None:
        return base, None
    row = connection.execute(sa.select(models).where(
        models.c.name == model, models.c.project_id == project_id, models.c.deleted_at.is_(None), models.c.ready)
        ).mappings().first() if names.is_tuned(model) else None
    if row is None:
        raise BadParameter(f"The model `{model}` does not exist or you do not have access to it.", "model", "model_not_found",
                           404)
    return row["base"], model


def _keep_files(service: Service, job: dict[str, Any]) -> None:
    """Give the job its files, which may be deleted from now on.

    Raises:
        BadParameter: a file that this project does not have, or that is not for this.
    """
    for param, name in (("training_file", "train.jsonl"), ("validation_file", "validation.jsonl")):
        if (id := job[param]) is None:
            continue
        try:
            with service.database.read() as connection:
                row = files.find(connection, job["project_id"], id)
            if row["purpose"] != "fine-tune":
                raise BadParameter(f"invalid {param}: {id} has the purpose {row['purpose']!r}, and 'fine-tune' is needed",
                                   param, "invalid_purpose")
            files.keep(row, places.job_dir(job["id"]) / name)
        except NotFoundError:
            raise BadParameter(f"invalid {param}: {id}", param, "file_not_found") from None


def _metadata(connection: sa.Connection, request: Request) -> Sequence[Any]:
    """Conditions on the metadata, of a list's query."""
    column, found = fine_tuning_jobs.c.metadata, []
    pairs = sa.func.json_each if connection.dialect.name == "sqlite" else sa.func.json_each_text
    for name, value in request.query_params.multi_items():
        if name == "metadata" and value == "null":
            found.append(column.is_(sa.null()))
        elif name.startswith("metadata[") and name.endswith("]"):
            key = name.removeprefix("metadata[").removesuffix("]")
            if "\0" in key + value:
                raise BadParameter("metadata has a NUL character", "metadata")
            each = pairs(column).table_valued("key", "value")
            found.append(sa.exists(sa.select(1).select_from(each).where(each.c.key == key, each.c.value == value)))
        elif name.startswith("metadata"):
            raise BadParameter("a filter is metadata[key]=value, or metadata=null", "metadata")
    return found


def _shown(row: sa.RowMapping, settings: Settings) -> dict:
    status = status_of(row)
    return {
        "id": row["id"], "object": "fine_tuning.job", "created_at": row["created_at"], "finished_at": row["ended_at"],
        "estimated_finish": row["estimated_finish"] if status == "running" else None, "model": row["model"],
        "fine_tuned_model": row["fine_tuned_model"], "organization_id": settings.organization,
        "result_files": row["result_files"], "status": status, "trained_tokens": row["trained_tokens"],
        "training_file": row["training_file"], "validation_file": row["validation_file"], "seed": row["seed"],
        "hyperparameters": row["hyperparameters"], "method": row["method"], "integrations": row["integrations"] or [],
        "metadata": row["metadata"], "user_provided_suffix": row["suffix"],
        "error": row["error"] if status == "failed" else None,
        "tunesmith": {"base": row["base"], "run_id": row["run_id"], "release_id": row["release_id"],
                      "parent": row["parent"], "extensions": row["extensions"]}}
