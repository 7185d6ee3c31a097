"""Files are there and whole, or not there: after an error, on a full disk, under another writer.

    python -m pytest tests/store/test_files.py
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.errors import DataError, StoreError
from tunesmith.store.files import (
    canonical_json,
    held,
    publish_directory,
    read_json,
    remove_directory,
    sha256_bytes,
    sha256_file,
    sha256_json,
    sha256_tree,
    sweep,
    write_bytes,
    write_json,
    write_text,
)


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


@contextmanager
def files_limited_to(size):
    """Files of this process cannot grow beyond `size` bytes. Not a fixture: pytest's own output is a file too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# ---- digests


@settings(max_examples=100, deadline=None, database=None)
@given(value=st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=9),
                          lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=9), v, max_size=4)))
def test_canonical_json_is_json_and_does_not_depend_on_the_order_of_keys(value):
    assert json.loads(canonical_json(value)) == value
    if isinstance(value, dict):
        assert canonical_json(dict(reversed(value.items()))) == canonical_json(value)


def test_digests_are_sha256_of_the_bytes(tmp_path):
    data = b"x" * 3_000_000
    (tmp_path / "a").write_bytes(data)
    expected = "sha256:" + hashlib.sha256(data).hexdigest()
    assert sha256_file(tmp_path / "a") == sha256_bytes(data) == expected
    assert sha256_json({"b": "é", "a": 1}) == sha256_bytes('{"a":1,"b":"é"}'.encode())


