"""Releases in an OCI registry: oras speaks to a real one, the reference implementation (CNCF distribution), on loopback.

`make test-stores` installs both and runs this.   pytest -m stores tests/releases/test_stores_registry.py
"""

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import tunesmith
from tunesmith.errors import NotFoundError, StoreError
from tunesmith.releases.bundle import MANIFEST, Release
from tunesmith.releases.stores.registry import ARTIFACT, TITLE
from tunesmith.store.files import sha256_bytes, sha256_tree

pytestmark = pytest.mark.stores
BINARY = shutil.which("docker-registry") or str(Path(sys.prefix) / "registry" / "usr" / "bin" / "docker-registry")
PASSWORD, BCRYPT = "hunter2-0123456789", "$2b$04$BWrRWysZecf3a0gC8svkqOwXpzjJ5c1dtK3SkEGFcr6W7ayEt6AQm"


def serve(folder: Path, users: str | None = None):
    """The registry's process and its address; with `users` (an htpasswd file) it asks for a password."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"version": 0.1, "log": {"level": "error"}, "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
                "http": {"addr": f"127.0.0.1:{port}"}}
    if users:
        (folder / "users").write_text(users)
        settings["auth"] = {"htpasswd": {"realm": "test", "path": str(folder / "users")}}
    (folder / "config.yml").write_text(json.dumps(settings))
    process = subprocess.Popen([BINARY, "serve", folder / "config.yml"], stdout=subprocess.DEVNULL,
                               stderr=(folder / "log").open("w"))
    for _ in range(300):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/")
            break
        except urllib.error.HTTPError:
            break
        except OSError:
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
    return process, f"127.0.0.1:{port}"


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    process, host = serve(tmp_path_factory.mktemp("registry"))
    yield host
    process.kill()
    process.wait()


@pytest.fixture
def release(project) -> Release:
    return Release.find(project.done["release_id"])


def fetched(host: str, path: str) -> bytes:
    """As any client of the protocol reads it."""
    asked = urllib.request.Request(f"http://{host}/v2/{path}", headers={"Accept": "application/vnd.oci.image.manifest.v1+json"})
    return urllib.request.urlopen(asked).read()


def test_a_release_goes_there_and_comes_back_on_another_machine(release, registry, tmp_path, monkeypatch, command):
    key = tunesmith.new_key(tmp_path / "key")
    tunesmith.sign_release(release.id, key=key["key"])
    before, url = sha256_tree(release.path), f"registry://{registry}/team/tiny"
    pushed = command("push", release.id, url, "--json", check=0).json
    assert pushed["url"] == f"{url}:{release.id}" and pushed["uploaded"] == pushed["files"] == len(before)
    again = tunesmith.push(release.id, url)
    assert (again["uploaded"], again["bytes"]) == (0, 0)
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "other"))
    for name, where in ((release.id, url), (release.id[:9], url), (release.id[:9], pushed["url"])):
        shutil.rmtree(tmp_path / "other", ignore_errors=True)
        pulled = tunesmith.pull(name, where)
        assert sha256_tree(Path(pulled["path"])) == before
    assert tunesmith.verify_release(release.id, key=key["public_key"])["trusted"] is True


def test_it_is_an_artifact_as_the_specification_has_it(release, registry):
    tunesmith.push(release.id, f"registry://{registry}/spec")
    artifact = json.loads(fetched(registry, f"spec/manifests/{release.id}"))
    assert (artifact["schemaVersion"], artifact["artifactType"]) == (2, ARTIFACT)
    assert artifact["config"] == {"mediaType": "application/vnd.oci.empty.v1+json", "digest": sha256_bytes(b"{}"), "size": 2}
    layers = {layer["annotations"][TITLE]: layer for layer in artifact["layers"]}
    assert {n: layer["digest"] for n, layer in layers.items()} == sha256_tree(release.path)
    assert fetched(registry, f"spec/blobs/{layers[MANIFEST]['digest']}") == (release.path / MANIFEST).read_bytes()


def test_the_client_of_oras_pulls_the_same_files(release, registry, tmp_path, monkeypatch):
    from oras.client import OrasClient

    tunesmith.push(release.id, f"registry://{registry}/plain")
    (tmp_path / "got").mkdir()
    monkeypatch.chdir(tmp_path / "got")
    OrasClient(insecure=True).pull(f"{registry}/plain:{release.id}", outdir=str(tmp_path / "got"))
    assert sha256_tree(tmp_path / "got") == sha256_tree(release.path)


def test_a_tag_may_move_and_the_id_that_is_asked_for_decides(release, rebundled, registry, tmp_path, monkeypatch):
    other, url = rebundled(name="other"), f"registry://{registry}/tags:production"
    tunesmith.push(release.id, url)
    tunesmith.push(other, url)
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "other"))
    assert tunesmith.pull("rel-", url)["release_id"] == other
    with pytest.raises(NotFoundError, match="no release"):
        tunesmith.pull(release.id, url)


def test_signatures_of_two_meet_there(release, registry, tmp_path, monkeypatch):
    """Each signs and pushes on a machine of his own, and has not seen the other's signature."""
    url, ids = f"registry://{registry}/signed", []
    plain = tmp_path / "plain"
    shutil.copytree(release.path, plain)
    for name in ("ada", "grace"):
        monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / name))
        shutil.copytree(plain, tmp_path / name / "releases" / release.id)
        ids.append(tunesmith.sign_release(release.id, key=tunesmith.new_key(tmp_path / name / "key")["key"])["signed_by"])
        tunesmith.push(release.id, url)
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "third"))
    assert Release.open(Path(tunesmith.pull(release.id, url)["path"])).verify() == sorted(ids)


