"""Who changed what: a row for each call that changes something, and for each that was refused. Never a key, never content.

Refused calls come from anybody, so only so many a minute are written down; the next row after that says how many were not.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import sqlalchemy as sa

from tunesmith.jobs.database import Database, clock
from tunesmith.jobs.tables import audit_log

REFUSED = (401, 403)
REFUSED_PER_MINUTE = 120


class Audit:
    """What one server writes."""

    def __init__(self, database: Database, now: Callable[[], float] = time.monotonic):
        self._database, self._now = database, now
        self._lock = threading.Lock()
        self._room, self._since, self._left_out = float(REFUSED_PER_MINUTE), now(), 0

    def note(self, action: str, status: int, *, object: str | None, project_id: str | None, key_id: str | None,
             request_id: str | None, address: str | None) -> None:
        if status in REFUSED:
            with self._lock:
                if not self._may_write():
                    self._left_out += 1
                    return
                left_out, self._left_out = self._left_out, 0
            if left_out:
                object = f"{object or ''} ({left_out} refused calls before it were not written down)".strip()
        with self._database.write() as connection:
            connection.execute(audit_log.insert().values(
                at=clock(connection), project_id=project_id, key_id=key_id, action=action[:64],
                object=object and object[:255], status=status, request_id=request_id, address=address and address[:64]))

    def _may_write(self) -> bool:
        now = self._now()
        self._room = min(REFUSED_PER_MINUTE, self._room + (now - self._since) * REFUSED_PER_MINUTE / 60)
        self._since = now
        if self._room < 1:
            return False
        self._room -= 1
        return True


def entries(connection: sa.Connection, limit: int) -> Sequence[sa.RowMapping]:
    """The newest, newest first."""
    return connection.execute(sa.select(audit_log).order_by(audit_log.c.seq.desc()).limit(limit)).mappings().all()
