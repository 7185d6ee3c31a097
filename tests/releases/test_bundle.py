"""A release holds what it takes to serve and judge it, loads without us, and notices every change.

pytest tests/releases/test_bundle.py
"""

import json
import os
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tunesmith
from tunesmith.errors import NotFoundError, StoreError
from tunesmith.releases.bundle import MANIFEST, Release, _release_id, all_releases
from tunesmith.store.files import read_json, sha256_file, sha256_json, sha256_tree, write_json
from tunesmith.template.fingerprint import fingerprint
from tunesmith.training.run import Run

HELD = {"recipe.yaml", "recipe.resolved.json", "environment.json", "dataset.json", "golden.json", "replay.json",
        "lock.cdx.json", "report/report.json", "report/report.html", "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors", "adapter/tunesmith.json", "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json", "tokenizer/chat_template.jinja"}


@pytest.fixture
def release(project) -> Release:
    return Release.find(project.done["release_id"])


# ---- what it holds ---------------------------------------------------------------------------------------------------


def test_the_bundle_holds_what_it_says_and_nothing_else(release, project):
    assert release.manifest["files"].keys() == HELD
    assert {str(p.relative_to(release.path)) for p in release.path.rglob("*") if p.is_file()} == HELD | {MANIFEST}
    for name, digest in release.manifest["files"].items():
        assert sha256_file(release.path / name) == digest
    run = json.loads((project.run_dir / "run.json").read_text())
    assert {k: release.manifest[k] for k in ("run_id", "base", "dataset_id", "template_fingerprint", "dtype")} == \
        {k: run[k] for k in ("run_id", "base", "dataset_id", "template_fingerprint", "dtype")}
    assert release.manifest["gates"] == project.done["gates"]
    assert (release.path / "recipe.yaml").read_bytes() == project.recipe.read_bytes()
    assert run["release_id"] == release.id


def test_its_numbers_are_the_reports(release, project):
    report = project.report["sets"]["test"]["metrics"]
    assert release.manifest["metrics"] == {n: {k: m[k] for k in ("base", "tuned", "delta", "ci95")} for n, m in report.items()}


