"""`/v1/files`: what jobs read, and what they leave."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, BinaryIO, Literal
from urllib.parse import quote

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from tunesmith.api import multipart
from tunesmith.api.caller import Caller, may
from tunesmith.api.errors import BadParameter, not_found
from tunesmith.api.page import listed, page_of
from tunesmith.api.schemas import FIELDS
from tunesmith.api.service import Service, service_of
from tunesmith.errors import NotFoundError
from tunesmith.jobs import files, places
from tunesmith.jobs.ids import new_id
from tunesmith.jobs.jsonl import check_jsonl
from tunesmith.store.files import CHUNK_BYTES, beside

Purpose = Literal["assistants", "batch", "evals", "fine-tune", "user_data", "vision"]
PURPOSES: tuple[str, ...] = Purpose.__args__
ANCHOR, SECONDS = "expires_after[anchor]", "expires_after[seconds]"
SHORTEST, LONGEST = 3600, 30 * 86_400
"""Seconds after which a file may expire."""
FORM = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": {
    "type": "object", "required": ["file", "purpose"], "additionalProperties": False, "properties": {
        "file": {"type": "string", "format": "binary"}, "purpose": {"type": "string", "enum": list(PURPOSES)},
        ANCHOR: {"type": "string", "enum": ["created_at"]},
        SECONDS: {"type": "integer", "minimum": SHORTEST, "maximum": LONGEST}}}}}}}
FIELDS |= {"after", "limit", "order", "purpose"}

router = APIRouter()


def shown(row: sa.RowMapping) -> dict:
    """A file as OpenAI shows it."""
    return {"id": row["id"], "object": "file", "bytes": row["bytes"], "created_at": row["created_at"],
            "expires_at": row["expires_at"], "filename": row["filename"], "purpose": row["purpose"], "status": row["status"],
            "status_details": None}


@router.post("/v1/files", openapi_extra=FORM)
async def create(request: Request, caller: Caller = Depends(may("train")), service: Service = Depends(service_of)) -> dict:
    """Store a file. It is received to disk, and appears when it is whole."""
    limits, id = service.settings.limits, new_id("file-")
    place = places.file_path(caller.project_id, id)
    with beside(place) as (f, put_in_place), room_for(service, caller, limits.file_bytes, "file") as room:
        form = await multipart.receive(request, "file", {"purpose", ANCHOR, SECONDS}, f, room)
        values = {"id": id, "project_id": caller.project_id, "filename": safe_name(form.filename), "sha256": form.sha256,
                  "purpose": _purpose(form.fields.get("purpose"))}
        seconds = _expiry(form.fields)

        def finish() -> sa.RowMapping:
            f.flush()
            if values["purpose"] == "fine-tune":
                check_jsonl(f)
            put_in_place()
            return files.enter(service.database, place, values, limits.project_bytes, expires_after=seconds)

        return shown(await run_in_threadpool(finish))


@router.get("/v1/files")
def list_files(
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: Annotated[str | None, Query(max_length=32, pattern="^[a-z_-]*$")] = None,
    caller: Caller = Depends(may("train")),
    service: Service = Depends(service_of),
) -> dict:
    with service.database.read() as connection:
        where = files.visible(connection, caller.project_id)
        if purpose:
            where += (files.files.c.purpose == purpose,)
        rows, more = page_of(connection, files.files, where, after=after, limit=limit, newest_first=order == "desc")
    return listed([shown(row) for row in rows], more)


@router.get("/v1/files/{file_id}")
def retrieve(file_id: str, caller: Caller = Depends(may("train")), service: Service = Depends(service_of)) -> dict:
    with _known(file_id), service.database.read() as connection:
        return shown(files.find(connection, caller.project_id, file_id))


@router.get("/v1/files/{file_id}/content", response_class=StreamingResponse,
            responses={200: {"content": {"application/octet-stream": {}}}})
def content(file_id: str, caller: Caller = Depends(may("train")), service: Service = Depends(service_of)) -> StreamingResponse:
    with _known(file_id):
        with service.database.read() as connection:
            row = files.find(connection, caller.project_id, file_id)
        f = files.opened(row)  # deleted from here on, it is still sent to its end
    return StreamingResponse(_pieces(f), media_type="application/octet-stream", headers={
        "content-length": str(row["bytes"]),
        "content-disposition": f"attachment; filename*=UTF-8''{quote(row['filename'], safe='')}"})


@router.delete("/v1/files/{file_id}")
def delete(file_id: str, caller: Caller = Depends(may("train")), service: Service = Depends(service_of)) -> dict:
    """Jobs that were created with it have it still."""
    with _known(file_id):
        files.remove(service.database, caller.project_id, file_id)
    return {"id": file_id, "object": "file", "deleted": True}


@contextmanager
def room_for(service: Service, caller: Caller, limit: int, what: str,
             announced: bool = False) -> Iterator[Callable[[int], None]]:
    """What counts the bytes of a body that comes, and raises when they are too many: for one file, or for the project together
    with all that is on its way to it. `announced`: they are among what the project has already."""
    receiving, project, got = service.receiving, caller.project_id, 0
    most = service.settings.limits.project_bytes
    with service.database.read() as connection:
        used = 0 if announced else files.used_bytes(connection, project)

    def count(more: int) -> None:
        nonlocal got
        got += more
        receiving[project] = receiving.get(project, 0) + more
        if got > limit:
            raise BadParameter(f"the {what} is larger than {limit:,} bytes", what, "file_too_large", 413)
        if used + receiving[project] > most:
            raise BadParameter(f"this project's files may take {most:,} bytes in all", what, "project_full", 413)

    try:
        yield count
    finally:
        receiving[project] = receiving.get(project, 0) - got
        if receiving[project] <= 0:
            del receiving[project]


def safe_name(name: str) -> str:
    """A name to show: no directories, no control characters or ones that turn text around, 255 bytes. Never a path here."""
    name = name.replace("\\", "/").rpartition("/")[2]
    name = "".join(c for c in name if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp")).strip()
    stem, dot, ending = name.rpartition(".")
    if dot and len(ending.encode()) <= 16:
        name = stem.encode()[:254 - len(ending.encode())].decode(errors="ignore") + "." + ending
    name = name.encode()[:255].decode(errors="ignore")
    return name if name.strip(". ") else "upload"


def _purpose(given: str | None) -> str:
    if given is None:
        raise BadParameter("purpose: Field required", "purpose", "missing_required_parameter")
    if given not in PURPOSES:
        raise BadParameter(f"{given[:64]!r} is not one of {list(PURPOSES)} - 'purpose'", "purpose")
    return given


def _expiry(fields: dict[str, str]) -> int | None:
    anchor, seconds = fields.get(ANCHOR), fields.get(SECONDS)
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise BadParameter("expires_after.anchor: it can only be 'created_at'", "expires_after.anchor")
    if not (seconds and seconds.isascii() and seconds.isdecimal() and len(seconds) < 10
            and SHORTEST <= int(seconds) <= LONGEST):
        raise BadParameter(f"expires_after.seconds: a number from {SHORTEST} to {LONGEST}", "expires_after.seconds")
    return int(seconds)


@contextmanager
def _known(file_id: str) -> Iterator[None]:
    try:
        yield
    except NotFoundError as error:
        raise not_found("File object", file_id, "id") from error


def _pieces(f: BinaryIO) -> Iterator[bytes]:
    with f:
        while piece := f.read(CHUNK_BYTES):
            yield piece
