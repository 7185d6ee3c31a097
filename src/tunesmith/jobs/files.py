"""Files of a project: content on disk, everything else in a row. A row is written when its content is whole and flushed, and
deleted before its content: what a killed process leaves is content without a row, which nobody can see."""

from __future__ import annotations

import os
from pathlib import Path

import sqlalchemy as sa

from tunesmith.errors import NotFoundError
from tunesmith.jobs import places
from tunesmith.jobs.database import Database, clock
from tunesmith.jobs.ids import new_id
from tunesmith.jobs.tables import files
from tunesmith.store.files import explain_os_errors, sha256_file, write_bytes


def add(database: Database, project_id: str, filename: str, purpose: str, content: bytes | Path, *,
        expires_at: int | None = None, id: str | None = None) -> sa.RowMapping:
    """Keep `content`, bytes or a file that is moved from the same file system, and its row. `id`: a new one unless given.

    Raises:
        StoreError: the disk is full, or may not be written to.
    """
    id = id or new_id("file-")
    place = places.file_path(project_id, id)
    with explain_os_errors(place, "write"):
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            write_bytes(place, content)
        else:
            with open(content, "rb") as f:
                os.fsync(f.fileno())
            os.replace(content, place)
    with database.write() as connection:
        connection.execute(files.insert().values(
            id=id, project_id=project_id, created_at=int(clock(connection)), filename=filename, purpose=purpose,
            bytes=place.stat().st_size, sha256=sha256_file(place).removeprefix("sha256:"), status="processed",
            expires_at=expires_at))
        return find(connection, project_id, id)


def find(connection: sa.Connection, project_id: str, id: str) -> sa.RowMapping:
    """The row of a file. Raises NotFoundError for one that is not there, has expired, or is another project's."""
    row = connection.execute(sa.select(files).where(files.c.id == id, files.c.project_id == project_id)).mappings().first()
    if row is None or (row["expires_at"] is not None and row["expires_at"] <= clock(connection)):
        raise NotFoundError(f"No such File object: {id}")
    return row


def content(row: sa.RowMapping) -> Path:
    """Where a file's bytes are."""
    return places.file_path(row["project_id"], row["id"])


def remove(database: Database, project_id: str, id: str) -> None:
    """Raises NotFoundError."""
    with database.write() as connection:
        row = find(connection, project_id, id)
        connection.execute(files.delete().where(files.c.id == id))
    content(row).unlink(missing_ok=True)
