"""What happened to a job, told once: an event has a key that names what it tells of, and the same key is the same event.

So a worker that takes over tells all it finds in the run's files again, and nothing is lost or doubled.
"""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from tunesmith.jobs.database import clock, insert_new
from tunesmith.jobs.ids import new_id
from tunesmith.jobs.tables import events


def tell(connection: sa.Connection, job_id: str, key: str, message: str, *, level: str = "info", kind: str = "message",
         data: Mapping | None = None) -> bool:
    """Add an event unless one with this key is there. Whether it was added.

    `level`: info, warn, error. `kind`: message, metrics.
    """
    return insert_new(connection, events, {
        "id": new_id("ftevent-"), "job_id": job_id, "key": key, "created_at": int(clock(connection)), "level": level,
        "type": kind, "message": message, "data": dict(data) if data is not None else None})