def test_tree_lists_every_file_below_and_changes_with_each(tmp_path):
    for name in ("b", "a/c", "a/d/e"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    tree = sha256_tree(tmp_path)
    assert list(tree) == ["a/c", "a/d/e", "b"] and tree["b"] == sha256_bytes(b"b")
    (tmp_path / "a/d/e").write_text("E")
    assert {name for name, digest in sha256_tree(tmp_path).items() if digest != tree[name]} == {"a/d/e"}


# ---- one file


def test_write_makes_folders_replaces_and_reads_back(tmp_path):
    path = tmp_path / "deep" / "er" / "a.json"
    for value in ({"é": [1, None]}, {"b": 2}):
        write_json(path, value)
        assert read_json(path) == value
    assert names(tmp_path) == ["deep", "deep/er", "deep/er/a.json"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "a"
    write_bytes(path, b"old")
    with files_limited_to(4096), pytest.raises(StoreError, match="could not write") as error:
        write_bytes(path, b"x" * 4097)
    assert error.value.why == os.strerror(27) and isinstance(error.value, OSError)  # File too large
    assert path.read_bytes() == b"old" and names(tmp_path) == ["a"]


@pytest.mark.parametrize("spoil, why", [
    (lambda p: p.write_text("in the way"), "File exists"), (lambda p: (p / "a").mkdir(parents=True), "Is a directory"),
])
def test_path_that_cannot_be_written_is_named_with_the_systems_words(tmp_path, spoil, why):
    spoil(tmp_path / "folder")
    before = names(tmp_path)
    with pytest.raises(StoreError) as error:
        write_text(tmp_path / "folder" / "a", "text")
    assert str(tmp_path / "folder" / "a") in error.value.what and why in error.value.why
    assert names(tmp_path) == before


def test_text_that_is_no_unicode_writes_nothing(tmp_path):
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a", "\ud800")
    assert names(tmp_path) == []


def test_full_disk_keeps_the_old_file_and_says_what_to_do(small_disk):
    write_bytes(small_disk / "a", b"old")
    with pytest.raises(StoreError) as error:
        write_bytes(small_disk / "a", b"x" * 100_000)
    assert error.value.why == "no space left on the disk"
    assert error.value.fix == "free some space, or set TUNESMITH_HOME to a disk that has room"
    assert (small_disk / "a").read_bytes() == b"old" and names(small_disk) == ["a"]


@pytest.mark.parametrize("text, what", [(None, "could not read"), ("{", "is not valid JSON"), ("", "is not valid JSON")])
def test_json_that_cannot_be_read_is_a_store_error(tmp_path, text, what):
    if text is not None:
        (tmp_path / "a.json").write_text(text)
    with pytest.raises(StoreError, match=what) as error:
        read_json(tmp_path / "a.json")
    assert str(tmp_path / "a.json") in error.value.what and error.value.fix and error.value.exit_code == 1


# ---- a directory


def publish(final, *, fail=None, text="new"):
    with publish_directory(final) as staging:
        (staging / "sub").mkdir()
        (staging / "sub" / "a").write_text(text)
        assert staging.parent == final.parent and staging != final
        if fail:
            raise fail


def test_directory_appears_whole_and_replaces_the_one_before(tmp_path):
    final = tmp_path / "home" / "ds-1"
    for text in ("one", "two"):
        publish(final, text=text)
        assert (final / "sub" / "a").read_text() == text
    assert names(tmp_path) == ["home", "home/ds-1", "home/ds-1/sub", "home/ds-1/sub/a"]
    assert final.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("fail", [ValueError("bad"), KeyboardInterrupt(), SystemExit(3), DataError("bad row")], ids=repr)
def test_error_inside_leaves_nothing_and_comes_out_as_it_is(tmp_path, fail):
    with pytest.raises(type(fail)) as error:
        publish(tmp_path / "ds-1", fail=fail)
    assert error.value is fail and names(tmp_path) == []


def test_error_inside_keeps_the_directory_before(tmp_path):
    publish(tmp_path / "ds-1", text="old")
    before = names(tmp_path)
    with pytest.raises(ValueError):
        publish(tmp_path / "ds-1", fail=ValueError())
    assert names(tmp_path) == before and (tmp_path / "ds-1" / "sub" / "a").read_text() == "old"


def test_nothing_is_seen_at_the_final_place_before_the_end(tmp_path):
    with publish_directory(tmp_path / "ds-1") as staging:
        (staging / "a").write_text("half")
        assert not (tmp_path / "ds-1").exists() and staging.name.startswith(".")
    assert (tmp_path / "ds-1" / "a").read_text() == "half"


def test_system_error_inside_says_what_could_not_be_written(tmp_path):
    with files_limited_to(4096), pytest.raises(StoreError, match=f"could not write {tmp_path / 'ds-1'}"):
        publish(tmp_path / "ds-1", text="x" * 4097)
    assert names(tmp_path) == []


def save_plain(path):
    path.write_bytes(b"x" * 100_000)


def save_numpy(path):
    np.save(path.with_suffix(".npy"), np.zeros(100_000))


def save_safetensors(path):
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(100_000)}, path)


def save_torch(path):
    import torch

    torch.save(torch.zeros(100_000), path)


@pytest.mark.parametrize("save", [save_plain, save_numpy, save_safetensors, save_torch])
def test_full_disk_is_told_as_such_whoever_wrote(small_disk, save):
    """Each library has an error of its own for it; numpy's carries no number, safetensors' is no OSError."""
    publish(small_disk / "ds-1", text="old")
    with pytest.raises(StoreError) as error:
        with publish_directory(small_disk / "ds-1") as staging:
            save(staging / "a")
    assert error.value.why == "no space left on the disk" and "TUNESMITH_HOME" in error.value.fix
    assert names(small_disk) == ["ds-1", "ds-1/sub", "ds-1/sub/a"] and (small_disk / "ds-1/sub/a").read_text() == "old"


def test_process_that_is_killed_leaves_the_directory_before(tmp_path):
    publish(tmp_path / "ds-1", text="old")
    code = f"""
import os, pathlib, signal
from tunesmith.store.files import publish_directory
with publish_directory(pathlib.Path({str(tmp_path / "ds-1")!r})) as staging:
    (staging / "a").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "ds-1" / "sub" / "a").read_text() == "old" and not (tmp_path / "ds-1" / "a").exists()
    assert all(p.name.startswith(".") for p in tmp_path.iterdir() if p.name != "ds-1")  # what is left hides from `find`


# ---- what killed processes leave -------------------------------------------------------------------------------------

WRITER = """
import sys, time
from pathlib import Path
from tunesmith.store import files
final = Path(sys.argv[1])
if sys.argv[2] == "directory":
    with files.publish_directory(final) as staging:
        (staging / "a").write_text("new")
        print("there", flush=True)
        time.sleep(60)
