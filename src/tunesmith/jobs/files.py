"""Files of a project: content on disk, everything else in a row.

    being received  files/PROJECT/.ID.xxxxxxxx.tmp, locked
    whole           files/PROJECT/ID, locked until its row is there
    there           the row: from now on everybody in the project sees it
    deleted         the row first, then its content

So what a killed process leaves is content without a row, which nobody can see and `sweep` takes away; a lock says which content
without a row is somebody's who still works on it. Content never changes once it has a name.

A file may be deleted while jobs need it, as at OpenAI. A job therefore holds on to what it needs when it is created (`keep`): a
second name for the same bytes, in the job's own directory. It costs no space, and is gone with that directory.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import sqlalchemy as sa

from tunesmith.errors import NotFoundError, UsageError
from tunesmith.jobs import places
from tunesmith.jobs.database import Database, clock
from tunesmith.jobs.ids import new_id, possible
from tunesmith.jobs.tables import files, projects, uploads
from tunesmith.store.files import beside, explain_os_errors, held, sha256_file
from tunesmith.store.files import sweep as sweep_leftovers


def add(database: Database, project_id: str, filename: str, purpose: str, content: bytes | Path, *,
        expires_at: int | None = None, id: str | None = None) -> sa.RowMapping:
    """Keep `content`, bytes or a file that is moved from the same file system, and its row. `id`: a new one unless given.

    Raises:
        StoreError: the disk is full, or may not be written to.
    """
    id = id or new_id("file-")
    place = places.file_path(project_id, id)
    values = {"id": id, "project_id": project_id, "filename": filename, "purpose": purpose, "expires_at": expires_at}
    if isinstance(content, bytes):
        with beside(place) as (f, put_in_place):
            f.write(content)
            put_in_place()
            return enter(database, place, values)
    with explain_os_errors(place, "write"):
        place.parent.mkdir(parents=True, exist_ok=True)
        with open(content, "rb") as f:
            with suppress(OSError):  # a file system without locks: nothing is swept there
                fcntl.flock(f, fcntl.LOCK_EX)
            os.fsync(f.fileno())
            os.replace(content, place)
            return enter(database, place, values)


def enter(database: Database, place: Path, values: dict, limit: int | None = None, *, expires_after: int | None = None,
          also: Callable[[sa.Connection, sa.RowMapping], None] | None = None) -> sa.RowMapping:
    """Write the row of content that is in its place and locked. If it may not be, the content goes; if nobody knows whether the
    row was written (the database went away), the content stays, and `sweep` finds out.

    `limit`: bytes that the project may have in all. `expires_after`: seconds. `also`: done in the same transaction.

    Raises:
        UsageError: the project has no room for it.
    """
    try:
        digest = values.pop("sha256", None) or sha256_file(place).removeprefix("sha256:")
        with database.write() as connection:
            size = place.stat().st_size
            if limit is not None:
                check_room(connection, values["project_id"], size, limit)
            now = int(clock(connection))
            connection.execute(files.insert().values(created_at=now, bytes=size, sha256=digest, status="processed", **{
                "expires_at": expires_after and now + expires_after, **values}))
            row = connection.execute(sa.select(files).where(files.c.id == values["id"])).mappings().one()
            if also:
                also(connection, row)
            return row
    except Exception as error:
        if not isinstance(error, sa.exc.SQLAlchemyError):
            place.unlink(missing_ok=True)
        raise


def check_room(connection: sa.Connection, project_id: str, size: int, limit: int) -> None:
    """Raises UsageError when `size` more bytes are more than a project may have. Others who ask wait until this one is done."""
    connection.execute(sa.select(projects.c.id).where(projects.c.id == project_id).with_for_update())
    if (used := used_bytes(connection, project_id)) + size > limit:
        raise UsageError(f"this project's files would take {used + size:,} bytes, and it may have {limit:,}",
                         fix="delete files that are not needed")


def used_bytes(connection: sa.Connection, project_id: str) -> int:
    """What a project's files take, and what its uploads that are not complete have announced."""
    now = clock(connection)
    there = sa.select(sa.func.coalesce(sa.func.sum(files.c.bytes), 0)).where(files.c.project_id == project_id)
    announced = sa.select(sa.func.coalesce(sa.func.sum(uploads.c.bytes), 0)).where(
        uploads.c.project_id == project_id, uploads.c.status == "pending", uploads.c.expires_at > now)
    return int(connection.execute(there).scalar_one()) + int(connection.execute(announced).scalar_one())


