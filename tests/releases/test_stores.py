"""A release goes to a store and comes back as it was; half a push is no release, and what was changed there is not kept.

Object stores and registries have servers of their own: `test_stores_s3.py`, `test_stores_registry.py`.

pytest tests/releases/test_stores.py
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tunesmith
from tunesmith.errors import NotFoundError, StoreError
from tunesmith.releases.bundle import MANIFEST, Release
from tunesmith.releases.stores import listed, redacted
from tunesmith.store.files import sha256_tree


@pytest.fixture
def release(project) -> Release:
    return Release.find(project.done["release_id"])


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Go on in another home, as on another machine."""
    def go(name: str = "elsewhere") -> Path:
        monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / name))
        return tmp_path / name

    return go


def test_a_directory_gives_back_what_it_got(release, tmp_path, elsewhere):
    key = tunesmith.new_key(tmp_path / "key")
    tunesmith.sign_release(release.id, key=key["key"])
    before = sha256_tree(release.path)
    pushed = tunesmith.push(release.id, str(tmp_path / "store"))
    assert pushed == {"release_id": release.id, "url": str(tmp_path / "store" / release.id), "files": len(before),
                      "uploaded": len(before), "bytes": sum(p.stat().st_size for p in release.path.rglob("*") if p.is_file())}
    there = elsewhere()
    pulled = tunesmith.pull(release.id[:9], f"file://{tmp_path}/store")
    assert pulled["path"] == str(there / "releases" / release.id) and pulled["downloaded"] == pulled["files"] == len(before)
    assert sha256_tree(Path(pulled["path"])) == before
    assert tunesmith.verify_release(release.id, key=key["public_key"])["trusted"] is True
    assert tunesmith.promote(release.id, "production")["release_id"] == release.id
    assert [p.name for p in (there / "releases").iterdir()] == [release.id], "nothing is left beside it"


def test_pushing_and_pulling_again_moves_nothing_and_changes_nothing(release, tmp_path, elsewhere):
    store = str(tmp_path / "store")
    tunesmith.push(release.id, store)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("*")}
    assert tunesmith.push(release.id, store)["uploaded"] == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("*")} == before
    elsewhere()
    first = tunesmith.pull(release.id, store)
    stamps = {p: p.stat().st_mtime_ns for p in Path(first["path"]).rglob("*")}
    tunesmith.pull(release.id, store)
    assert {p: p.stat().st_mtime_ns for p in Path(first["path"]).rglob("*")} == stamps


def test_a_signature_made_later_follows(release, tmp_path, elsewhere):
    store = str(tmp_path / "store")
    tunesmith.push(release.id, store)
    there = elsewhere()
    tunesmith.pull(release.id, store)
    elsewhere("home")
    key = tunesmith.new_key(tmp_path / "key")
    tunesmith.sign_release(release.id, key=key["key"])
    assert tunesmith.push(release.id, store)["uploaded"] == 2
    elsewhere()
    tunesmith.pull(release.id, store)
    assert Release.open(there / "releases" / release.id).verify() == [key["key_id"]]


def test_a_damaged_copy_here_is_replaced_by_a_whole_one(release, tmp_path):
    tunesmith.push(release.id, str(tmp_path / "store"))
    before = sha256_tree(release.path)
    (release.path / "golden.json").write_text("[]")
    tunesmith.pull(release.id, str(tmp_path / "store"))
    assert sha256_tree(release.path) == before


def test_a_damaged_copy_there_is_replaced_by_a_whole_one(release, tmp_path, elsewhere):
    tunesmith.push(release.id, str(tmp_path / "store"))
    (tmp_path / "store" / release.id / "golden.json").write_text("[]")
    assert tunesmith.push(release.id, str(tmp_path / "store"))["uploaded"] > 0
    elsewhere()
    assert tunesmith.pull(release.id, str(tmp_path / "store"))["release_id"] == release.id


def test_a_damaged_release_is_not_pushed(release, tmp_path):
    (release.path / "golden.json").write_text("[]")
    with pytest.raises(StoreError, match="golden.json"):
        tunesmith.push(release.id, str(tmp_path / "store"))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("file", ["golden.json", "adapter/adapter_model.safetensors", "lock.cdx.json", MANIFEST])
