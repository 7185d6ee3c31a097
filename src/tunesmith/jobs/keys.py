"""API keys: who may do what, in which project.

A key is `sk-ts-` and 256 random bits; it is shown once, and the table has its SHA-256. A plain hash is enough, since nobody can
try 2^256 keys (a password would need a slow one). So is a look-up in an index, though it takes a little longer for a hash that
begins as one in the table does: who measures that learns the beginning of a hash, from which no key follows.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Sequence

import sqlalchemy as sa

from tunesmith.errors import NotFoundError, UsageError
from tunesmith.jobs import projects
from tunesmith.jobs.database import Database, clock
from tunesmith.jobs.ids import new_id
from tunesmith.jobs.tables import api_keys

PREFIX = "sk-ts-"
SCOPES = ("admin", "train", "infer")
DAY, LONGEST_DAYS = 86_400, 3650


def add(database: Database, project: str, scopes: Collection[str], *, name: str = "",
        days: float | None = None) -> tuple[sa.RowMapping, str]:
    """(its row, the key: it can never be shown again) for a project, given by id or name. `days`: until then.

    Raises:
        NotFoundError: no such project.
        UsageError: an unknown scope, or none.
    """
    if not scopes or (unknown := sorted(set(scopes) - set(SCOPES))):
        raise UsageError(f"no such scope: {', '.join(unknown)}" if scopes else "a key without a scope may do nothing",
                         fix=f"give some of {', '.join(SCOPES)}")
    if days is not None and not 0 < days <= LONGEST_DAYS:
        raise UsageError("a key expires after some days, 10 years at most", fix="give --expires a number of days up to 3650")
    key, id = PREFIX + secrets.token_urlsafe(32), new_id("key_")
    with database.write() as connection:
        now = int(clock(connection))
        connection.execute(api_keys.insert().values(
            id=id, project_id=projects.find(connection, project)["id"], created_at=now, name=name[:64],
            shown=f"{key[:len(PREFIX) + 4]}...", hash=_hash(key), scopes=[s for s in SCOPES if s in scopes],
            expires_at=None if days is None else now + int(days * DAY)))
        return _find(connection, id), key


def holder(connection: sa.Connection, key: str) -> sa.RowMapping | None:
    """The row of a key that may be used now. Not remembered from one request to the next: a revoked key is refused at once."""
    row = connection.execute(sa.select(api_keys).where(api_keys.c.hash == _hash(key))).mappings().first()
    if row is None or row["revoked_at"] is not None:
        return None
    return None if row["expires_at"] is not None and row["expires_at"] <= clock(connection) else row


def any_made(connection: sa.Connection) -> bool:
    """Whether a key was ever made. A revoked one counts: revoking the last key must not open the door to everybody."""
    return connection.execute(sa.select(api_keys.c.id).limit(1)).first() is not None


def revoke(database: Database, id: str) -> sa.RowMapping:
    """Of a key that was revoked before: nothing changes. Raises NotFoundError."""
    with database.write() as connection:
        if _find(connection, id)["revoked_at"] is None:
            connection.execute(api_keys.update().where(api_keys.c.id == id).values(revoked_at=int(clock(connection))))
        return _find(connection, id)


def every(connection: sa.Connection) -> Sequence[sa.RowMapping]:
    """Without what could be used: of the key only its beginning."""
    columns = [c for c in api_keys.c if c.name != "hash"]
    return connection.execute(sa.select(*columns).order_by(api_keys.c.created_at, api_keys.c.id)).mappings().all()


def _find(connection: sa.Connection, id: str) -> sa.RowMapping:
    for row in every(connection):
        if row["id"] == id:
            return row
    raise NotFoundError(f"no key {id!r}", fix="see `tunesmith access keys`")


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
