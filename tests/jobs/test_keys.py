"""Keys and the audit log, as the command line and the server keep them.

pytest tests/jobs/test_keys.py
"""

import hashlib
import json

import pytest
import sqlalchemy as sa

from tunesmith.errors import NotFoundError, UsageError
from tunesmith.jobs import keys, projects
from tunesmith.jobs.audit import REFUSED_PER_MINUTE, Audit, entries
from tunesmith.jobs.places import DEFAULT_PROJECT
from tunesmith.jobs.tables import api_keys


def held(database, key):
    with database.read() as connection:
        row = keys.holder(connection, key)
    return row and row["id"]


def test_a_key_has_256_random_bits_and_the_database_does_not_have_the_key(database):
    made = [keys.add(database, "default", ["infer"]) for _ in range(20)]
    assert len({key for _, key in made}) == 20
    for row, key in made:
        assert key.startswith("sk-ts-") and len(key) == len("sk-ts-") + 43, "43 letters of base64 are 256 bits and 2 of nothing"
        assert held(database, key) == row["id"]
        assert "hash" not in row and key.startswith(row["shown"].removesuffix("...")) and len(row["shown"]) == 13
    with database.read() as connection:
        everything = json.dumps([dict(r) for r in connection.execute(sa.select(api_keys)).mappings()], default=str)
    for _, key in made:
        assert key not in everything and key[13:] not in everything
        assert hashlib.sha256(key.encode()).hexdigest() in everything


def test_what_is_no_key_opens_nothing(database):
    row, key = keys.add(database, "default", ["admin"])
    for wrong in ("", "sk-ts-", key[:-1], key + "x", key.upper(), row["id"], row["shown"], "none", "\0", "\ud800", "é"):
        assert held(database, wrong) is None
    with database.read() as connection:
        digest = connection.execute(sa.select(api_keys.c.hash)).scalar_one()
    assert held(database, digest) is None, "whoever reads the table cannot ask with what is in it"


def test_revoked_and_expired_keys_open_nothing_and_the_door_stays_shut(database):
    (gone, first), (old, second) = keys.add(database, "default", ["infer"]), keys.add(database, "default", ["infer"], days=1)
    assert held(database, first) and held(database, second)
    revoked = keys.revoke(database, gone["id"])
    assert revoked["revoked_at"] and keys.revoke(database, gone["id"]) == revoked
    with database.write() as connection:
        connection.execute(api_keys.update().where(api_keys.c.id == old["id"]).values(expires_at=1))
    assert held(database, first) is held(database, second) is None
    with database.read() as connection:
        assert keys.any_made(connection), "without a key that works nobody comes in, rather than everybody"


def test_what_cannot_be_made_is_said(database):
    with pytest.raises(UsageError, match="no such scope: root"):
        keys.add(database, "default", ["infer", "root"])
    with pytest.raises(UsageError, match="without a scope"):
        keys.add(database, "default", [])
    with pytest.raises(UsageError, match="expires"):
        keys.add(database, "default", ["infer"], days=0)
    with pytest.raises(UsageError, match="10 years"):
        keys.add(database, "default", ["infer"], days=4000)
    with pytest.raises(NotFoundError):
        keys.add(database, "nobody", ["infer"])
    with pytest.raises(NotFoundError):
        keys.revoke(database, "key_nobody")
    projects.add(database, "one")
    for name in ("one", "", "-x", "a/b", "x" * 65, "a\nb"):
        with pytest.raises(UsageError):
            projects.add(database, name)


def test_refused_calls_cannot_fill_the_disk_and_what_is_left_out_is_counted(database):
    now = [0.0]
    audit = Audit(database, lambda: now[0])

    def note(status):
        audit.note("GET /files", status, object=None, project_id=None, key_id=None, request_id="r", address="a")

    for _ in range(REFUSED_PER_MINUTE + 30):
        note(401)
    note(200)
    with database.read() as connection:
        rows = entries(connection, 10_000)
    assert [r["status"] for r in rows] == [200] + [401] * REFUSED_PER_MINUTE, "changes are always written down"
    now[0] = 1.0
    note(403)
    with database.read() as connection:
        newest = entries(connection, 1)[0]
    assert newest["status"] == 403 and "30 refused calls before it" in newest["object"]


def test_long_things_are_cut_to_what_a_column_holds(database):
    Audit(database).note("x" * 100, 200, object="y" * 1000, project_id=DEFAULT_PROJECT, key_id=None, request_id="r",
                         address="z" * 200)
    with database.read() as connection:
        row = entries(connection, 1)[0]
    assert (len(row["action"]), len(row["object"]), len(row["address"])) == (64, 255, 64)


def test_the_command_line_makes_shows_and_revokes(command, home):
    project = command("access", "project", "add", "blue", "--json", check=0).json
    made = command("access", "key", "add", "--project", "blue", "--scope", "infer", "--scope", "train", "--expires", "7",
                   "--name", "mine", "--json", check=0).json
    assert made["project_id"] == project["id"] and made["scopes"] == ["train", "infer"] and made["key"].startswith("sk-ts-")
    assert made["expires_at"] == made["created_at"] + 7 * 86_400
    assert {p["name"] for p in command("access", "projects", "--json", check=0).json["projects"]} == {"default", "blue"}
    shown = command("access", "keys", "--json", check=0)
    assert [k["id"] for k in shown.json["keys"]] == [made["id"]] and made["key"] not in shown.stdout
    assert made["key"] not in command("access", "keys", check=0).stdout
    assert command("access", "key", "revoke", made["id"], "--json", check=0).json["revoked_at"]
    assert command("access", "log", "--json", check=0).json == {"entries": []}
    assert "no key" in command("access", "key", "revoke", "key_x", check=2).stderr
    assert "--project" in command("access", "key", "add", "--scope", "infer", check=2).stderr
    assert "no such scope" in command("access", "key", "add", "--project", "blue", "--scope", "all", check=2).stderr