def test_blobs_without_a_manifest_are_no_release(release, tmp_path, monkeypatch):
    """What a push that was cut off leaves: every blob is there, the manifest is not."""
    (tmp_path / "registry").mkdir()
    process, host = serve(tmp_path / "registry")
    url = f"registry://{host}/half"
    try:
        tunesmith.push(release.id, url)
        shutil.rmtree(tmp_path / "registry" / "data" / "docker/registry/v2/repositories/half/_manifests")
        monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "other"))
        with pytest.raises(NotFoundError):
            tunesmith.pull(release.id, url)
        monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
        assert tunesmith.push(release.id, url)["uploaded"] == 0, "the blobs are not sent again"
        monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "other"))
        assert tunesmith.pull(release.id, url)["release_id"] == release.id
    finally:
        process.kill()
        process.wait()


def test_a_blob_that_was_changed_on_the_registrys_disk_is_found(release, tmp_path, monkeypatch):
    (tmp_path / "registry").mkdir()
    process, host = serve(tmp_path / "registry")
    try:
        tunesmith.push(release.id, f"registry://{host}/x")
        digest = release.manifest["files"]["golden.json"].removeprefix("sha256:")
        blob = tmp_path / "registry" / "data" / "docker/registry/v2/blobs/sha256" / digest[:2] / digest / "data"
        whole = blob.read_bytes()
        blob.write_bytes(whole[:-2] + b" ]")
        monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "other"))
        with pytest.raises(StoreError):
            tunesmith.pull(release.id, f"registry://{host}/x")
        assert not list((tmp_path / "other" / "releases").iterdir())
        blob.write_bytes(whole)
        assert tunesmith.pull(release.id, f"registry://{host}/x")["release_id"] == release.id, "the control"
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("given", ["environment", "docker login"])
def test_a_registry_with_a_password(release, tmp_path, monkeypatch, command, given):
    (tmp_path / "registry").mkdir()
    process, host = serve(tmp_path / "registry", f"ada:{BCRYPT}\n")
    url = f"registry://{host}/private"
    monkeypatch.setenv("HOME", str(tmp_path))
    try:
        refused = command("push", release.id, url, "--json", check=1)
        assert refused.json["error"] == "StoreError"
        if given == "environment":
            monkeypatch.setenv("TUNESMITH_REGISTRY_USER", "ada")
            monkeypatch.setenv("TUNESMITH_REGISTRY_PASSWORD", "wrong")
            assert command("push", release.id, url, "--json", check=1).json["error"] == "StoreError"
            monkeypatch.setenv("TUNESMITH_REGISTRY_PASSWORD", PASSWORD)
        else:
            (tmp_path / ".docker").mkdir()
            entry = {"auth": base64.b64encode(f"ada:{PASSWORD}".encode()).decode()}
            (tmp_path / ".docker" / "config.json").write_text(json.dumps({"auths": {host: entry}}))
        done = command("push", release.id, url, "--json", check=0)
        monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "other"))
        pulled = command("pull", release.id, url, "--json", check=0)
        for shown in (refused, done, pulled):
            assert PASSWORD not in shown.stdout + shown.stderr
    finally:
        process.kill()
        process.wait()


def test_a_closed_port_is_exit_code_1(release, command):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    error = command("push", release.id, f"registry://127.0.0.1:{port}/x", "--json", check=1).json
    assert error["error"] == "StoreError" and "refused" in error["why"]


def test_pushes_at_the_same_time(release, registry, tmp_path, monkeypatch):
    url = f"registry://{registry}/race"
    code = "import sys, tunesmith; tunesmith.push(sys.argv[1], sys.argv[2])"
    processes = [subprocess.Popen([sys.executable, "-c", code, release.id, url], env=dict(os.environ)) for _ in range(2)]
    assert [p.wait(120) for p in processes] == [0, 0]
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "other"))
    assert tunesmith.pull(release.id, url)["release_id"] == release.id
