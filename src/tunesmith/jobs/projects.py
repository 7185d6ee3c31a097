"""Projects: whose files, jobs and models something is."""

from __future__ import annotations

from tunesmith.jobs.database import Database, clock, insert_new
from tunesmith.jobs.places import DEFAULT_PROJECT
from tunesmith.jobs.tables import projects


def ensure_default(database: Database) -> None:
    """The project of those who need no key."""
    with database.write() as connection:
        insert_new(connection, projects, {"id": DEFAULT_PROJECT, "name": "default", "created_at": int(clock(connection))})
