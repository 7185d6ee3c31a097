"""Releases in S3: s3fs speaks the real protocol, over HTTP, to moto's server in a process of its own.

`make test-stores` installs both and runs this.   pytest -m stores tests/releases/test_stores_s3.py
"""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

import tunesmith
from tunesmith.errors import NotFoundError, StoreError
from tunesmith.releases.bundle import MANIFEST, Release
from tunesmith.store.files import sha256_tree

pytestmark = pytest.mark.stores
SECRET = "a-very-secret-key-0123456789"


@pytest.fixture(scope="module")
def server():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = f"from moto.server import ThreadedMotoServer as S; s = S('127.0.0.1', {port}); s.start(); s._thread.join()"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    for _ in range(300):
        try:
            urllib.request.urlopen(url)
            break
        except OSError:
            assert process.poll() is None
            time.sleep(0.1)
    yield url
    process.kill()
    process.wait()


@pytest.fixture
def bucket(server, monkeypatch):
    """A bucket of its own, and the credentials as a user gives them: in the environment."""
    import boto3

    for name, value in (("AWS_ENDPOINT_URL", server), ("AWS_ACCESS_KEY_ID", "AKIATEST"), ("AWS_SECRET_ACCESS_KEY", SECRET),
                        ("AWS_DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    name = f"bucket-{time.time_ns()}"
    client.create_bucket(Bucket=name)
    client.name = name
    return client


@pytest.fixture
def release(project) -> Release:
    return Release.find(project.done["release_id"])


def keys(bucket) -> list[str]:
    return [o["Key"] for o in bucket.list_objects_v2(Bucket=bucket.name).get("Contents", [])]


def test_a_release_goes_there_and_comes_back_on_another_machine(release, bucket, tmp_path, monkeypatch, command):
    key = tunesmith.new_key(tmp_path / "key")
    tunesmith.sign_release(release.id, key=key["key"])
    before, url = sha256_tree(release.path), f"s3://{bucket.name}/team/releases"
    done = command("push", release.id, url, "--json", check=0)
    assert done.json["url"] == f"{url}/{release.id}" and done.json["uploaded"] == done.json["files"] == len(before)
    assert SECRET not in done.stdout + done.stderr
    assert set(keys(bucket)) == {f"team/releases/{release.id}/{name}" for name in before}
    body = bucket.get_object(Bucket=bucket.name, Key=f"team/releases/{release.id}/{MANIFEST}")["Body"].read()
    assert body == (release.path / MANIFEST).read_bytes(), "as another client reads it"
    again = tunesmith.push(release.id, url)
    assert (again["uploaded"], again["bytes"]) == (0, 0)
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "other"))
    pulled = tunesmith.pull(release.id[:10], url)
    assert sha256_tree(Path(pulled["path"])) == before
    assert tunesmith.verify_release(release.id, key=key["public_key"])["trusted"] is True


def test_without_its_manifest_it_is_no_release_and_a_push_goes_on(release, bucket, tmp_path, monkeypatch):
    """What a push that was cut off leaves: the manifest is written last, and here it never was."""
    url = f"s3://{bucket.name}/r"
    tunesmith.push(release.id, url)
    order = sorted(bucket.list_objects_v2(Bucket=bucket.name)["Contents"], key=lambda o: o["LastModified"])
    assert order[-1]["LastModified"] == max(o["LastModified"] for o in order if o["Key"].endswith(f"/{MANIFEST}"))
    bucket.delete_object(Bucket=bucket.name, Key=f"r/{release.id}/{MANIFEST}")
    bucket.put_object(Bucket=bucket.name, Key=f"r/{release.id}/golden.json", Body=b"[")
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "other"))
    with pytest.raises(NotFoundError):
        tunesmith.pull(release.id, url)
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    assert tunesmith.push(release.id, url)["uploaded"] == len(release.manifest["files"]) + 1
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "other"))
    assert tunesmith.pull(release.id, url)["release_id"] == release.id


def test_a_kill_in_the_middle_leaves_no_release(release, bucket, tmp_path):
    code = "import sys, tunesmith; print('go', flush=True); tunesmith.push(sys.argv[1], sys.argv[2])"
    url = f"s3://{bucket.name}/k"
    process = subprocess.Popen([sys.executable, "-c", code, release.id, url], stdout=subprocess.PIPE)
    while not keys(bucket) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    names = keys(bucket)
    if f"k/{release.id}/{MANIFEST}" in names:
        pytest.skip("it was faster than the kill")
    assert names, "the control: something had arrived"
    with pytest.raises(NotFoundError):
        tunesmith.pull(release.id, url)


def test_a_changed_object_is_found_and_nothing_is_kept(release, bucket, tmp_path, monkeypatch):
    url = f"s3://{bucket.name}/r"
    tunesmith.push(release.id, url)
    name = f"r/{release.id}/adapter/adapter_model.safetensors"
    body = bucket.get_object(Bucket=bucket.name, Key=name)["Body"].read()
    bucket.put_object(Bucket=bucket.name, Key=name, Body=body[:-1] + bytes([body[-1] ^ 1]))
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "other"))
    with pytest.raises(StoreError, match="not .* as it was released") as raised:
        tunesmith.pull(release.id, url)
    assert raised.value.where == f"s3://{bucket.name}/{name}"
    assert not list((tmp_path / "other" / "releases").iterdir())


def test_pushes_at_the_same_time_and_a_pull_between_them(release, bucket, tmp_path, monkeypatch):
    url = f"s3://{bucket.name}/r"
    code = "import sys, tunesmith; tunesmith.push(sys.argv[1], sys.argv[2])"
    processes = [subprocess.Popen([sys.executable, "-c", code, release.id, url], env=dict(os.environ)) for _ in range(2)]
    assert [p.wait(120) for p in processes] == [0, 0]
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "other"))
    assert tunesmith.pull(release.id, url)["release_id"] == release.id


def test_a_bucket_that_is_not_there_is_exit_code_1_without_a_secret(release, bucket, command):
    done = command("push", release.id, "s3://no-such-bucket-here/x", "--json", check=1)
    assert done.json["error"] == "StoreError" and re.search("bucket", done.json["why"], re.IGNORECASE)
    assert SECRET not in done.stdout + done.stderr
