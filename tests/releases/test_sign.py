"""A signature says who stands for a release; a changed one is found, and with trusted keys nothing else is promoted.

pytest tests/releases/test_sign.py
"""

import base64
import hashlib
import json
import os
import shutil
import stat
import subprocess

import pytest

import tunesmith
from tunesmith.errors import GateRefused, NotFoundError, StoreError, UsageError
from tunesmith.releases.bundle import MANIFEST, Release
from tunesmith.releases.sign import pae, signing_key

openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to compare with")


@pytest.fixture
def release(project) -> Release:
    return Release.find(project.done["release_id"])


@pytest.fixture
def ada(tmp_path) -> dict:
    return tunesmith.new_key(tmp_path / "keys" / "ada")


@pytest.fixture
def eve(tmp_path) -> dict:
    return tunesmith.new_key(tmp_path / "keys" / "eve")


@pytest.fixture
def trust(home):
    """Put public keys where home looks for them."""
    def these(*keys: dict) -> None:
        (home / "trusted-keys").mkdir(exist_ok=True)
        for number, key in enumerate(keys):
            shutil.copy(key["public_key"], home / "trusted-keys" / f"{number}.pub")

    return these


def files(release: Release, key: dict):
    return (release.path / "signatures" / (key["key_id"] + end) for end in (".dsse.json", ".pub"))


# ---- keys and signatures


def test_a_new_key_is_its_owners_and_is_never_overwritten(ada, tmp_path):
    assert stat.S_IMODE(os.stat(ada["key"]).st_mode) == 0o600
    before = (tmp_path / "keys" / "ada").read_bytes()
    with pytest.raises(UsageError, match="never overwritten"):
        tunesmith.new_key(ada["key"])
    (tmp_path / "keys" / "ada").unlink()
    with pytest.raises(UsageError, match="never overwritten"):
        tunesmith.new_key(ada["key"])
    assert b"PRIVATE KEY" in before and not (tmp_path / "keys" / "ada").exists()


def test_signing_changes_neither_the_id_nor_the_manifest(release, ada, eve):
    before = (release.path / MANIFEST).read_bytes()
    assert tunesmith.sign_release(release.id, key=ada["key"]) == {"release_id": release.id, "signed_by": ada["key_id"]}
    assert tunesmith.sign_release(release.id, key=eve["key"])["signed_by"] == eve["key_id"]
    assert Release.find(release.id).verify() == sorted([ada["key_id"], eve["key_id"]])
    assert (release.path / MANIFEST).read_bytes() == before
    envelope = [p.read_bytes() for p in files(release, ada)]
    tunesmith.sign_release(release.id, key=ada["key"])
    assert [p.read_bytes() for p in files(release, ada)] == envelope, "ed25519 signs the same twice"


@openssl
def test_openssl_accepts_the_signature_and_makes_keys_that_are_accepted(release, tmp_path):
    """An implementation of its own, on the bytes that DSSE's protocol says are signed."""
    key, public = tmp_path / "made.pem", tmp_path / "made.pub"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True)
    subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", public], check=True)
    der = subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-outform", "DER"], check=True, capture_output=True).stdout
    signed_by = tunesmith.sign_release(release.id, key=key)["signed_by"]
    assert signed_by == hashlib.sha256(der).hexdigest()
    envelope = json.loads((release.path / "signatures" / f"{signed_by}.dsse.json").read_text())
    payload = base64.b64decode(envelope["payload"])
    statement = json.loads(payload)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["subject"] == [{"name": MANIFEST, "digest": {
        "sha256": hashlib.sha256((release.path / MANIFEST).read_bytes()).hexdigest()}}]
    assert statement["predicate"]["purl"] == f"pkg:generic/tiny@{release.id}"
    (tmp_path / "pae").write_bytes(b"DSSEv1 28 application/vnd.in-toto+json %d " % len(payload) + payload)
    (tmp_path / "sig").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    check = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", "-in", tmp_path / "pae", "-sigfile",
             tmp_path / "sig"]
    assert b"Verified Successfully" in subprocess.run(check, check=True, capture_output=True).stdout
    (tmp_path / "pae").write_bytes(b"DSSEv1 28 application/vnd.in-toto+json %d " % len(payload) + payload[:-1] + b" ")
    assert subprocess.run(check, capture_output=True).returncode != 0, "the control"


