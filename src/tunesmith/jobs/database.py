"""The service's database: SQLite in a file by default, PostgreSQL by URL.

    with database.read() as connection: ...      sees one state
    with database.write() as connection: ...     all of it or nothing, however the process ends

On SQLite a writer takes its lock at the beginning (BEGIN IMMEDIATE): one that began by reading could be refused in the middle.
Readers never wait (write-ahead log), and a commit is on the disk when it returns (synchronous=FULL).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from tunesmith.errors import StoreError, UsageError

BUSY_SECONDS = 60
"""How long a writer waits for another on SQLite."""
MIGRATIONS = Path(__file__).parent / "migrations"
MIGRATION_LOCK = 7_211_023
"""Of PostgreSQL's advisory locks: servers that start together migrate one after the other."""


class Database:
    """Open at `url` (SQLAlchemy's form), with the newest tables. Close it with `close()`.

    Raises:
        UsageError: a URL that is none, or a database of a kind that is not supported.
        StoreError: it cannot be opened, or it was made by a newer version.
    """

    def __init__(self, url: str):
        self.url = url
        try:
            parsed = sa.make_url(url)
        except sa.exc.ArgumentError as error:
            raise UsageError("this is no URL of a database", why=str(error),
                             fix="sqlite:////path/to/service.db or postgresql+psycopg://user:password@host/name") from error
        kind = parsed.get_backend_name()
        if kind not in ("sqlite", "postgresql"):
            raise UsageError(f"no support for a database of {kind}", fix="give one of sqlite or postgresql")
        if kind == "sqlite" and not parsed.database:
            raise UsageError("a database in memory is gone with its process", fix="give a path: sqlite:////path/to/service.db")
        self.shown = parsed.render_as_string(hide_password=True)
        self.on_sqlite = kind == "sqlite"
        if self.on_sqlite:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        try:
            self.engine = sa.create_engine(parsed, pool_pre_ping=True, **({"connect_args": {"timeout": BUSY_SECONDS}}
                                           if self.on_sqlite else {"pool_size": 10, "max_overflow": 20}))
        except (ImportError, sa.exc.NoSuchModuleError) as error:
            raise UsageError(f"no driver for {self.shown}", why=str(error),
                             fix="pip install 'tunesmith[postgresql]' and begin the URL with postgresql+psycopg://") from error
        if self.on_sqlite:
            sa.event.listen(self.engine, "connect", _sqlite_settings)
            sa.event.listen(self.engine, "begin", _sqlite_begin)
        try:
            self._migrate()
        except sa.exc.SQLAlchemyError as error:
            self.engine.dispose()
            raise StoreError("could not open the service's database", where=self.shown, why=_reason(error),
                             fix="see that the server runs and may be written to, or give another database") from error

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        with self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        with self.engine.connect().execution_options(writes=True) as connection, connection.begin():
            yield connection

    def close(self) -> None:
        self.engine.dispose()

    def _migrate(self) -> None:
        from alembic import command
        from alembic.config import Config
        from alembic.util import CommandError

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        with self._alone(), self.engine.connect() as connection:
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, "head")
                connection.commit()
            except CommandError as error:
                raise StoreError("the service's database was made by another version of Tunesmith", where=self.shown,
                                 why=str(error), fix="use that version or a newer one, or give another database") from error

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if self.on_sqlite:
            from filelock import FileLock

            with FileLock(self.engine.url.database + ".migrating"):
                yield
            return
        with self.engine.connect() as connection:
            connection.execute(sa.select(sa.func.pg_advisory_lock(MIGRATION_LOCK)))
            try:
                yield
            finally:
                connection.execute(sa.select(sa.func.pg_advisory_unlock(MIGRATION_LOCK)))


def insert_new(connection: sa.Connection, table: sa.Table, values: dict) -> bool:
    """Insert a row unless one with its unique values is there. Whether it was inserted."""
    insert = (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(table).values(values)
    return connection.execute(insert.on_conflict_do_nothing().returning(sa.literal_column("1"))).first() is not None


def clock(connection: sa.Connection) -> float:
    """Seconds since 1970 on the one clock that all who share the database have."""
    if connection.dialect.name == "sqlite":
        return time.time()
    return float(connection.execute(sa.select(sa.func.extract("epoch", sa.func.clock_timestamp()))).scalar_one())


def _sqlite_settings(connection, _record) -> None:
    connection.isolation_level = None  # transactions begin where we say, not where the driver guesses
    for setting in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {setting}").close()


def _sqlite_begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")


def _reason(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0]


@contextmanager
def opened(url: str) -> Iterator[Database]:
    database = Database(url)
    try:
        yield database
    finally:
        database.close()


