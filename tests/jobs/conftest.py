"""Both databases that the service runs on: a file of SQLite, and a PostgreSQL server that starts in a second."""

import os
import secrets

import pytest
import sqlalchemy as sa

from tunesmith.jobs.database import Database
from tunesmith.jobs.projects import ensure_default


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """The URL of a new, empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'service.db'}"
        return
    server, name = request.getfixturevalue("postgresql"), f"t{secrets.token_hex(6)}"
    admin = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    yield server.set(database=name).render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


@pytest.fixture
def database(url):
    database = Database(url)
    ensure_default(database)
    yield database
    database.close()


@pytest.fixture(autouse=True)
def service(tmp_path, monkeypatch):
    """No test writes where a user's service is."""
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TUNESMITH_SERVICE", raising=False)
    assert "TUNESMITH_DATABASE" not in os.environ