def test_what_was_changed_in_the_store_is_not_kept(release, tmp_path, elsewhere, file):
    tunesmith.push(release.id, str(tmp_path / "store"))
    path = tmp_path / "store" / release.id / file
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"1", b"2", 1) if file == MANIFEST else whole[:-1] + bytes([whole[-1] ^ 1]))
    there = elsewhere()
    with pytest.raises(StoreError) as raised:
        tunesmith.pull(release.id, str(tmp_path / "store"))
    assert raised.value.where == f"{tmp_path}/store/{release.id}/{file}", "it names the file in the store"
    assert not list((there / "releases").iterdir()), "not even a half"
    path.write_bytes(whole)
    assert tunesmith.pull(release.id, str(tmp_path / "store"))["release_id"] == release.id, "the control"


def test_a_file_that_is_missing_there_and_a_push_without_its_manifest_are_no_release(release, tmp_path, elsewhere):
    tunesmith.push(release.id, str(tmp_path / "store"))
    (tmp_path / "store" / release.id / "golden.json").unlink()
    there = elsewhere()
    with pytest.raises(StoreError, match="could not pull from"):
        tunesmith.pull(release.id, str(tmp_path / "store"))
    (tmp_path / "store" / release.id / MANIFEST).unlink()
    with pytest.raises(NotFoundError, match="no release"):
        tunesmith.pull(release.id, str(tmp_path / "store"))
    assert not (there / "releases").exists() or not list((there / "releases").iterdir())


def test_another_release_under_the_name_that_was_asked_for_is_refused(release, rebundled, tmp_path, elsewhere):
    """Whole in itself: but not the one that was asked for."""
    other = rebundled(name="other")
    tunesmith.push(other, str(tmp_path / "store"))
    (tmp_path / "store" / other).rename(tmp_path / "store" / release.id)
    there = elsewhere()
    with pytest.raises(StoreError, match="another release lies where"):
        tunesmith.pull(release.id, str(tmp_path / "store"))
    assert not list((there / "releases").iterdir())


def test_a_beginning_of_two_ids_and_an_unknown_one_are_said(release, rebundled, tmp_path, elsewhere):
    for one in (release.id, rebundled(name="other")):
        tunesmith.push(one, str(tmp_path / "store"))
    elsewhere()
    with pytest.raises(NotFoundError, match="beginning of 2 releases"):
        tunesmith.pull("rel-", str(tmp_path / "store"))
    with pytest.raises(NotFoundError, match="no release 'rel-zzz'") as raised:
        tunesmith.pull("rel-zzz", str(tmp_path / "store"))
    assert release.id in raised.value.why


@pytest.mark.parametrize("name", ["../out", "/etc/x", "a/../../x", "a//b", "./a", "", "a\\b", "a\0b", "..", "adapter/"])
def test_a_manifest_cannot_write_outside_of_its_bundle(release, tmp_path, elsewhere, name):
    """A store is not trusted: its manifest says where files go before anything is known of it."""
    tunesmith.push(release.id, str(tmp_path / "store"))
    path = tmp_path / "store" / release.id / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["files"][name] = "sha256:0"
    path.write_text(json.dumps(manifest))
    (tmp_path / "store" / release.id / "x").write_text("x")
    elsewhere()
    before = {p for p in tmp_path.rglob("*") if "elsewhere" not in p.parts}
    with pytest.raises(StoreError, match="names a file outside"):
        tunesmith.pull(release.id, str(tmp_path / "store"))
    assert {p for p in tmp_path.rglob("*") if "elsewhere" not in p.parts} == before


@given(st.lists(st.sampled_from(["a", "b.json", "..", ".", "", "/", "~", "c d", "\\", "\0", "é"]), max_size=4).map("/".join))
def test_names_that_are_listed_stay_inside(name):
    root = Path("/root/of/a/bundle")
    try:
        names = listed({"files": {name: ""}}, [])
    except StoreError:
        return
    assert os.path.normpath(root / names[0]) == str(root / name) != str(root)
    assert Path(os.path.normpath(root / names[0])).is_relative_to(root)


