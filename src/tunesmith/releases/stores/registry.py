"""An OCI registry as a store: a release is an artifact with one layer a file (OCI image specification 1.1, artifacts).

    registry://HOST[:PORT]/REPO           tagged with the release's id
    registry://HOST[:PORT]/REPO:TAG       tagged as given; such a tag may be moved to another release, as tags are

    manifest   artifactType application/vnd.tunesmith.release.v1, the empty config, annotations
    layers     blobs named by their digest, each with its path in `org.opencontainers.image.title`

Blobs that the registry has are not sent again, the manifest is put last, and it names everything by digest. The same release
with the same signatures is the same artifact. HTTPS, but to this machine itself (127.0.0.1, localhost) plain HTTP.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from pathlib import Path
from types import MethodType
from typing import Any

from tunesmith.errors import NotFoundError, StoreError, UsageError
from tunesmith.releases.bundle import MANIFEST, Release
from tunesmith.releases.sign import FOLDER
from tunesmith.releases.stores import ID, Moved, listed, one_of
from tunesmith.store.files import read_json, sha256_bytes, sha256_file

ADDRESS = re.compile(r"registry://(?P<host>[A-Za-z0-9.-]+(?::\d+)?)/(?P<repo>[a-z0-9]+(?:[._/-][a-z0-9]+)*)(?::(?P<tag>\w[\w.-]{0,127}))?")
ARTIFACT = "application/vnd.tunesmith.release.v1"
MANIFEST_TYPE, EMPTY_TYPE = "application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.empty.v1+json"
TITLE = "org.opencontainers.image.title"
IN_PARTS_FROM_BYTES = 1 << 28
"""oras reads what it sends at once into memory; larger files go in parts."""
USER, PASSWORD = "TUNESMITH_REGISTRY_USER", "TUNESMITH_REGISTRY_PASSWORD"
OK = (200, 201, 202)
IN_THE_WAY = re.compile(r"BLOB_UNKNOWN|DIGEST_INVALID|BLOB_UPLOAD_(INVALID|UNKNOWN)")
"""What a registry on a file system says while somebody else writes the same blob."""
PAUSES = (0.2, 0.5, 1.0, 2.0)
"""Seconds before each further attempt."""
SECONDS = 10
"""Before a registry that says nothing counts as gone."""


def push(release: Release, url: str, names: list[str]) -> Moved:
    client, place, tag = _open(url)
    target = client.get_container(f"{place}:{tag or release.id}")
    client.auth.load_configs(target)
    layers = [_layer(release.path, name) for name in [*names, MANIFEST]]
    sent: dict[str, int] = {}
    for pause in (*PAUSES, None):
        try:
            _send(client, target, release, layers, sent)
            break
        except StoreError as error:
            if pause is None or not IN_THE_WAY.search(error.why or ""):
                raise
            time.sleep(pause)
    return Moved(f"registry://{place}:{target.tag}", len(sent), sum(sent.values()))


def _send(client: Any, target: Any, release: Release, layers: list[dict], sent: dict[str, int]) -> None:
    """What the registry lacks, and then the artifact. Raises StoreError."""
    there = _manifest(client, target)
    for layer in layers:
        path = release.path / layer["annotations"][TITLE]
        if client.blob_exists(layer, target):
            continue
        _accepted(client.upload_blob(str(path), target, layer, do_chunked=layer["size"] >= IN_PARTS_FROM_BYTES), layer)
        sent[layer["digest"]] = layer["size"]
    if there and there["annotations"].get("org.opencontainers.image.version") == release.id:
        titles = {layer["annotations"][TITLE] for layer in layers}  # signatures that others pushed stay
        layers = [x for x in there["layers"] if x["annotations"][TITLE].startswith(f"{FOLDER}/")
                  and x["annotations"][TITLE] not in titles] + layers
    artifact = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "artifactType": ARTIFACT, "config": _empty(client, target),
                "layers": sorted(layers, key=lambda x: x["annotations"][TITLE]), "annotations": {
                    TITLE: release.manifest["name"], "org.opencontainers.image.created": release.manifest["created"],
                    "org.opencontainers.image.version": release.id}}
    if artifact != there:
        _accepted(client.upload_manifest(artifact, target), artifact)


def find(name: str, url: str) -> str:
    client, place, tag = _open(url)
    if tag is None and ID.fullmatch(name):
        return name
    target = client.get_container(f"{place}:{tag}" if tag else place)
    client.auth.load_configs(target)
    if tag is None:
        return one_of(name, client.get_tags(target), url)
    artifact = _manifest(client, target)
    return one_of(name, [artifact["annotations"].get("org.opencontainers.image.version", "")] if artifact else [], url)


def pull(release_id: str, url: str, staging: Path) -> Moved:
    client, place, tag = _open(url)
    target = client.get_container(f"{place}:{tag or release_id}")
    client.auth.load_configs(target)
    artifact = _manifest(client, target)
    if artifact is None:
        raise NotFoundError(f"no release {release_id!r}", where=url, fix="give the id and the address that `push` printed")
    layers = {x.get("annotations", {}).get(TITLE): x for x in artifact["layers"]}
    if MANIFEST not in layers:
        raise StoreError("this artifact is no release", where=url, why=f"its type is {artifact.get('artifactType')}",
                         fix="give the address that `push` printed")
    _fetch(client, target, layers[MANIFEST], staging / MANIFEST)
    names = listed(read_json(staging / MANIFEST), [n for n in layers if n and n.startswith(f"{FOLDER}/")])
    for name in names:
        if name not in layers:
            raise StoreError(f"the artifact lacks {name}", where=url, why="the release's manifest names it",
                             fix="push the release again from where it is whole")
        _fetch(client, target, layers[name], staging / name)
    size = sum(layers[n]["size"] for n in [*names, MANIFEST])
    return Moved(f"registry://{place}:{target.tag}", len(names) + 1, size)


def _open(url: str) -> tuple[Any, str, str | None]:
    """A client, `HOST/REPO`, and the tag if one was given.

    The registry is asked which kind of credentials it wants: oras has a client for each. Its own retries would wait for two
    minutes at a closed port; urllib3's wait for seconds, and only where trying again can help.
    """
    found = ADDRESS.fullmatch(url)
    if not found:
        raise UsageError("not an address of an OCI registry", where=url, fix="registry://HOST[:PORT]/REPO[:TAG]")
    import requests
    from oras.provider import Registry
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    host = found["host"]
    local = re.fullmatch(r"(localhost|127(\.\d+){3})(:\d+)?", host) is not None
    asked = requests.get(f"http{'' if local else 's'}://{host}/v2/", timeout=SECONDS).headers.get("WWW-Authenticate", "")
    client = Registry(hostname=host, insecure=local, auth_backend="basic" if asked.lower().startswith("basic") else "token")
    client.do_request = MethodType(Registry.do_request.__wrapped__, client)
    client.session.mount(f"{client.prefix}://", HTTPAdapter(max_retries=Retry(
        3, backoff_factor=0.5, status_forcelist=(500, 502, 503, 504), allowed_methods=None, raise_on_status=False)))
    if os.environ.get(USER):
        client.auth.set_basic_auth(os.environ[USER], os.environ.get(PASSWORD, ""))
    return client, f"{host}/{found['repo']}", found["tag"]


def _manifest(client: Any, target: Any) -> dict | None:
    """The artifact that a tag names now, or None. Raises StoreError when the registry does not answer as one."""
    answer = client.do_request(f"{client.prefix}://{target.manifest_url()}", "GET", headers={"Accept": MANIFEST_TYPE})
    if answer.status_code == 404:
        return None
    _accepted(answer, {})
    return answer.json() | {"annotations": answer.json().get("annotations") or {}}


def _layer(folder: Path, name: str) -> dict:
    kind = "application/json" if name.endswith(".json") else "application/octet-stream"
    return {"mediaType": kind, "digest": sha256_file(folder / name), "size": (folder / name).stat().st_size,
            "annotations": {TITLE: name}}


def _empty(client: Any, target: Any) -> dict:
    config = {"mediaType": EMPTY_TYPE, "digest": sha256_bytes(b"{}"), "size": 2}
    with tempfile.NamedTemporaryFile() as f:
        f.write(b"{}")
        f.flush()
        _accepted(client.upload_blob(f.name, target, config), config)
    return config


def _fetch(client: Any, target: Any, layer: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    client.download_blob(target, layer["digest"], str(path))


def _accepted(answer: Any, what: dict) -> None:
    if answer.status_code not in OK:
        raise StoreError("the registry refuses", where=what.get("annotations", {}).get(TITLE),
                         why=f"HTTP {answer.status_code} {(answer.text or '').strip()[:200]}",
                         fix="check that you may write there: `docker login`, or TUNESMITH_REGISTRY_USER and _PASSWORD")