def find(connection: sa.Connection, project_id: str, id: str) -> sa.RowMapping:
    """The row of a file. Raises NotFoundError for one that is not there, has expired, or is another project's."""
    row = connection.execute(sa.select(files).where(files.c.id == id, *visible(connection, project_id))
                             ).mappings().first() if possible(id) else None
    if row is None:
        raise NotFoundError(f"No such File object: {id}")
    return row


def visible(connection: sa.Connection, project_id: str) -> tuple:
    """Conditions: a project's files that have not expired."""
    return (files.c.project_id == project_id, sa.or_(files.c.expires_at.is_(None), files.c.expires_at > clock(connection)))


def content(row: sa.RowMapping) -> Path:
    """Where a file's bytes are."""
    return places.file_path(row["project_id"], row["id"])


def opened(row: sa.RowMapping) -> BinaryIO:
    """A file's bytes, which can be read to the end though it is deleted meanwhile. Raises NotFoundError: it was, just now."""
    try:
        return open(content(row), "rb")
    except FileNotFoundError as error:
        raise NotFoundError(f"No such File object: {row['id']}") from error


def keep(row: sa.RowMapping, place: Path) -> Path:
    """Give a file's bytes a second name, `place`, which stays when the file is deleted; a copy where file systems have no such
    thing. Nothing is done if it is there already.

    Raises:
        NotFoundError: the file was deleted just now.
        StoreError: the disk is full, or may not be written to.
    """
    with explain_os_errors(place, "write"):
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(content(row), place)
        except FileExistsError:
            pass
        except FileNotFoundError as error:
            raise NotFoundError(f"No such File object: {row['id']}") from error
        except OSError:
            with opened(row) as source, beside(place) as (f, put_in_place):
                shutil.copyfileobj(source, f)
                put_in_place()
    return place


def remove(database: Database, project_id: str, id: str) -> None:
    """Raises NotFoundError."""
    with database.write() as connection:
        row = find(connection, project_id, id)
        connection.execute(files.delete().where(files.c.id == id))
    content(row).unlink(missing_ok=True)


def sweep(database: Database) -> list[str]:
    """Take away files that have expired, and content that killed processes left without a row. The ids and names."""
    with database.write() as connection:
        expired = files.c.expires_at <= clock(connection)
        gone = connection.execute(sa.select(files).where(expired)).mappings().all()
        connection.execute(files.delete().where(expired))
    for row in gone:
        content(row).unlink(missing_ok=True)
    swept = [row["id"] for row in gone]
    root = places.service() / "files"
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        swept += sweep_leftovers(folder)
        names = {p.name for p in folder.iterdir() if not p.name.startswith(".")}
        for name in sorted(names - _with_rows(database, folder.name)):
            # Whoever writes it holds its lock until the row is there: with the lock in hand, a second look is the last word.
            with suppress(OSError), held(folder / name):
                if not _with_rows(database, folder.name, name):
                    (folder / name).unlink(missing_ok=True)
                    swept.append(name)
    return swept


def _with_rows(database: Database, project_id: str, id: str | None = None) -> set[str]:
    with database.read() as connection:
        return set(connection.execute(sa.select(files.c.id).where(
            files.c.project_id == project_id, *([files.c.id == id] if id else []))).scalars())