def test_the_adapter_loads_in_plain_peft_with_the_logits_of_the_training(release, project, lively_base):
    """Right after the last step the held-out loss was measured with the trained weights in memory; the files give it back."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from tunesmith.data.dataset import Dataset

    base = AutoModelForCausalLM.from_pretrained(lively_base, dtype=torch.float32).eval()
    model = PeftModel.from_pretrained(base, release.adapter).eval()
    tokens = Dataset.open(project.home / "datasets" / release.manifest["dataset_id"]).tokens("test")
    nats = count = 0
    for ids, trained in (tokens[i] for i in range(len(tokens))):
        with torch.inference_mode():
            logp = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        wanted = [(at - 1, ids[at]) for at, on in enumerate(trained) if on]
        nats -= sum(logp[at, token].item() for at, token in wanted)
        count += len(wanted)
    assert nats / count == pytest.approx(project.done["eval_loss"], rel=1e-4)
    ours, theirs = ((p.read_bytes()) for p in (project.run_dir / "adapter" / "adapter_model.safetensors",
                                               release.adapter / "adapter_model.safetensors"))
    assert ours == theirs


def test_the_tokenizer_prompts_as_in_training_without_the_base(release):
    from transformers import AutoTokenizer

    plain = AutoTokenizer.from_pretrained(release.path / "tokenizer")
    assert fingerprint(plain) == fingerprint(release.tokenizer()) == release.manifest["template_fingerprint"]
    assert plain.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False) == \
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_of_the_recipes_own_travels_with_the_release(make_recipe, tmp_path, command):
    own = "{% for m in messages %}<|im_start|>{{ m['role'] }}:\n{{ m['content'] }}<|im_end|>{% endfor %}" \
          "{% if add_generation_prompt %}<|im_start|>assistant:\n{% endif %}"
    (tmp_path / "own.jinja").write_text(own)
    recipe = make_recipe(**{"data.template": "own.jinja", "train.max_steps": 3, "eval.metrics": ["loss"],
                            "eval.baselines": ["zero_shot"], "gates.target.min_gain": 0.01})
    done = command("run", recipe, "--json", check=0).json
    release = Release.find(done["release_id"])
    assert release.tokenizer().chat_template == own
    assert fingerprint(release.tokenizer()) == release.manifest["template_fingerprint"]


# ---- its name --------------------------------------------------------------------------------------------------------


def test_releasing_a_run_again_gives_the_same_release(release, project):
    before = sha256_tree(release.path)
    again = tunesmith.release(project.done["run_id"])
    assert (again["release_id"], again["verdict"]) == (release.id, "pass")
    assert sha256_tree(release.path) == before
    assert [p.name for p in (project.home / "releases").iterdir()] == [release.id], "nothing is left beside it"


def test_a_release_is_found_by_id_unique_prefix_and_path(release, project, tmp_path):
    for name in (release.id, release.id[:12], str(release.path)):
        assert Release.find(name).path == release.path
    shutil.copytree(release.path, tmp_path / "elsewhere")
    assert Release.find(str(tmp_path / "elsewhere")).id == release.id
    with pytest.raises(NotFoundError, match="no release 'rel-0'"):
        Release.find("rel-0")
    shutil.copytree(release.path, release.path.parent / (release.id[:12] + "0" * 12))
    with pytest.raises(NotFoundError, match="is the beginning of 2 releases"):
        Release.find(release.id[:12])


def test_half_written_bundles_are_not_listed(release, project):
    shutil.copytree(release.path, project.home / "releases" / f".{project.done['run_id']}")
    (project.home / "releases" / "rel-unfinished").mkdir()
    assert [m["release_id"] for m in all_releases()] == [release.id]


# ---- changes are noticed ---------------------------------------------------------------------------------------------


def edited(release: Release, change) -> None:
    path = release.path / MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    write_json(path, manifest)


def is_refused(release: Release, file: str) -> None:
    with pytest.raises(StoreError) as raised:
        Release.find(release.id)
    assert raised.value.exit_code == 1
    assert raised.value.where == str(release.path / file), "it names the file"


@pytest.mark.parametrize("file", sorted(HELD))
def test_one_flipped_bit_anywhere_is_found(release, file):
    data = bytearray((release.path / file).read_bytes())
    data[-1] ^= 1
    (release.path / file).write_bytes(data)
    is_refused(release, file)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_one_changed_byte_in_any_file_is_found(signed, data):
    """The manifest, the lock and the signatures included; whichever byte, whatever it becomes."""
    names = sorted(str(p.relative_to(signed.path)) for p in signed.path.rglob("*") if p.is_file())
    path = signed.path / data.draw(st.sampled_from(names))
    whole = path.read_bytes()
    at, mask = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(1, 255))
    path.write_bytes(whole[:at] + bytes([whole[at] ^ mask]) + whole[at + 1:])
    try:
        with pytest.raises(StoreError):
            Release.find(str(signed.path))
    finally:
        path.write_bytes(whole)


@pytest.mark.slow
def test_one_changed_byte_anywhere_in_the_manifest_and_the_signatures_is_found(signed):
    """At fifty places of each, made a blank, a line break, the other case, its neighbour: JSON has bytes that say nothing."""
    small = [MANIFEST, *(str(p.relative_to(signed.path)) for p in (signed.path / "signatures").iterdir())]
    assert len(small) == 3
    for name in small:
        path = signed.path / name
        whole = path.read_bytes()
        step = max(1, len(whole) // 50)
        for at in range(0, len(whole), step):
            for other in {ord(" "), ord("\n"), whole[at] ^ 0x20, whole[at] ^ 1} - {whole[at]}:
                path.write_bytes(whole[:at] + bytes([other]) + whole[at + 1:])
                with pytest.raises(StoreError):
                    Release(signed.path, read_json(signed.path / MANIFEST)).verify()
        path.write_bytes(whole)
    Release.find(signed.id)


@pytest.fixture
def signed(release, tmp_path):
    """The release with a signature, and the control: it is whole."""
    key = tunesmith.new_key(tmp_path / "key")
    tunesmith.sign_release(release.id, key=key["key"])
    assert Release.find(release.id).verify() == [key["key_id"]]
    return release


def test_the_date_is_part_of_the_id_and_that_of_the_evaluation(release, project):
    assert release.manifest["created"] == project.report["created"]
    edited(release, lambda m: m.update(created="2001-01-01T00:00:00Z"))
    is_refused(release, MANIFEST)


def test_a_release_from_before_format_2_is_still_whole_and_its_date_is_not_in_its_id(release):
    """As the releases were that are out there: no format, no lock, the date beside the id."""
    old = release.manifest | {"created": "2026-01-01T00:00:00Z"}
    old.pop("format")
    (release.path / "lock.cdx.json").unlink()
    old["files"] = {n: d for n, d in old["files"].items() if n != "lock.cdx.json"}
    assert _release_id(old) == _release_id(old | {"created": "2027-01-01T00:00:00Z"})
    old["release_id"] = _release_id(old)
    (release.path / MANIFEST).write_text(json.dumps(old))
    release.path.rename(release.path.with_name(old["release_id"]))
    found = tunesmith.verify_release(old["release_id"])
    assert (found["identical"], found["here"]) == (True, None)
    edited(Release.find(old["release_id"]), lambda m: m.update(name="other"))
    with pytest.raises(StoreError):
        Release.find(old["release_id"])


@pytest.mark.parametrize("spoil, named", [
    (lambda p: (p / "golden.json").symlink_to((p / "golden.json").rename(p.parent / "elsewhere.json")), "golden.json"),
    (lambda p: (p / "adapter").rename(p / "tokenizer" / "adapter"), "adapter/adapter_config.json"),
    (lambda p: (p / "golden.json").rename(p / "golden2.json"), "golden.json"),
    (lambda p: (p / "empty").mkdir(), "empty"),
    (lambda p: (p / "link").symlink_to("/etc"), "link"),
    (lambda p: (p / "adapter" / "link").symlink_to("../golden.json"), "adapter/link"),
    (lambda p: (p / "broken").symlink_to("nowhere"), "broken"),
    (lambda p: os.mkfifo(p / "pipe"), "pipe"),
    (lambda p: ((p / "signatures").mkdir(), (p / "signatures" / "note.txt").write_text("x")), "signatures/note.txt"),
], ids=["linked", "moved", "renamed", "empty directory", "link to a directory", "link to a file", "broken link", "pipe",
        "no signature"])
def test_whatever_is_no_file_of_the_release_is_found(release, spoil, named):
    spoil(release.path)
    is_refused(release, named)


def test_modes_and_times_are_no_part_of_a_release(release):
    """Stores do not keep them: the control for all of the above."""
    for path in release.path.rglob("*"):
        os.utime(path, (0, 0))
        path.chmod(0o700)
    assert Release.find(release.id).id == release.id


def test_releasing_again_repairs_a_release_that_was_damaged(release, project):
    before = sha256_tree(release.path)
    (release.path / "golden.json").write_text("[]")
    assert tunesmith.release(project.done["run_id"])["release_id"] == release.id
    assert sha256_tree(release.path) == before


def test_a_file_that_was_removed_is_found(release):
    (release.path / "golden.json").unlink()
    is_refused(release, "golden.json")


def test_a_file_that_was_added_is_found(release):
    (release.path / "adapter" / "extra.py").write_text("print()")
    is_refused(release, "adapter/extra.py")


@pytest.mark.parametrize("change", [
    lambda m: m["metrics"]["loss"].update(tuned=0.0),
    lambda m: m["gates"][0].update(verdict="fail"),
    lambda m: m["base"].update(digest="sha256:0"),
    lambda m: m.update(template_fingerprint="sha256:0"),
    lambda m: m.update(name="other"),
    lambda m: m.update(run_id="other"),
    lambda m: m.update(extra=1),
    lambda m: m.pop("metrics"),
    lambda m: m.pop("release_id"),
    lambda m: m.update(release_id="rel-00000000000000000000"),
])
def test_an_edited_manifest_is_found(release, change):
    edited(release, change)
    is_refused(release, MANIFEST)


def test_a_manifest_without_its_list_of_files_is_found(release):
    edited(release, lambda m: m.pop("files"))
    is_refused(release, MANIFEST)


def test_a_forged_release_under_the_name_of_another_is_found(release):
    """Whole in itself, its id follows from its manifest; but it lies where another release was."""
    def forge(manifest):
        manifest["metrics"]["loss"]["tuned"] = 0.0
        manifest["release_id"] = _release_id(manifest)

    edited(release, forge)
    with pytest.raises(StoreError, match="another release lies where"):
        Release.find(release.id)


def test_every_verb_that_takes_a_release_verifies_it(release, command):
    (release.path / "golden.json").write_text("[]")
    for verb in (["promote", release.id, "--to", "production"], ["show", release.id], ["verify", "release", release.id],
                 ["eval", release.id], ["serve", "--release", release.id, "--port", "0"]):
        done = command(*verb, check=1)
        assert "golden.json" in done.stderr and "is not as it was released" in done.stderr


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_nothing_but_the_event_is_written_when_a_gate_refuses(project, command):
    """The same run, asked for more than it has."""
    path = project.run_dir / "recipe.resolved.json"
    recipe = json.loads(path.read_text())
    recipe["gates"]["target"]["min_gain"] = 50.0
    path.write_text(json.dumps(recipe))
    shutil.rmtree(project.home / "releases")
    before = sha256_tree(project.home)
    refused = command("release", project.done["run_id"], "--json", check=3).json
    assert (refused["verdict"], refused["release_id"]) == ("refused", None)
    assert [g["verdict"] for g in refused["gates"]] == ["fail"] + ["pass"] * 4
    assert refused["gates"][0]["evidence"]["min_gain"] == 50.0
    after = sha256_tree(project.home)
    assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} == {
        f"runs/{project.done['run_id']}/events.jsonl"}
    event = json.loads((project.run_dir / "events.jsonl").read_text().splitlines()[-1])
    assert (event["event"], event["gates"]) == ("refused", ["target"])


def test_a_run_that_was_never_evaluated_is_refused(project, command):
    shutil.rmtree(project.run_dir / "report")
    refused = command("release", project.done["run_id"], "--json", check=3).json
    assert {g["name"]: g["verdict"] for g in refused["gates"]} == {
        "target": "not_measured", "leak": "pass", "audit": "pass", "template": "not_measured", "no_op": "not_measured"}


def test_an_adapter_that_is_not_the_evaluated_one_is_never_released(project):
    """Somebody trained on, or copied another adapter over it: the report speaks of other weights."""
    path = project.run_dir / "adapter" / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    shutil.rmtree(project.home / "releases")
    with pytest.raises(StoreError, match="not the one that was evaluated"):
        tunesmith.release(project.done["run_id"])
    assert not (project.home / "releases").exists()
    tunesmith.evaluate(project.done["run_id"])
    digest = Run.find(project.done["run_id"])
    assert json.loads((digest.path / "report" / "report.json").read_text())["adapter"]["digest"] == \
        sha256_json(sha256_tree(digest.adapter))
    assert tunesmith.release(project.done["run_id"])["verdict"] == "pass"
