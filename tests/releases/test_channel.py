"""A channel points at a release, goes back where it came from, and forgets nothing.

pytest tests/releases/test_channel.py
"""

import json
import os
import shutil

import pytest

import tunesmith
from tunesmith.errors import NotFoundError, StoreError, UsageError
from tunesmith.releases.bundle import MANIFEST, Release, _release_id
from tunesmith.releases.channel import current


@pytest.fixture
def releases(project) -> list[str]:
    """Three releases: the project's, and two that differ in their name."""
    first = Release.find(project.done["release_id"])
    ids = [first.id]
    for name in ("second", "third"):
        manifest = first.manifest | {"name": name}
        manifest["release_id"] = _release_id(manifest)
        shutil.copytree(first.path, first.path.parent / manifest["release_id"])
        (first.path.parent / manifest["release_id"] / MANIFEST).write_text(json.dumps(manifest))
        ids.append(manifest["release_id"])
    return ids


def file_of(project, channel):
    return json.loads((project.home / "channels" / f"{channel}.json").read_text())


def test_promote_points_and_says_what_was_there(project, releases):
    a, b, _ = releases
    assert tunesmith.promote(a, "production") == {"channel": "production", "release_id": a, "previous": None}
    assert tunesmith.promote(b[:14], "production", why="better") == {"channel": "production", "release_id": b, "previous": a}
    state = file_of(project, "production")
    assert state["release_id"] == b == current("production")["release_id"]
    moves = [(m["action"], m["release_id"], m["why"]) for m in state["history"]]
    assert moves == [("promote", a, ""), ("promote", b, "better")]
    assert all(m["at"] and m["by"] for m in state["history"])


def test_promoting_the_same_release_again_changes_nothing(project, releases):
    tunesmith.promote(releases[0], "production")
    before = (project.home / "channels" / "production.json").read_bytes()
    assert tunesmith.promote(releases[0], "production") == {"channel": "production", "release_id": releases[0],
                                                            "previous": releases[0]}
    assert (project.home / "channels" / "production.json").read_bytes() == before


def test_rollback_goes_back_step_by_step_until_nothing_is_before(project, releases):
    a, b, c = releases
    for r in (a, b, c):
        tunesmith.promote(r, "production")
    assert tunesmith.rollback("production", why="slow") == {"channel": "production", "release_id": b, "previous": c}
    assert tunesmith.rollback("production") == {"channel": "production", "release_id": a, "previous": b}
    with pytest.raises(NotFoundError, match="nothing to roll back to"):
        tunesmith.rollback("production")
    assert file_of(project, "production")["release_id"] == a
    tunesmith.promote(c, "production")
    assert tunesmith.rollback("production")["release_id"] == a, "not b: the rollback took it off"


def test_going_back_to_an_earlier_release_by_promoting_it_can_itself_be_rolled_back(releases):
    a, b, _ = releases
    for r in (a, b, a):
        tunesmith.promote(r, "production")
    assert [tunesmith.rollback("production")["release_id"] for _ in range(2)] == [b, a]


def test_the_history_only_grows(project, releases):
    a, b, c = releases
    before = []
    for move in (lambda: tunesmith.promote(a, "x"), lambda: tunesmith.promote(b, "x"), lambda: tunesmith.rollback("x"),
                 lambda: tunesmith.promote(c, "x"), lambda: tunesmith.rollback("x")):
        move()
        after = file_of(project, "x")["history"]
        assert after[:-1] == before
        before = after
    assert [m["action"] for m in before] == ["promote", "promote", "rollback", "promote", "rollback"]


def test_channels_are_apart(project, releases):
    tunesmith.promote(releases[0], "production")
    tunesmith.promote(releases[1], "staging")
    assert (current("production")["release_id"], current("staging")["release_id"]) == tuple(releases[:2])


def test_rollback_to_a_bundle_that_was_changed_is_refused_and_moves_nothing(project, releases):
    a, b, _ = releases
    tunesmith.promote(a, "production")
    tunesmith.promote(b, "production")
    (project.home / "releases" / a / "golden.json").write_text("[]")
    with pytest.raises(StoreError, match="golden.json"):
        tunesmith.rollback("production")
    assert file_of(project, "production")["release_id"] == b


def test_an_unknown_channel_or_release_is_named_with_those_there_are(project, releases):
    tunesmith.promote(releases[0], "staging")
    with pytest.raises(NotFoundError, match="no channel 'production'") as raised:
        tunesmith.rollback("production")
    assert "staging" in raised.value.why and raised.value.exit_code == 2
    with pytest.raises(NotFoundError, match="no release 'rel-none'"):
        tunesmith.promote("rel-none", "production")
    assert not (project.home / "channels" / "production.json").exists()


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "Production", "-x", "_x", "x" * 64, "a b", "prod\n", "ü", "x.json"])
def test_names_that_could_be_paths_or_are_hard_to_tell_apart_are_refused(project, releases, name):
    with pytest.raises(UsageError, match="channel name"):
        tunesmith.promote(releases[0], name)
    with pytest.raises(NotFoundError):
        tunesmith.rollback(name)
    assert not (project.home / "channels").exists() and not (project.home.parent / "x.json").exists()


def test_good_names(releases):
    for name in ("production", "a", "0", "blue-2_x", "x" * 63):
        assert tunesmith.promote(releases[0], name)["channel"] == name


def test_a_user_without_a_name_can_promote(project, releases, monkeypatch):
    """Containers run under numbers that no password file knows."""
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    tunesmith.promote(releases[0], "production")
    assert file_of(project, "production")["history"][0]["by"] == "uid 54321"
