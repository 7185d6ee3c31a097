"""The service's database: migrations, whole transactions, writers beside each other, on SQLite and on PostgreSQL.

pytest tests/jobs/test_database.py
"""

import subprocess
import sys
import threading

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from tunesmith.errors import StoreError, UsageError
from tunesmith.jobs import queue
from tunesmith.jobs.database import Database, insert_new, opened
from tunesmith.jobs.events import tell
from tunesmith.jobs.places import DEFAULT_PROJECT
from tunesmith.jobs.tables import events, metadata, projects, work

KILLED = """
import os, signal, sys
from tunesmith.jobs.database import Database
from tunesmith.jobs.tables import projects

database = Database(sys.argv[1])
with database.write() as connection:
    connection.execute(projects.insert().values(id="p1", name="one", created_at=1))
with database.write() as connection:
    connection.execute(projects.insert().values(id="p2", name="two", created_at=1))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_migrations_make_the_tables_that_the_code_says(database):
    with database.engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata)
    assert differences == []


def test_a_column_that_no_migration_makes_is_found(database):
    """The test above can fail."""
    other = sa.MetaData()
    for table in metadata.tables.values():
        table.to_metadata(other)
    other.tables["files"].append_column(sa.Column("colour", sa.String(8)))
    with database.engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), other)
    assert [d[0] for d in differences] == ["add_column"]


def test_it_opens_again_with_what_was_written(url):
    with opened(url) as first, first.write() as connection:
        connection.execute(projects.insert().values(id="p", name="n", created_at=1))
    with opened(url) as second, second.read() as connection:
        assert connection.execute(sa.select(projects.c.name)).scalars().all() == ["n"]


def test_servers_that_start_together_migrate_once(url):
    made, failed = [], []

    def open_it():
        try:
            made.append(Database(url))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), failed) == (4, [])
    for database in made:
        database.close()


def test_a_process_that_is_killed_in_a_transaction_leaves_nothing_of_it(url):
    ran = subprocess.run([sys.executable, "-c", KILLED, url], capture_output=True, text=True, timeout=120)
    assert ran.returncode == -9, ran.stderr
    with opened(url) as database, database.read() as connection:
        assert connection.execute(sa.select(projects.c.id)).scalars().all() == ["p1"]


def test_writers_wait_for_each_other_and_lose_nothing(database):
    with database.write() as connection:
        queue.put(connection, "job", "fine_tuning", DEFAULT_PROJECT)

    def count_up():
        for _ in range(25):
            with database.write() as connection:
                seen = connection.execute(sa.select(work.c.fruitless).with_for_update()).scalar_one()
                connection.execute(work.update().values(fruitless=seen + 1))

    threads = [threading.Thread(target=count_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as connection:
        assert connection.execute(sa.select(work.c.fruitless)).scalar_one() == 100


def test_a_reader_sees_one_state_while_others_write(database):
    with database.read() as reader:
        before = reader.execute(sa.select(sa.func.count()).select_from(projects)).scalar_one()
        done = threading.Event()

        def write():
            with database.write() as connection:
                connection.execute(projects.insert().values(id="p", name="n", created_at=1))
            done.set()

        threading.Thread(target=write).start()
        assert done.wait(30), "a reader held up a writer"
        if database.on_sqlite:  # PostgreSQL's readers see what is committed, one statement at a time
            assert reader.execute(sa.select(sa.func.count()).select_from(projects)).scalar_one() == before


def test_what_is_told_twice_is_one_event(database):
    with database.write() as connection:
        queue.put(connection, "job", "fine_tuning", DEFAULT_PROJECT)
        assert tell(connection, "job", "step-1", "Step 1/2")
        assert not tell(connection, "job", "step-1", "Step 1/2")
        assert tell(connection, "job", "step-2", "Step 2/2", kind="metrics", data={"step": 2})
    with database.read() as connection:
        told = connection.execute(sa.select(events).order_by(events.c.seq)).mappings().all()
    assert [(e["key"], e["type"], e["data"]) for e in told] == [("step-1", "message", None), ("step-2", "metrics", {"step": 2})]


def test_insert_new_says_whether_it_did(database):
    with database.write() as connection:
        row = {"id": "p", "name": "n", "created_at": 1}
        assert [insert_new(connection, projects, row), insert_new(connection, projects, row)] == [True, False]


def test_a_database_of_a_newer_version_is_not_touched(url):
    with opened(url) as database, database.engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreError, match="another version"):
        Database(url)


@pytest.mark.parametrize(("url", "words"), [
    ("nonsense", "no URL"), ("mysql://host/name", "no support for a database of mysql"), ("sqlite://", "in memory"),
    ("postgresql+nothing://host/name", "no driver")])
def test_a_wrong_url_is_exit_code_2(url, words):
    with pytest.raises(UsageError, match=words) as caught:
        Database(url)
    assert caught.value.fix


def test_a_server_that_is_not_there_is_said_without_its_password(postgresql):
    url = postgresql.set(host=None, query={}, port=1).set(host="127.0.0.1", username="u", password="hush", database="d")
    with pytest.raises(StoreError) as caught:
        Database(url.render_as_string(hide_password=False))
    assert "hush" not in str(caught.value) and "127.0.0.1" in str(caught.value)
