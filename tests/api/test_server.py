"""Starting and stopping the server: what is wrong is said before a model is loaded, and a stop is no failure.

pytest tests/api/test_server.py
"""

import json
import shutil
import signal
import socket
from dataclasses import replace

import pytest
import torch
from openai import OpenAI
from safetensors.torch import load_file, save_file

import tunesmith
from tunesmith.api.server import listen, load_engine
from tunesmith.errors import AdapterError, StoreError, UsageError
from tunesmith.releases.bundle import MANIFEST, Release, _release_id
from tunesmith.store.files import sha256_tree, write_json


@pytest.fixture
def taken():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def test_a_port_in_use_is_said_first_with_what_why_and_do(cli, taken):
    """The release does not exist either, but the port is looked at before anything is loaded."""
    done = cli("serve", "--release", "rel-none", "--port", taken, check=2)
    what, why, do = done.stderr.splitlines()
    assert what == f"error: port {taken} on 127.0.0.1 is in use"
    assert why.startswith("  why: ") and "in use" in why
    assert do.startswith("  do:  ") and "--port" in do
    assert done.stdout == ""


def test_an_address_that_is_not_this_machines_is_a_usage_error():
    with pytest.raises(UsageError, match="port 80 on 192.0.2.1 cannot be used"):
        listen("192.0.2.1", 80)
    with pytest.raises(UsageError, match="cannot be used"):
        listen("no-such-host.invalid", 0)


def test_nothing_to_serve(home):
    with pytest.raises(UsageError, match="nothing to serve") as raised:
        load_engine([], [], None)
    assert raised.value.exit_code == 2 and "--channel" in raised.value.fix


@pytest.mark.parametrize("channels, releases, word", [([], ["rel-none"], "release"), (["production"], [], "channel")])
def test_an_unknown_release_or_channel_is_named_with_those_that_exist(project, channels, releases, word):
    with pytest.raises(LookupError, match=f"no {word} ") as raised:
        load_engine(channels, releases, None)
    assert raised.value.exit_code == 2
    if word == "release":
        assert project.done["release_id"] in raised.value.why


def test_releases_on_different_bases_and_another_base_are_refused(project, tiny_base):
    with pytest.raises(UsageError, match="is not the base of the releases"):
        load_engine([], [project.done["release_id"]], str(tiny_base))


@pytest.mark.parametrize("file", ["adapter/adapter_model.safetensors", "tokenizer/chat_template.jinja"])
def test_a_flipped_byte_in_the_bundle_ends_the_start_and_names_the_file(project, file):
    path = project.release_dir / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match="is not as it was released") as raised:
        load_engine([], [project.done["release_id"]], None)
    assert raised.value.exit_code == 1
    assert raised.value.where == str(path)


def test_a_base_that_has_changed_since_the_release_is_refused(project, lively_base, tmp_path):
    """The release remembers the digest of its base, not only its name."""
    moved = tmp_path / "base"
    shutil.copytree(lively_base, moved)
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(config | {"rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"}}))
    release = Release.find(project.done["release_id"])
    other = replace(release, manifest=release.manifest | {"base": release.manifest["base"] | {"ref": str(moved)}})
    with pytest.raises(StoreError, match="is not the one release"):
        other.base()


def test_a_channels_name_wins_over_the_name_of_another_releases_recipe(project, lively_base):
    """Two releases of recipes named `tiny` and `other`; the channel `tiny` points at `other`."""
    first = Release.find(project.done["release_id"])
    shutil.copytree(first.path, first.path.parent / "copy")
    manifest = first.manifest | {"name": "other"}
    manifest["release_id"] = _release_id(manifest)
    write_json(first.path.parent / "copy" / MANIFEST, manifest)
    (first.path.parent / "copy").rename(first.path.parent / manifest["release_id"])
    tunesmith.promote(first.id, "blue")
    tunesmith.promote(manifest["release_id"], "tiny")
    engine = load_engine(["blue", "tiny"], [], None)
    try:
        inside = {name: served.root for name, served in engine.served.items()}
        assert inside["tiny"] == inside["other"] == inside[manifest["release_id"]] != inside["blue"] == inside[first.id]
        assert engine.served[str(lively_base)].adapter is None
    finally:
        engine.close()


def test_an_adapter_that_does_not_fit_ends_the_start(project):
    """A bundle that is whole, of an adapter that was never saved: all its B are zero."""
    release = Release.find(project.done["release_id"])
    weights = load_file(release.adapter / "adapter_model.safetensors")
    save_file({n: torch.zeros_like(w) if "lora_B" in n else w for n, w in weights.items()},
              release.adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    files = {n: d for n, d in sha256_tree(release.path).items() if n != MANIFEST}
    manifest = release.manifest | {"files": files}
    manifest["release_id"] = _release_id(manifest)
    write_json(release.path / MANIFEST, manifest)
    made = release.path.rename(release.path.parent / manifest["release_id"])
    with pytest.raises(AdapterError, match="changes nothing"):
        load_engine([], [made.name], None)


@pytest.mark.slow
def test_sigterm_and_sigint_let_a_stream_end_and_then_the_server_with_exit_code_0(start_server, lively_base, tmp_path):
    servers = [(start_server(tmp_path, "--base", str(lively_base)), s) for s in (signal.SIGTERM, signal.SIGINT)]
    for server, number in servers:
        client = OpenAI(base_url=server.url, api_key="none", max_retries=0)
        stream = client.chat.completions.create(model=str(lively_base), messages=[{"role": "user", "content": "1"}],
                                                stream=True, max_tokens=20, temperature=0)
        next(iter(stream))
        server.process.send_signal(number)
        assert [c.choices[0].finish_reason for c in stream][-1] == "length"
    for server, _ in servers:
        assert server.process.wait(60) == 0
        said = [line for line in server.log.read_text(encoding="utf-8").splitlines() if not line.startswith("{")]
        assert said[2:] == [f"ready: {server.url}"], "and not a word more than a line a request"
