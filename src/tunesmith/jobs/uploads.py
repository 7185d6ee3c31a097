"""Uploads: a large file in parts, which become one file when the client says in which order.

    pending ──complete──> completed, and its file is there         parts in uploads/UPLOAD_ID/PART_ID
       ├─────cancel─────> cancelled
       └─ an hour later ─> expired

Completing is one transaction that asks whether the upload is still pending: whoever assembled the parts a second time gets the
file of the one who was first. Directories of uploads that are not pending are `sweep`'s.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from typing import BinaryIO

import sqlalchemy as sa

from tunesmith.errors import NotFoundError, UsageError
from tunesmith.jobs import files, places
from tunesmith.jobs.database import Database, clock
from tunesmith.jobs.ids import new_id, possible
from tunesmith.jobs.jsonl import check_jsonl
from tunesmith.jobs.tables import upload_parts, uploads
from tunesmith.store.files import CHUNK_BYTES, beside

LIFE_SECONDS = 3600
MAX_PARTS = 10_000


class _TooLate(Exception):
    """Somebody else completed or cancelled it meanwhile."""


def create(database: Database, project_id: str, *, filename: str, purpose: str, mime_type: str, size: int,
           file_expires_after: int | None, project_limit: int) -> sa.RowMapping:
    """Raises UsageError when the project has no room for it."""
    with database.write() as connection:
        files.check_room(connection, project_id, size, project_limit)
        now, id = int(clock(connection)), new_id("upload_")
        connection.execute(uploads.insert().values(
            id=id, project_id=project_id, created_at=now, filename=filename, purpose=purpose, mime_type=mime_type, bytes=size,
            status="pending", expires_at=now + LIFE_SECONDS, file_expires_after=file_expires_after))
        return find(connection, project_id, id)


def find(connection: sa.Connection, project_id: str, id: str, *, alone: bool = False) -> sa.RowMapping:
    """`alone`: others who ask so wait until this transaction is done. Raises NotFoundError."""
    query = sa.select(uploads).where(uploads.c.id == id, uploads.c.project_id == project_id)
    row = connection.execute(query.with_for_update() if alone else query).mappings().first() if possible(id) else None
    if row is None:
        raise NotFoundError(f"No such Upload object: {id}")
    return row


def pending(connection: sa.Connection, project_id: str, id: str, *, alone: bool = False) -> sa.RowMapping:
    """`find`, of an upload to which something may still be done. Raises NotFoundError, UsageError."""
    row = find(connection, project_id, id, alone=alone)
    if (status := status_of(connection, row)) != "pending":
        raise UsageError(f"Upload {id} is {status}, and only a pending one can be changed")
    return row


def status_of(connection: sa.Connection, row: sa.RowMapping) -> str:
    return "expired" if row["status"] == "pending" and row["expires_at"] <= clock(connection) else row["status"]


def add_part(database: Database, project_id: str, upload_id: str, part_id: str, size: int) -> sa.RowMapping:
    """Enter a part whose content is in its place.

    Raises:
        NotFoundError, UsageError: no such upload, none that is pending, or its parts are far more than was announced. (A part
            that a client sends again, since it heard of no answer, is all right.)
    """
    with database.write() as connection:
        row = pending(connection, project_id, upload_id, alone=True)
        count, there = connection.execute(sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(upload_parts.c.bytes), 0))
                                          .where(upload_parts.c.upload_id == upload_id)).one()
        if there + size > 2 * row["bytes"] or count >= MAX_PARTS:
            raise UsageError(f"the parts of {upload_id} are more than the {row['bytes']:,} bytes that were announced")
        values = {"id": part_id, "upload_id": upload_id, "created_at": int(clock(connection)), "bytes": size}
        connection.execute(upload_parts.insert().values(**values))
        return values


def complete(database: Database, project_id: str, upload_id: str, part_ids: Sequence[str],
             md5: str | None) -> tuple[sa.RowMapping, sa.RowMapping | None]:
    """(upload, its file). Of one that was completed before: the same again; its file is None when it was deleted meanwhile.

    Raises:
        NotFoundError, UsageError: parts that are not this upload's, not as many bytes as were announced, another md5, or lines
            that are no JSON objects, if it is for fine-tuning. The upload stays pending.
    """
    with database.read() as connection:
        row = find(connection, project_id, upload_id)
        if row["status"] != "completed":
            row = pending(connection, project_id, upload_id)
            sizes = dict(connection.execute(sa.select(upload_parts.c.id, upload_parts.c.bytes)
                                            .where(upload_parts.c.upload_id == upload_id)).tuples().all())
    if row["status"] == "completed":
        return _completed(database, project_id, upload_id)
    if unknown := [id for id in part_ids if id not in sizes]:
        raise UsageError(f"No such part of {upload_id}: {unknown[0]}")
    if len(set(part_ids)) != len(part_ids):
        raise UsageError("part_ids names a part twice")
    if (total := sum(sizes[id] for id in part_ids)) != row["bytes"]:
        raise UsageError(f"the parts have {total:,} bytes, and {row['bytes']:,} were announced")
    id = new_id("file-")
    place = places.file_path(project_id, id)

    def end(connection: sa.Connection, file: sa.RowMapping) -> None:
        if find(connection, project_id, upload_id, alone=True)["status"] != "pending":
            raise _TooLate
        connection.execute(uploads.update().where(uploads.c.id == upload_id).values(status="completed", file_id=file["id"]))
        connection.execute(upload_parts.delete().where(upload_parts.c.upload_id == upload_id))

    try:
        with beside(place) as (f, put_in_place):
            digest = _join(upload_id, part_ids, f, md5)
            if row["purpose"] == "fine-tune":
                check_jsonl(f)
            put_in_place()
            files.enter(database, place, {"id": id, "project_id": project_id, "filename": row["filename"], "sha256": digest,
                                          "purpose": row["purpose"]}, expires_after=row["file_expires_after"], also=end)
    except _TooLate as error:
        done = _completed(database, project_id, upload_id)
        if done[0]["status"] != "completed":
            raise UsageError(f"Upload {upload_id} is {done[0]['status']}, and only a pending one can be changed") from error
        return done
    _discard(upload_id)
    return _completed(database, project_id, upload_id)


def cancel(database: Database, project_id: str, upload_id: str) -> sa.RowMapping:
    """Raises NotFoundError, UsageError."""
    with database.write() as connection:
        pending(connection, project_id, upload_id, alone=True)
        connection.execute(uploads.update().where(uploads.c.id == upload_id).values(status="cancelled"))
        connection.execute(upload_parts.delete().where(upload_parts.c.upload_id == upload_id))
        row = find(connection, project_id, upload_id)
    _discard(upload_id)
    return row


def sweep(database: Database) -> list[str]:
    """End uploads that have expired, and take away the parts of all that are not pending. The directories' names."""
    with database.write() as connection:
        connection.execute(uploads.update().where(uploads.c.status == "pending", uploads.c.expires_at <= clock(connection))
                           .values(status="expired"))
        ended = sa.select(uploads.c.id).where(uploads.c.status != "pending")
        connection.execute(upload_parts.delete().where(upload_parts.c.upload_id.in_(ended)))
    folder = places.upload_dir("x").parent
    swept = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        with database.read() as connection:
            living = connection.execute(sa.select(uploads.c.id).where(uploads.c.id == path.name,
                                                                      uploads.c.status == "pending")).first()
        if living is None:  # its row is there before its directory
            shutil.rmtree(path, ignore_errors=True)
            swept.append(path.name)
    return swept


def _completed(database: Database, project_id: str, upload_id: str) -> tuple[sa.RowMapping, sa.RowMapping | None]:
    with database.read() as connection:
        row = find(connection, project_id, upload_id)
        try:
            return row, files.find(connection, project_id, row["file_id"] or "")
        except NotFoundError:
            return row, None


def _join(upload_id: str, part_ids: Sequence[str], out: BinaryIO, md5: str | None) -> str:
    """Write the parts in order. Their SHA-256. Raises UsageError: they do not have this md5; _TooLate: they are gone."""
    sha256, other = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    for id in part_ids:
        try:
            part = open(places.upload_dir(upload_id) / id, "rb")  # noqa: SIM115
        except FileNotFoundError as error:
            raise _TooLate from error
        with part:
            while chunk := part.read(CHUNK_BYTES):
                out.write(chunk)
                sha256.update(chunk)
                other.update(chunk)
    if md5 and md5.lower() != other.hexdigest():
        raise UsageError(f"the parts have the md5 {other.hexdigest()}, not {md5}")
    return sha256.hexdigest()


def _discard(upload_id: str) -> None:
    shutil.rmtree(places.upload_dir(upload_id), ignore_errors=True)
