"""Files and uploads below the API: what is there is whole, whoever is killed leaves nothing that is seen, and nothing is swept
that somebody still writes.

pytest tests/jobs/test_files.py
"""

import hashlib
import io
import json
import signal
import subprocess
import sys
import threading
from collections import Counter

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import NotFoundError, UsageError
from tunesmith.jobs import files, places, projects, uploads
from tunesmith.jobs.ids import new_id
from tunesmith.jobs.jsonl import LONGEST_LINE, check_jsonl
from tunesmith.jobs.places import DEFAULT_PROJECT
from tunesmith.jobs.tables import files as table
from tunesmith.jobs.tables import upload_parts
from tunesmith.jobs.tables import uploads as uploads_table
from tunesmith.store.files import beside

MINE = DEFAULT_PROJECT
objects = st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none(), max_size=3)


def names() -> set[str]:
    """Everything that is on disk below `files`."""
    root = places.service() / "files"
    return {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}


def expire(database, id: str) -> None:
    with database.write() as connection:
        connection.execute(table.update().where(table.c.id == id).values(expires_at=1))


def upload(database, data: bytes, *, purpose: str = "evals", parts: int = 3) -> tuple[str, list[str]]:
    """An upload with its parts: (its id, theirs in order)."""
    row = uploads.create(database, MINE, filename="big.jsonl", purpose=purpose, mime_type="text/jsonl",
                         size=len(data), file_expires_after=None, project_limit=10**9)
    ids, step = [], -(-len(data) // parts)
    for start in range(0, len(data), step):
        ids.append(new_id("part_"))
        with beside(places.upload_dir(row["id"]) / ids[-1]) as (f, put_in_place):
            f.write(data[start:start + step])
            put_in_place()
        uploads.add_part(database, MINE, row["id"], ids[-1], len(data[start:start + step]))
    return row["id"], ids


# ---- JSON Lines -------------------------------------------------------------------------------------------------------


@given(st.lists(objects, min_size=1, max_size=5), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.integers(0, 2))
def test_lines_that_are_objects_pass_however_they_are_written(rows, end, mark, blank):
    text = end.join(json.dumps(r, ensure_ascii=False) for r in rows) + end * blank
    check_jsonl(io.BytesIO(text.encode("utf-8-sig" if mark else "utf-8")))


@given(st.lists(objects, max_size=3),
       st.sampled_from(["[1]", "{", "null", '"x"', "{'a': 1}", "{}{}", "x", "[" * 5000, "9" * 5000]),
       st.lists(objects, max_size=3))
def test_a_line_that_is_none_is_named_with_its_beginning(before, line, after):
    text = "".join(f"{r}\n" for r in [*map(json.dumps, before), line, *map(json.dumps, after)])
    with pytest.raises(UsageError) as raised:
        check_jsonl(io.BytesIO(text.encode()))
    assert raised.value.what == (
        "Expected file to have JSONL format, where every line is a JSON dictionary. "
        f'Line {len(before) + 1} is not a dictionary (HINT: line starts with: "{line[:8]}...").')


@pytest.mark.parametrize("data, words", [
    (b"", "The file is empty."), (b"\xef\xbb\xbf\n", "The file is empty."), (b"\n\n", "The file is empty."),
    (b"{}\n\n{}\n", "Line 2 is not a dictionary"), (b'{"a": "\xff"}\n', "Line 1 is not a dictionary"),
    ('{"a": 1}'.encode("utf-16"), "Line 1 is not a dictionary"), (b"{}\n" + b" " * (LONGEST_LINE + 1), "Line 2 is longer than"),
])
def test_other_files_that_are_none(data, words):
    with pytest.raises(UsageError, match=words):
        check_jsonl(io.BytesIO(data))


# ---- files ------------------------------------------------------------------------------------------------------------


def test_what_is_added_is_found_with_its_bytes_and_by_its_project_alone(database, tmp_path):
    other = projects.add(database, "other")["id"]
    (tmp_path / "made.csv").write_bytes(b"step\n1\n")
    rows = [files.add(database, MINE, "a.jsonl", "fine-tune", b"{}\n"),
            files.add(database, MINE, "made.csv", "fine-tune-results", tmp_path / "made.csv", id="file-mine")]
    assert rows[1]["id"] == "file-mine" and not (tmp_path / "made.csv").exists()
    for row, data in zip(rows, (b"{}\n", b"step\n1\n"), strict=True):
        assert (row["bytes"], row["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
        with database.read() as connection:
            assert files.find(connection, MINE, row["id"]) == row
            with pytest.raises(NotFoundError):
                files.find(connection, other, row["id"])
        assert files.content(row).read_bytes() == data
        with pytest.raises(NotFoundError):
            files.remove(database, other, row["id"])
        files.remove(database, MINE, row["id"])
        with pytest.raises(NotFoundError):
            files.remove(database, MINE, row["id"])
    assert names() == set()


@pytest.mark.parametrize("id", ["", "../x", "a/b", "a\0b", "é", "x" * 65, "file-" + "'", "file-x\n"])
def test_what_cannot_be_an_id_is_nowhere(database, id):
    with database.read() as connection:
        for find in (files.find, uploads.find):
            with pytest.raises(NotFoundError):
                find(connection, MINE, id)


def test_an_expired_file_is_gone_for_everybody_and_then_from_the_disk(database):
    old, new = (files.add(database, MINE, "a", "evals", b"x", expires_at=2**31 - 1)["id"] for _ in range(2))
    expire(database, old)
    with database.read() as connection:
        with pytest.raises(NotFoundError):
            files.find(connection, MINE, old)
        assert files.used_bytes(connection, MINE) == 2, "its bytes count until they are swept"
    with pytest.raises(NotFoundError):
        files.remove(database, MINE, old)
    assert files.sweep(database) == [old]
    assert names() == {f"{MINE}/{new}"} and files.sweep(database) == []


def test_sweeping_takes_what_nobody_writes_any_more_and_leaves_the_rest(database):
    there = files.add(database, MINE, "a", "evals", b"x")
    orphan, working = places.file_path(MINE, "file-orphan"), places.file_path(MINE, "file-working")
    orphan.write_bytes(b"content whose row was never written")
    with beside(working) as (f, put_in_place):
        put_in_place()  # in its place, and its row is not written yet
        with beside(places.file_path(MINE, "file-coming")):
            assert files.sweep(database) == ["file-orphan"]
            assert len(names()) == 3
        row = files.enter(database, working, {"id": "file-working", "project_id": MINE, "filename": "b", "purpose": "evals"})
    assert files.sweep(database) == []
    assert names() == {f"{MINE}/{there['id']}", f"{MINE}/{row['id']}"}


@pytest.mark.slow
def test_a_writer_that_is_killed_anywhere_leaves_a_whole_file_or_nothing(database, url):
    """SIGKILL at every system call that changes what is on disk, and before and after the row."""
    code = """
import os, sys
from tunesmith.jobs import files
from tunesmith.jobs.database import Database
from tunesmith.store import files as store
at = int(sys.argv[2])
def killing(function):
    def call(*a, **k):
        global at
        at -= 1
        if at == 0: os.kill(os.getpid(), 9)
        done = function(*a, **k)
        at -= 1
        if at == 0: os.kill(os.getpid(), 9)
        return done
    return call
database = Database(sys.argv[1])
os.fsync, os.replace, os.chmod = map(killing, (os.fsync, os.replace, os.chmod))
database.write = killing(database.write)
files.sha256_file = killing(files.sha256_file)
files.add(database, "proj_default", "a", "evals", b"0123456789" * 1000)
"""
    outcomes = Counter()
    for at in (1, 3, 5, 6, 8, 9, 10, 99):
        done = subprocess.run([sys.executable, "-c", code, url, str(at)], check=False)
        assert done.returncode in (0, -signal.SIGKILL)
        with database.read() as connection:
            rows = connection.execute(sa.select(table)).mappings().all()
        for row in rows:
            assert hashlib.sha256(files.content(row).read_bytes()).hexdigest() == row["sha256"]
        swept = files.sweep(database)
        assert names() == {f"{MINE}/{r['id']}" for r in rows}
        outcomes[bool(rows), bool(swept)] += 1
        for row in rows:
            files.remove(database, MINE, row["id"])
    assert outcomes[False, True] >= 5 and outcomes[True, False] >= 1, outcomes


def test_a_job_keeps_what_it_needs_when_the_file_is_deleted_and_nobody_changes_it(database, tmp_path):
    row = files.add(database, MINE, "a", "fine-tune", b"{}\n")
    place = files.keep(row, tmp_path / "job" / "training.jsonl")
    assert files.keep(row, place) == place, "a second time nothing happens"
    assert place.stat().st_ino == files.content(row).stat().st_ino, "the same bytes, not a copy"
    files.remove(database, MINE, row["id"])
    files.sweep(database)
    assert place.read_bytes() == b"{}\n"
    with pytest.raises(NotFoundError):
        files.keep(row, tmp_path / "late.jsonl")


def test_a_file_that_is_read_is_read_to_its_end_though_it_is_deleted(database):
    row = files.add(database, MINE, "a", "evals", b"x" * 100_000)
    with files.opened(row) as f:
        files.remove(database, MINE, row["id"])
        assert len(f.read()) == 100_000
    with pytest.raises(NotFoundError):
        files.opened(row)


def test_a_project_never_has_more_than_it_may_though_many_add_at_once(database):
    """16 files of 10 bytes in room for 7, from 8 threads."""
    done = Counter()

    def one() -> None:
        for _ in range(2):
            id = new_id("file-")
            with beside(places.file_path(MINE, id)) as (f, put_in_place):
                f.write(b"0123456789")
                put_in_place()
                try:
                    files.enter(database, places.file_path(MINE, id),
                                {"id": id, "project_id": MINE, "filename": "a", "purpose": "evals"}, 75)
                    done["entered"] += 1
                except UsageError:
                    done["refused"] += 1

    threads = [threading.Thread(target=one) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert done == {"entered": 7, "refused": 9}
    with database.read() as connection:
        assert files.used_bytes(connection, MINE) == 70
    assert len(names()) == 7, "what was refused is not on the disk"


# ---- uploads ----------------------------------------------------------------------------------------------------------

DATA = b'{"n": 1}\n' * 50


def test_the_parts_become_one_file_in_the_order_that_is_asked_for(database):
    id, parts = upload(database, DATA)
    order = parts[::-1]
    row, file = uploads.complete(database, MINE, id, order, None)
    joined = b"".join([DATA[300:], DATA[150:300], DATA[:150]])
    assert files.content(file).read_bytes() == joined
    assert (row["status"], row["file_id"], file["bytes"]) == ("completed", file["id"], len(DATA))
    assert file["sha256"] == hashlib.sha256(joined).hexdigest()
    assert not places.upload_dir(id).exists()
    again = uploads.complete(database, MINE, id, order, None)
    assert again == (row, file), "a client that heard of no answer asks again, and gets the same"


def test_an_upload_that_is_not_as_announced_stays_pending_and_can_still_be_completed(database):
    id, parts = upload(database, DATA)
    other = upload(database, b"x")[1]
    for order, md5, words in ((parts[:2], None, "were announced"), ([*parts, other[0]], None, "No such part"),
                              (parts, "0" * 32, "md5"), ([parts[0]] * 3, None, "twice")):
        with pytest.raises(UsageError, match=words):
            uploads.complete(database, MINE, id, order, md5)
    assert names() == set(), "nothing of what was refused is left"
    _, file = uploads.complete(database, MINE, id, parts, hashlib.md5(DATA).hexdigest().upper())
    assert files.content(file).read_bytes() == DATA


def test_an_upload_for_fine_tuning_is_looked_through_as_a_file_is(database):
    id, parts = upload(database, b"{}\n[]\n{}\n", purpose="fine-tune")
    with pytest.raises(UsageError, match="Line 2 is not a dictionary"):
        uploads.complete(database, MINE, id, parts, None)
    assert names() == set()


def test_completing_many_times_at_once_makes_one_file(database):
    id, parts = upload(database, DATA * 200, parts=5)
    found, barrier = [], threading.Barrier(6)

    def one() -> None:
        barrier.wait()
        found.append(uploads.complete(database, MINE, id, parts, None))

    threads = [threading.Thread(target=one) for _ in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(found) == 6 and len({file["id"] for _, file in found}) == 1
    assert names() == {f"{MINE}/{found[0][1]['id']}"}
    with database.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one() == 1
        assert connection.execute(sa.select(sa.func.count()).select_from(upload_parts)).scalar_one() == 0


def test_cancelled_and_expired_uploads_take_no_parts_and_no_room(database):
    (first, parts), (second, _) = upload(database, DATA), upload(database, DATA)
    with database.read() as connection:
        assert files.used_bytes(connection, MINE) == 2 * len(DATA), "what is announced is spoken for"
    assert uploads.cancel(database, MINE, first)["status"] == "cancelled"
    with database.write() as connection:
        connection.execute(uploads_table.update().where(uploads_table.c.id == second).values(expires_at=1))
    for id, word in ((first, "cancelled"), (second, "expired")):
        for call in (lambda id=id: uploads.add_part(database, MINE, id, new_id("part_"), 1),
                     lambda id=id: uploads.complete(database, MINE, id, parts, None),
                     lambda id=id: uploads.cancel(database, MINE, id)):
            with pytest.raises(UsageError, match=f"is {word}"):
                call()
    with database.read() as connection:
        assert files.used_bytes(connection, MINE) == 0
    living, _ = upload(database, DATA)
    assert uploads.sweep(database) == [second]
    assert uploads.sweep(database) == [] and places.upload_dir(living).is_dir()


def test_parts_cannot_take_more_than_twice_what_was_announced(database):
    id, _ = upload(database, DATA)
    uploads.add_part(database, MINE, id, new_id("part_"), len(DATA))
    with pytest.raises(UsageError, match="more than"):
        uploads.add_part(database, MINE, id, new_id("part_"), 1)
    with pytest.raises(UsageError, match="may have"):
        uploads.create(database, MINE, filename="a", purpose="evals", mime_type="a/b", size=100, file_expires_after=None,
                       project_limit=len(DATA) + 99)
