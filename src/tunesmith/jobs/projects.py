"""Projects: whose files, jobs and models something is."""

from __future__ import annotations

import re
from collections.abc import Sequence

import sqlalchemy as sa

from tunesmith.errors import NotFoundError, UsageError
from tunesmith.jobs.database import Database, clock, insert_new
from tunesmith.jobs.ids import new_id
from tunesmith.jobs.places import DEFAULT_PROJECT
from tunesmith.jobs.tables import projects

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")


def ensure_default(database: Database) -> None:
    """The project of those who need no key."""
    with database.write() as connection:
        insert_new(connection, projects, {"id": DEFAULT_PROJECT, "name": "default", "created_at": int(clock(connection))})


def add(database: Database, name: str) -> sa.RowMapping:
    """Raises UsageError: the name is taken, or is none."""
    if not NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot be a project's name", fix="1 to 64 of A-Z a-z 0-9 space . _ -, no sign first")
    with database.write() as connection:
        id = new_id("proj_")
        if not insert_new(connection, projects, {"id": id, "name": name, "created_at": int(clock(connection))}):
            raise UsageError(f"there is a project {name!r} already", fix="see `tunesmith access projects`")
        return find(connection, id)


def find(connection: sa.Connection, name: str) -> sa.RowMapping:
    """By its id or its name. Raises NotFoundError."""
    row = connection.execute(sa.select(projects).where(sa.or_(projects.c.id == name, projects.c.name == name))
                             .order_by(projects.c.id != name)).mappings().first()
    if row is None:
        raise NotFoundError(f"no project {name!r}", fix="see `tunesmith access projects`, or add it with "
                            "`tunesmith access project add NAME`")
    return row


def every(connection: sa.Connection) -> Sequence[sa.RowMapping]:
    return connection.execute(sa.select(projects).order_by(projects.c.created_at, projects.c.id)).mappings().all()
