"""Who works on what: a queue in the database, a lease for each job, and a fence around what its worker may write.

    queued ──claim──> running ──end──> succeeded | failed | cancelled
      ^  <──give_back──  │  └──end──> paused ──ask("run")──> queued
      └── the lease ran out: whoever claims next goes on from the last checkpoint

A worker renews its lease while it lives. One that was killed does not, and its job is claimed again, by any server on the same
database. Each claim is a new `attempt`, and a worker writes in transactions that look at it (`still_mine`): one that was
thought dead and wakes up writes nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from tunesmith.errors import TunesmithError
from tunesmith.jobs.database import Database, clock
from tunesmith.jobs.tables import work

LEASE_SECONDS = 30.0
ENDED = ("succeeded", "failed", "cancelled")


class Lost(TunesmithError):
    """Another worker has this job now, or it has ended."""


@dataclass(frozen=True, slots=True)
class Claim:
    id: str
    kind: str
    project_id: str
    attempt: int
    fruitless: int
    """How many attempts before this one died without a step forward."""


def put(connection: sa.Connection, id: str, kind: str, project_id: str) -> None:
    now = clock(connection)
    connection.execute(work.insert().values(id=id, kind=kind, project_id=project_id, status="queued", wanted="run",
                                            attempt=0, fruitless=0, created_at=int(now), queued_at=now))


def claim(database: Database, owner: str, kinds: Sequence[str], lease_seconds: float = LEASE_SECONDS) -> Claim | None:
    """The oldest job that waits, or whose worker is gone; None when there is none.

    `owner` is for people. On PostgreSQL servers that claim at once take different jobs without waiting for each other.
    """
    with database.write() as connection:
        now = clock(connection)
        gone = sa.and_(work.c.status == "running", work.c.lease_until < now)
        row = connection.execute(
            sa.select(work).where(work.c.kind.in_(kinds), sa.or_(work.c.status == "queued", gone))
            .order_by(work.c.queued_at, work.c.id).limit(1).with_for_update(skip_locked=True)).mappings().first()
        if row is None:
            return None
        fruitless = row["fruitless"] + (row["status"] == "running")
        connection.execute(work.update().where(work.c.id == row["id"]).values(
            status="running", attempt=row["attempt"] + 1, owner=owner, lease_until=now + lease_seconds, fruitless=fruitless,
            started_at=row["started_at"] or int(now)))
        return Claim(row["id"], row["kind"], row["project_id"], row["attempt"] + 1, fruitless)


def renew(database: Database, mine: Claim, lease_seconds: float = LEASE_SECONDS) -> str:
    """What is wanted of this job now: `run`, `pause` or `cancel`. Raises Lost."""
    with database.write() as connection:
        wanted = still_mine(connection, mine)
        connection.execute(_row(mine).values(lease_until=clock(connection) + lease_seconds))
        return wanted


def still_mine(connection: sa.Connection, mine: Claim) -> str:
    """To be called first in a transaction in which a worker writes. What is wanted of the job. Raises Lost."""
    row = connection.execute(sa.select(work.c.wanted).where(work.c.id == mine.id, work.c.attempt == mine.attempt,
                                                           work.c.status == "running").with_for_update()).first()
    if row is None:
        raise Lost(f"{mine.id} is not this worker's any more", why=f"attempt {mine.attempt} was given up or ended")
    return row.wanted


def progressed(connection: sa.Connection, mine: Claim) -> None:
    """There is something that the next attempt goes on from: a checkpoint, say."""
    still_mine(connection, mine)
    connection.execute(_row(mine).values(fruitless=0))


def end(connection: sa.Connection, mine: Claim, status: str) -> None:
    """`succeeded`, `failed`, `cancelled`, or `paused`. Raises Lost."""
    still_mine(connection, mine)
    connection.execute(_row(mine).values(status=status, owner=None, lease_until=None, fruitless=0,
                                         wanted="pause" if status == "paused" else "run",
                                         ended_at=int(clock(connection)) if status in ENDED else None))


def give_back(connection: sa.Connection, mine: Claim) -> str:
    """The worker stops before the job has ended: to the queue, for whoever comes next, unless a pause or the end is wanted.
    The job's status now. Raises Lost."""
    wanted = still_mine(connection, mine)
    if wanted != "run":
        end(connection, mine, status := {"pause": "paused", "cancel": "cancelled"}[wanted])
        return status
    connection.execute(_row(mine).values(status="queued", owner=None, lease_until=None))
    return "queued"


def abandon(database: Database, mine: Claim) -> None:
    """The worker of this claim is known to be dead: nobody has to wait for its lease. Nothing if it had ended before."""
    with database.write() as connection:
        connection.execute(_row(mine).where(work.c.status == "running").values(lease_until=0.0))


def ask(connection: sa.Connection, id: str, wanted: str) -> str:
    """Ask a job to `pause`, `cancel` or `run` again. Its status now: what does not run obeys at once, a worker soon.

    `pause` and `cancel` of a job that has ended, `run` of one that is not paused: nothing changes.
    """
    row = connection.execute(sa.select(work).where(work.c.id == id).with_for_update()).mappings().one()
    status = row["status"]
    if status in ENDED:
        return status
    if wanted == "run":
        if status == "paused" or row["wanted"] == "pause":
            status = "queued" if status == "paused" else status
            connection.execute(work.update().where(work.c.id == id).values(wanted="run", status=status))
        return status
    if row["wanted"] != "cancel":
        values = {"wanted": wanted}
        if status != "running":
            status = {"pause": "paused", "cancel": "cancelled"}[wanted]
            values |= {"status": status} | ({"ended_at": int(clock(connection))} if wanted == "cancel" else {})
        connection.execute(work.update().where(work.c.id == id).values(values))
    return status


def _row(mine: Claim) -> sa.Update:
    return work.update().where(work.c.id == mine.id, work.c.attempt == mine.attempt)