else:
    replace = files.os.replace
    def late(*names):
        print("there", flush=True)
        time.sleep(60)
    files.os.replace = late
    files.write_text(final, "new")
"""


@pytest.fixture(params=["directory", "file"])
def writer(request, tmp_path):
    """Another process in the middle of writing `tmp_path / "final"`."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "final"), request.param], stdout=subprocess.PIPE,
                               text=True)
    assert process.stdout.readline() == "there\n"
    yield process
    process.kill()
    process.communicate()


def test_what_a_living_process_writes_stays_and_what_a_killed_one_wrote_goes(writer, tmp_path):
    (left,) = tmp_path.iterdir()
    assert sweep(tmp_path) == [] and left.exists()
    assert sweep(tmp_path, "final") == []
    writer.kill()
    writer.wait()
    assert left.exists()  # the control: nobody else takes it away
    assert sweep(tmp_path, "other") == [] and left.exists()
    assert sweep(tmp_path, "final") == [left.name]
    assert list(tmp_path.iterdir()) == []


def test_the_next_write_takes_away_what_a_killed_one_left_of_it_and_nothing_else(tmp_path):
    ours, others = tmp_path / ".ds-1.abcd1234.tmp", tmp_path / ".ds-2.abcd1234.tmp"
    for path in (ours, others):
        path.mkdir()
    publish(tmp_path / "ds-1")
    assert names(tmp_path) == [".ds-2.abcd1234.tmp", "ds-1", "ds-1/sub", "ds-1/sub/a"]


def test_killed_between_the_two_renames_the_new_directory_is_put_in_its_place(tmp_path):
    new, old = tmp_path / ".ds-1.abcd1234.tmp", tmp_path / ".ds-1.abcd1234.old"
    for path, text in ((new, "new"), (old, "old")):
        path.mkdir()
        (path / "a").write_text(text)
    assert sorted(sweep(tmp_path)) == [old.name]
    assert names(tmp_path) == ["ds-1", "ds-1/a"] and (tmp_path / "ds-1" / "a").read_text() == "new"


def test_what_was_replaced_or_half_removed_goes(tmp_path):
    publish(tmp_path / "ds-1")
    (tmp_path / ".ds-1.abcd1234.old").mkdir()
    assert sweep(tmp_path) == [".ds-1.abcd1234.old"]
    remove_directory(tmp_path / "ds-1")
    remove_directory(tmp_path / "ds-1")  # gone is gone
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["a.tmp", ".a.tmp", ".a.abc.tmp", ".a.ABCD1234.tmp", ".a.abcd1234.bak", "a.abcd1234.old"])
def test_sweep_knows_its_own_names_only(tmp_path, name):
    (tmp_path / name).write_text("somebody's")
    assert sweep(tmp_path) == [] and names(tmp_path) == [name]


def test_when_the_second_rename_fails_the_directory_before_is_put_back(tmp_path, monkeypatch):
    publish(tmp_path / "ds-1", text="old")
    replace = os.replace

    def refuse(source, target):
        if str(source).endswith(".tmp"):
            raise PermissionError(13, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(StoreError, match="could not write"):
        publish(tmp_path / "ds-1")
    assert names(tmp_path) == ["ds-1", "ds-1/sub", "ds-1/sub/a"] and (tmp_path / "ds-1" / "sub" / "a").read_text() == "old"


def test_one_holds_a_directory_until_it_lets_go(tmp_path):
    with held(tmp_path):
        with pytest.raises(BlockingIOError), held(tmp_path):
            pass
    with held(tmp_path):
        pass
