"""Things are found by id, by the beginning of one, or by path; never by guessing.

    python -m pytest tests/store/test_home.py
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tunesmith.errors import NotFoundError
from tunesmith.store.home import cache, find, home, new_run_id


@pytest.fixture
def runs(home):
    folder = home / "runs"
    for name in ("addresses-1", "addresses-12", "style-1", ".style-2.x.tmp"):
        (folder / name).mkdir(parents=True)
    (folder / "style-file").write_text("no directory")
    return folder


def test_home_and_cache_follow_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "h"))
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "c"))
    assert (home(), cache()) == (tmp_path / "h", tmp_path / "c")
    monkeypatch.setenv("TUNESMITH_HOME", "")
    monkeypatch.delenv("TUNESMITH_CACHE")
    monkeypatch.chdir(tmp_path)
    assert (home(), cache()) == (tmp_path / ".tunesmith", Path.home() / ".cache" / "tunesmith")


@pytest.mark.parametrize("name, found", [("addresses-1", "addresses-1"), ("addresses-12", "addresses-12"), ("style", "style-1"),
                                         ("s", "style-1")])
def test_id_or_unique_beginning_finds_it(runs, name, found):
    assert find("runs", name) == runs / found


def test_path_of_a_thing_finds_it_anywhere(runs, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "manifest.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert find("datasets", "elsewhere") == find("datasets", str(tmp_path / "elsewhere")) == tmp_path / "elsewhere"


def test_beginning_of_several_is_refused_with_their_names(runs):
    with pytest.raises(NotFoundError, match="'addresses-' is the beginning of 2 runs") as error:
        find("runs", "addresses-")
    assert error.value.why == "addresses-1, addresses-12" and error.value.exit_code == 2


@pytest.mark.parametrize("kind, name, what, why", [
    ("runs", "poems", "no run 'poems'", "there are: addresses-1, addresses-12, style-1"),
    ("runs", ".style-2", "no run '.style-2'", "there are: addresses-1, addresses-12, style-1"),
    ("releases", "rel-1", "no release 'rel-1'", "there is no release yet"),
])
def test_what_is_not_there_is_refused_with_what_is(runs, kind, name, what, why):
    with pytest.raises(NotFoundError) as error:
        find(kind, name)
    assert (error.value.what, error.value.why) == (what, why)


def test_run_ids_sort_by_time_and_differ():
    ids = {new_run_id("addresses") for _ in range(50)}
    assert len(ids) == 50 and all(re.fullmatch(r"addresses-\d{8}-\d{6}-[0-9a-f]{6}", i) for i in ids)