def test_the_encoding_is_that_of_the_specification():
    """The example of DSSE's protocol.md, with our type."""
    assert pae(b"hello world") == b"DSSEv1 28 application/vnd.in-toto+json 11 hello world"


@openssl
def test_an_encrypted_key_needs_its_passphrase(release, tmp_path, monkeypatch):
    key = tmp_path / "locked.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-aes256", "-pass", "pass:open sesame", "-out", key],
                   check=True, capture_output=True)
    with pytest.raises(UsageError, match="cannot be read") as raised:
        tunesmith.sign_release(release.id, key=key)
    assert "TUNESMITH_SIGNING_PASSPHRASE" in raised.value.fix
    monkeypatch.setenv("TUNESMITH_SIGNING_PASSPHRASE", "open sesame")
    assert tunesmith.sign_release(release.id, key=key)["signed_by"]


def test_no_key_and_what_is_no_key_are_said(release, ada, tmp_path):
    assert signing_key() is None
    with pytest.raises(UsageError, match="no key to sign with"):
        tunesmith.sign_release(release.id)
    with pytest.raises(UsageError, match="no such signing key"):
        tunesmith.sign_release(release.id, key=tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(UsageError, match="cannot be read"):
        tunesmith.sign_release(release.id, key=tmp_path / "text")
    with pytest.raises(UsageError, match="cannot be read"):
        tunesmith.sign_release(release.id, key=ada["public_key"])
    with pytest.raises(UsageError, match="not an ed25519 public key"):
        tunesmith.verify_release(release.id, key=ada["key"])
    with pytest.raises(NotFoundError):
        tunesmith.verify_release(release.id, key=tmp_path / "none.pub")


def test_release_signs_with_the_key_of_the_option_or_of_the_environment(project, ada, eve, command, monkeypatch):
    run = project.done["run_id"]
    assert command("release", run, "--json", check=0).json["signed_by"] is None
    done = command("release", run, "--sign", ada["key"], "--json", check=0).json
    assert (done["signed_by"], done["release_id"]) == (ada["key_id"], project.done["release_id"])
    monkeypatch.setenv("TUNESMITH_SIGNING_KEY", eve["key"])
    assert command("release", run, "--json", check=0).json["signed_by"] == eve["key_id"]
    assert Release.find(done["release_id"]).verify() == sorted([ada["key_id"], eve["key_id"]]), "the first one stays"


# ---- forgeries


def refused(release: Release, words: str) -> None:
    with pytest.raises(StoreError, match="signature of release") as raised:
        Release.find(release.id)
    assert words in raised.value.why
    assert raised.value.exit_code == 1


def test_a_signature_of_another_release_is_found(release, ada, rebundled):
    other = Release.find(rebundled(name="other"))
    tunesmith.sign_release(other.id, key=ada["key"])
    shutil.copytree(other.path / "signatures", release.path / "signatures")
    refused(release, "not about this release")


def test_a_signature_under_the_name_of_another_key_is_found(release, ada, eve):
    """Eve signs, and says that it was Ada."""
    tunesmith.sign_release(release.id, key=eve["key"])
    envelope, public = files(release, eve)
    text = envelope.read_text().replace(eve["key_id"], ada["key_id"])
    envelope.unlink()
    (release.path / "signatures" / f"{ada['key_id']}.dsse.json").write_text(text)
    public.rename(public.with_name(f"{ada['key_id']}.pub"))
    refused(release, "not the key that its name says")
    shutil.copy(ada["public_key"], release.path / "signatures" / f"{ada['key_id']}.pub")
    refused(release, "this key did not sign this release")


@pytest.mark.parametrize("spoil, words", [
    (lambda e, p: p.unlink(), "there is no"),
    (lambda e, p: e.unlink(), "there is no"),
    (lambda e, p: e.write_text("{}"), "no signature"),
    (lambda e, p: e.write_text("not json"), "no signature"),
    (lambda e, p: p.write_text("not a key"), "no signature"),
    (lambda e, p: e.write_text(e.read_text() + " "), "not about this release, or was changed"),
    (lambda e, p: p.write_text(p.read_text() + "\n"), "not the key"),
])
def test_half_a_signature_and_what_is_none_are_found(release, ada, spoil, words):
    tunesmith.sign_release(release.id, key=ada["key"])
    spoil(*files(release, ada))
    refused(release, words)


# ---- trust


def test_without_trusted_keys_anything_is_promoted_and_nothing_is_called_trusted(release, eve):
    tunesmith.sign_release(release.id, key=eve["key"])
    found = tunesmith.verify_release(release.id)
    assert (found["trusted"], found["signatures"]) == (None, [{"key_id": eve["key_id"], "trusted": None}])
    assert tunesmith.promote(release.id, "production")["release_id"] == release.id


def test_with_trusted_keys_only_what_they_signed_is_promoted(release, project, ada, eve, trust, command):
    trust(ada)
    with pytest.raises(GateRefused, match="not signed by a trusted key") as raised:
        tunesmith.promote(release.id, "production")
    assert raised.value.exit_code == 3 and "it is not signed" in raised.value.why
    tunesmith.sign_release(release.id, key=eve["key"])
    with pytest.raises(GateRefused) as raised:
        tunesmith.promote(release.id, "production")
    assert eve["key_id"][:16] in raised.value.why
    assert command("promote", release.id, "--to", "production", "--json", check=3).json["error"] == "GateRefused"
    assert not (project.home / "channels").exists(), "nothing moved"
    tunesmith.sign_release(release.id, key=ada["key"])
    tunesmith.promote(release.id, "production")
    history = json.loads((project.home / "channels" / "production.json").read_text())["history"]
    assert history[0]["signed_by"] == sorted([ada["key_id"], eve["key_id"]])


def test_a_rollback_goes_only_to_what_is_trusted(release, project, ada, trust, rebundled):
    second = rebundled(name="second")
    tunesmith.promote(release.id, "production")
    tunesmith.promote(second, "production")
    trust(ada)
    with pytest.raises(GateRefused, match="was not rolled back to"):
        tunesmith.rollback("production")
    tunesmith.sign_release(release.id, key=ada["key"])
    assert tunesmith.rollback("production")["release_id"] == release.id


def test_the_variable_names_a_directory_or_a_file_and_never_nothing(release, ada, eve, tmp_path, monkeypatch):
    tunesmith.sign_release(release.id, key=ada["key"])
    for place, trusted in ((ada["public_key"], True), (eve["public_key"], False), (tmp_path / "keys", True)):
        monkeypatch.setenv("TUNESMITH_TRUSTED_KEYS", str(place))
        assert tunesmith.verify_release(release.id)["trusted"] is trusted
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("TUNESMITH_TRUSTED_KEYS", str(tmp_path / "empty"))
    with pytest.raises(UsageError, match="no trusted key"):
        tunesmith.promote(release.id, "production")
    monkeypatch.setenv("TUNESMITH_TRUSTED_KEYS", str(tmp_path / "gone"))
    with pytest.raises(NotFoundError, match="no such public key"):
        tunesmith.promote(release.id, "production")


def test_verify_release_with_a_key_is_exit_code_1_without_its_signature(release, ada, eve, command):
    tunesmith.sign_release(release.id, key=ada["key"])
    good = command("verify", "release", release.id, "--key", ada["public_key"], "--json", check=0).json
    assert good["identical"] and good["trusted"] and good["signatures"] == [{"key_id": ada["key_id"], "trusted": True}]
    assert set(good) == {"identical", "release_id", "trusted", "here", "signatures", "message"}
    bad = command("verify", "release", release.id, "--key", eve["public_key"], "--json", check=1).json
    assert (bad["identical"], bad["trusted"]) == (True, False)
    assert "REFUSED" in command("verify", "release", release.id, "--key", eve["public_key"], check=1).stdout
    assert ada["key_id"] in command("verify", "release", release.id, check=0).stdout


def test_key_new_and_sign_from_the_command_line(release, tmp_path, command):
    made = command("key", "new", tmp_path / "k", "--json", check=0).json
    assert set(made) == {"key", "public_key", "key_id"}
    assert command("sign", release.id, "--key", tmp_path / "k", "--json", check=0).json == {
        "release_id": release.id, "signed_by": made["key_id"]}
    assert command("key", "new", tmp_path / "k", "--json", check=2).json["error"] == "UsageError"
    assert "PRIVATE" not in command("key", "new", tmp_path / "l", check=0).stdout
