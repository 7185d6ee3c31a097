"""`/v1/uploads`: a file larger than one request, in parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from tunesmith.api import multipart
from tunesmith.api.caller import Caller, may
from tunesmith.api.errors import BadParameter, not_found
from tunesmith.api.files import LONGEST, SHORTEST, Purpose, room_for, safe_name, shown
from tunesmith.api.schemas import FIELDS
from tunesmith.api.service import Service, service_of
from tunesmith.errors import NotFoundError, TunesmithError
from tunesmith.jobs import places, uploads
from tunesmith.jobs.ids import new_id
from tunesmith.store.files import beside

FORM = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": {
    "type": "object", "required": ["data"], "additionalProperties": False,
    "properties": {"data": {"type": "string", "format": "binary"}}}}}}}

router = APIRouter()


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ExpiresAfter(_Strict):
    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=SHORTEST, le=LONGEST)]


class UploadRequest(_Strict):
    bytes: Annotated[int, Field(ge=1, lt=2**63)]
    filename: Annotated[str, Field(max_length=4096)]
    mime_type: Annotated[str, Field(max_length=128, pattern=r"^[\w.+-]+/[\w.+-]+(;[ -~]*)?$")]
    purpose: Purpose
    expires_after: ExpiresAfter | None = None


class CompleteRequest(_Strict):
    part_ids: Annotated[list[Annotated[str, Field(max_length=64)]], Field(min_length=1, max_length=uploads.MAX_PARTS)]
    md5: Annotated[str, Field(pattern="^[0-9A-Fa-f]{32}$")] | None = None


FIELDS |= {*UploadRequest.model_fields, *CompleteRequest.model_fields, *ExpiresAfter.model_fields}


@router.post("/v1/uploads")
def create(body: UploadRequest, caller: Caller = Depends(may("train")), service: Service = Depends(service_of)) -> dict:
    limits = service.settings.limits
    if body.bytes > limits.upload_bytes:
        raise BadParameter(f"an upload may have {limits.upload_bytes:,} bytes", "bytes", "file_too_large", 413)
    row = uploads.create(
        service.database, caller.project_id, filename=safe_name(body.filename), purpose=body.purpose, mime_type=body.mime_type,
        size=body.bytes, file_expires_after=body.expires_after and body.expires_after.seconds,
        project_limit=limits.project_bytes)
    return _shown(row)


@router.post("/v1/uploads/{upload_id}/parts", openapi_extra=FORM)
async def add_part(upload_id: str, request: Request, caller: Caller = Depends(may("train")),
                   service: Service = Depends(service_of)) -> dict:
    def look() -> None:
        with service.database.read() as connection:
            uploads.pending(connection, caller.project_id, upload_id)

    with _known(upload_id):
        await run_in_threadpool(look)
        id = new_id("part_")
        place = places.upload_dir(upload_id) / id
        with beside(place) as (f, put_in_place), room_for(service, caller, service.settings.limits.part_bytes, "data",
                                                          announced=True) as room:
            form = await multipart.receive(request, "data", set(), f, room)

            def finish() -> dict:
                try:
                    put_in_place()
                    return uploads.add_part(service.database, caller.project_id, upload_id, id, form.size)
                except FileNotFoundError:  # the upload ended meanwhile, and its directory went
                    look()
                    raise
                except TunesmithError:
                    place.unlink(missing_ok=True)
                    raise

            part = await run_in_threadpool(finish)
    return {"id": id, "object": "upload.part", "created_at": part["created_at"], "upload_id": upload_id}


@router.post("/v1/uploads/{upload_id}/complete")
def complete(upload_id: str, body: CompleteRequest, caller: Caller = Depends(may("train")),
             service: Service = Depends(service_of)) -> dict:
    with _known(upload_id):
        row, file = uploads.complete(service.database, caller.project_id, upload_id, body.part_ids, body.md5)
    return _shown(row, file)


@router.post("/v1/uploads/{upload_id}/cancel")
def cancel(upload_id: str, caller: Caller = Depends(may("train")), service: Service = Depends(service_of)) -> dict:
    with _known(upload_id):
        return _shown(uploads.cancel(service.database, caller.project_id, upload_id))


def _shown(row: sa.RowMapping, file: sa.RowMapping | None = None) -> dict:
    return {"id": row["id"], "object": "upload", "bytes": row["bytes"], "created_at": row["created_at"],
            "expires_at": row["expires_at"], "filename": row["filename"], "purpose": row["purpose"], "status": row["status"],
            "file": shown(file) if file else None}


@contextmanager
def _known(upload_id: str) -> Iterator[None]:
    try:
        yield
    except NotFoundError as error:
        raise not_found("Upload object", upload_id, "id") from error