# ---- addresses


def test_credentials_in_an_address_are_refused_and_not_repeated(release, command):
    for url in ("s3://AKIA123:hunter2@bucket/x", "registry://me:hunter2@127.0.0.1:5000/x"):
        for verb in ("push", "pull"):
            done = command(verb, release.id, url, "--json", check=2)
            assert "hunter2" not in done.stdout + done.stderr and "AKIA123" not in done.stdout + done.stderr
            assert done.json["what"] == "a store's address must not carry credentials"
    assert redacted("no s3://a:b@c/d and https://u@h/p") == "no s3://***@c/d and https://***@h/p"
    assert redacted("s3://bucket/folder/a@b") == "s3://bucket/folder/a@b"


@pytest.mark.parametrize("url, words", [("zzz://bucket/x", "nothing here can open zzz://"),
                                        ("registry://Bad Host/x", "not an address of an OCI registry"),
                                        ("registry://127.0.0.1:5000", "not an address of an OCI registry")])
def test_an_address_that_nothing_can_open_is_exit_code_2(release, url, words, command):
    error = command("push", release.id, url, "--json", check=2).json
    assert words in error["what"] and error["fix"]


def test_a_place_that_cannot_be_written_is_exit_code_1(release, tmp_path, command):
    (tmp_path / "file").write_text("")
    assert command("push", release.id, tmp_path / "file" / "store", "--json", check=1).json["error"] == "StoreError"


def test_the_command_line_prints_the_keys_of_both(release, tmp_path, command, elsewhere):
    pushed = command("push", release.id, tmp_path / "store", "--json", check=0).json
    assert set(pushed) == {"release_id", "url", "files", "uploaded", "bytes"}
    elsewhere()
    pulled = command("pull", release.id, tmp_path / "store", "--json", check=0).json
    assert set(pulled) == {"release_id", "path", "url", "files", "downloaded", "bytes"}
    assert command("pull", "rel-0", tmp_path / "store", "--json", check=2).json["error"] == "NotFoundError"


# ---- many at once, and the sudden end


PUSHER = "import sys, tunesmith; tunesmith.push(sys.argv[1], sys.argv[2])"


@pytest.mark.slow
def test_pushes_at_the_same_time_leave_one_whole_release(release, tmp_path, elsewhere):
    processes = [subprocess.Popen([sys.executable, "-c", PUSHER, release.id, tmp_path / "store"], stderr=subprocess.PIPE)
                 for _ in range(3)]
    for process in processes:
        assert process.wait(120) == 0, process.stderr.read().decode()
    assert [p.name for p in (tmp_path / "store").iterdir()] == [release.id]
    elsewhere()
    assert tunesmith.pull(release.id, str(tmp_path / "store"))["release_id"] == release.id


@pytest.mark.slow
def test_a_push_that_is_killed_leaves_no_release_and_the_next_one_goes_through(release, tmp_path, elsewhere):
    """Killed in the middle of the copy, where it stands still."""
    code = f"""if True:
        import sys
        from tunesmith.releases.stores import folder
        copy = folder._copy
        def slow(source, target):
            copy(source, target)
            if target.name == "golden.json":
                print("half", flush=True)
                sys.stdin.read()
        folder._copy = slow
        import tunesmith
        tunesmith.push({release.id!r}, {str(tmp_path / 'store')!r})
    """
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "half\n"
    process.kill()
    process.wait()
    assert [p.name for p in (tmp_path / "store").iterdir() if not p.name.startswith(".")] == []
    assert list((tmp_path / "store").iterdir()), "the control: something was written"
    home = elsewhere("other")
    with pytest.raises(NotFoundError):
        tunesmith.pull(release.id, str(tmp_path / "store"))
    elsewhere("home")
    tunesmith.push(release.id, str(tmp_path / "store"))
    assert [p.name for p in (tmp_path / "store").iterdir()] == [release.id], "what was left is swept away"
    elsewhere("other")
    tunesmith.pull(release.id, str(tmp_path / "store"))
    assert [p.name for p in (home / "releases").iterdir()] == [release.id]
