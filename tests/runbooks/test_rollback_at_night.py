"""A channel goes back: rehearsed, damaged, mended.

pytest tests/runbooks/test_rollback_at_night.py
"""

import shutil

import pytest

import tunesmith
from tunesmith.releases.bundle import MANIFEST, Release, _release_id
from tunesmith.store.files import write_json


@pytest.fixture
def night(project):
    """The good release, and on top of it the bad one."""
    good = Release.find(project.done["release_id"])
    manifest = good.manifest | {"name": "bad"}
    manifest["release_id"] = _release_id(manifest)
    shutil.copytree(good.path, good.path.with_name(manifest["release_id"]))
    write_json(good.path.with_name(manifest["release_id"]) / MANIFEST, manifest)
    tunesmith.promote(good.id, "production")
    tunesmith.promote(manifest["release_id"], "production")
    return good


@pytest.mark.slow
def test_the_page_from_top_to_bottom(night, command, page, tmp_path):
    told, shown = page("rollback-at-night"), command("show", "production", check=0).stdout
    assert "history: " in shown and night.id in shown
    shutil.copytree(night.path, tmp_path / "copy")
    (night.path / "golden.json").write_text("[]")
    for attempt in (["--drill"], []):
        damaged = command("rollback", "production", *attempt, check=1)
        assert told.missing("damaged", damaged.stderr) == [], damaged.stderr
    shutil.copytree(tmp_path / "copy", night.path, dirs_exist_ok=True)
    drilled = command("rollback", "production", "--drill", check=0)
    assert told.missing("drilled", drilled.stdout) == [], drilled.stdout
    moved = command("rollback", "production", "--why", "answers in French since 22:10", check=0)
    assert told.missing("moved", moved.stdout) == [], moved.stdout
    assert tunesmith.show("production")["release_id"] == night.id
    first = command("rollback", "production", check=2)
    assert told.missing("first", first.stderr) == [], first.stderr
